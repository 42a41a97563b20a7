"""What every test may count on.

Tests marked `qemu` need QEMU. Without it they are skipped by name, saying what to install;
with FIVEFOLD_REQUIRE_QEMU set, as in CI, they fail instead. So do those marked `bochs` with FIVEFOLD_REQUIRE_BOCHS,
`gdb` with FIVEFOLD_REQUIRE_GDB and `libvirt` with FIVEFOLD_REQUIRE_LIBVIRT. FIVEFOLD_NEWER_QEMU names a second QEMU for
tests/boot/test_newer_qemu.py.

`mutated` puts a mistake into a copy of the kernel: a test named after a mistake shows that it
fails when the mistake is back.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from importlib import resources
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from fivefold.machine import available
from fivefold.machine.bochs.config import installation

# Reports are folded to it; pytest-xdist sets it.
os.environ.pop("COLUMNS", None)

Mutated = Callable[..., str]

# Machines are shared and noisy: how long an example took says nothing. The same examples every time; a search for
# others is a command of its own.
settings.register_profile("suite", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("suite")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """`-n auto`: a process for each CPU that this one may use, up to eight; each has its own image and guests."""
    return min(len(os.sched_getaffinity(0)), 8)


def pytest_runtest_setup(item: pytest.Item) -> None:
    lacking = {"qemu": available, "bochs": _bochs_lacks, "gdb": _gdb_lacks, "libvirt": _libvirt_lacks}
    for engine, lacks in lacking.items():
        if item.get_closest_marker(engine) is not None and (reason := lacks(engine)) is not None:
            if os.environ.get(f"FIVEFOLD_REQUIRE_{engine.upper()}"):
                pytest.fail(f"{engine} is required here: {reason}", pytrace=False)
            pytest.skip(reason)


def _gdb_lacks(engine: str) -> str | None:
    """Why the tests cannot run gdb."""
    return None if shutil.which(engine) else f"{engine} is not installed; expected gdb 12 or later with Python"


def _libvirt_lacks(_: str) -> str | None:
    """Why the tests cannot start libvirtd."""
    here = shutil.which("virsh") and shutil.which("libvirtd", path="/usr/sbin:/usr/bin")
    return None if here else "libvirtd or virsh is not installed; expected libvirt-daemon-driver-qemu, libvirt-clients"


def _bochs_lacks(engine: str) -> str | None:
    """Why the tests cannot run Bochs: Debian 12 has one without a CPU with LA57."""
    if (reason := available(engine)) is not None:
        return reason
    version = installation(None).version
    told = f"Bochs {version[0]}.{version[1]} has no CPU with LA57; FIVEFOLD_BOCHS may say another"
    return None if version >= (3, 0) else told


@pytest.fixture(scope="session")
def mutated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mutated]:
    """Make a package like `fivefold.kernel` with some text of one file changed; return its name.

    Called with the file and pairs of text, each of which must occur exactly once: old, new.
    """
    place = tmp_path_factory.mktemp("mutants")
    names: list[str] = []

    def mutate(file: str, *changes: tuple[str, str]) -> str:
        name = f"kernel_mutant_{len(names)}"
        names.append(name)
        copy_kernel(place / name)
        (changed,) = (place / name).rglob(file)
        text = changed.read_text()
        for old, new in changes:
            assert text.count(old) == 1, f"{file} has {text.count(old)} times {old!r}"
            text = text.replace(old, new)
        changed.write_text(text)
        return name

    sys.path.insert(0, str(place))
    yield mutate
    sys.path.remove(str(place))
    for module in [module for module in sys.modules if module.partition(".")[0] in names]:
        del sys.modules[module]


def copy_kernel(target: Path) -> None:
    """Copy the kernel's sources, which then import each other and not the originals."""
    shutil.copytree(str(resources.files("fivefold.kernel")), target, ignore=shutil.ignore_patterns("__pycache__"))
    for path in target.rglob("*.py"):
        path.write_text(path.read_text().replace("fivefold.kernel", target.name))

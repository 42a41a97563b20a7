# SPDX-License-Identifier: LicenseRef-VSL-1.0
"""A real Linux in either mode, that of fivefold's own live tests, with what it says of its processes and modules."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

CHECKOUT = Path(__file__).parents[3]

INIT = b"""#!/bin/busybox sh
b=/bin/busybox
$b mount -t proc proc /proc
$b mount -t devtmpfs dev /dev
$b mount -t sysfs sys /sys
$b insmod /dummy.ko
told=
until [ "$told" ]; do
  for disk in /sys/class/block/nvme*; do
    case $($b cat $disk/device/serial) in told*) told=/dev/${disk##*/} ;; esac
  done
done
$b sleep 9998 &
sleeper=$!
( $b cat /proc/kallsyms; echo ===; $b cat /proc/modules; echo ===; $b ps -o pid,ppid,comm; echo ===
  $b cat /proc/$sleeper/maps; echo ===; $b ps -o pid,args; echo === ) | $b dd of=$told bs=64k 2>/dev/null
$b sync
echo the guest is ready
exec $b sleep 9999
"""


@dataclass(frozen=True)
class Dumped:
    """A guest's memory in two formats, and what it said of itself: parts of text."""

    levels: int
    elf: Path
    kdump: Path
    qmp: str
    kallsyms: str
    modules: str
    processes: str
    maps: str
    arguments: str


def _live() -> ModuleType:
    """What starts the guest for fivefold's tests."""
    path = CHECKOUT / "tests" / "live" / "conftest.py"
    spec = importlib.util.spec_from_file_location("fivefold_live_guest", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where its dataclasses look for their names
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def volatility() -> str:
    """The version of volatility3; without it these tests are skipped by name, and in CI they fail."""
    found = importlib.util.find_spec("volatility3")
    if found is None or importlib.util.find_spec("fivefold_volatility3") is None:
        if os.environ.get("FIVEFOLD_REQUIRE_VOLATILITY"):
            pytest.fail("volatility3 and fivefold-volatility3 are required here", pytrace=False)
        pytest.skip("needs volatility3 and fivefold-volatility3: pip install volatility3 ./integrations/volatility3")
    from importlib.metadata import version

    return version("volatility3")


GUESTS = ("6.1-la57", "6.1-la48", "6.12-la57", "6.12-la48")


@pytest.fixture(scope="module", params=GUESTS)
def guest(request: pytest.FixtureRequest, volatility: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A guest that stands still, with its dumps."""
    release, mode = request.param.split("-")
    live, place = _live(), tmp_path_factory.mktemp("guest")
    if release == "6.12":
        newer = os.environ.get("FIVEFOLD_NEWER_GUEST")
        if newer is None:
            pytest.skip("needs FIVEFOLD_NEWER_GUEST: a folder with Debian 13's kernel and busybox (.ci/newer-guest)")
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("FIVEFOLD_GUEST_CACHE", newer)
            package = live.find_package(place)
    else:
        package = live.find_package(place)
    if f"-{release}." not in package.kernel.name and not os.environ.get("FIVEFOLD_REQUIRE_VOLATILITY"):
        pytest.skip(f"this system's kernel package is {package.kernel.name}; this test boots {release}")
    (place / "run").mkdir()
    initrd = live.write_initrd(package, place, INIT)
    with live.started_guest(package, initrd, place / "run", {"la57": 5, "la48": 4}[mode]) as found:
        elf, kdump = place / "elf", place / "kdump"
        with found.monitor.patience(60):
            found.monitor.ask("dump-guest-memory", paging=False, protocol=f"file:{elf}")
            found.monitor.ask("dump-guest-memory", paging=False, protocol=f"file:{kdump}", format="kdump-zlib")
        told = ("\n" + found.told.read_bytes().decode().rstrip("\0")).split("\n===")
        yield Dumped(found.levels, elf, kdump, found.qmp, *told[:5])
    for dump in (elf, kdump):
        dump.unlink()

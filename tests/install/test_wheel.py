"""The wheel alone: it reads guests without a compiler and without an engine, on both CPUs, and says what it lacks."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
GUESTS = ROOT / "tests" / "data" / "guests"
FIVE, FOUR = "plain-la57-kaslr.elf.xz", "plain-la48-kaslr.elf.xz"
COMMANDS = (
    *(f"dump {guest} {option}" for guest in (FIVE, FOUR) for option in ("", "--json")),
    *(f"info {guest}" for guest in (FIVE, FOUR)),
    f"walk {FIVE} 0xffffffffbe400000 0xff453d0a8009a000",
    f"audit {FIVE} --json",
    f"roots {FIVE}",
    f"find {FIVE} --phys 0x1e000000",
    f"stats {FIVE}",
    f"diff {FOUR} {FIVE}",
    f"view {FIVE}",
    "explain ../logs/{log}",
    "layout",
)
ON_ARM = (f"dump {FIVE}", f"dump {FOUR}", f"walk {FIVE} 0xffffffffbe400000", "layout")


def commands(chosen: tuple[str, ...]) -> list[str]:
    log = sorted(path.name for path in (ROOT / "tests/data/logs").iterdir())[0]
    return " ; ".join(chosen).format(log=log).split()


def read(program: list[str], chosen: tuple[str, ...], **environment: str) -> tuple[bytes, str]:
    """What the commands print, and what was imported for it."""
    done = subprocess.run(
        [*program, str(HERE / "read_guests.py"), *commands(chosen)],
        cwd=GUESTS,
        capture_output=True,
        env=os.environ | environment,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    return done.stdout, done.stderr.decode()


@pytest.fixture(scope="session")
def compiled() -> bytes:
    """What the installation prints that the tests run in, which compiles."""
    out, _ = read([sys.executable], COMMANDS)
    return out


def test_it_reads_what_the_compiling_installation_reads(plain, compiled: bytes) -> None:
    out, told = read([str(plain.python), "-I"], COMMANDS, FIVEFOLD_CACHE="")

    assert out == compiled
    assert out.count(b"\nstatus ") == len(COMMANDS)
    assert out.count(b"\nstatus 0\n") > len(COMMANDS) // 2
    assert told.splitlines()[-3:] == ["numpy imported", "llvmlite not imported", "unicorn not imported"]
    assert not {"llvmlite", "unicorn"} & {path.name for path in plain.site.iterdir()}


def test_logs_and_layouts_need_no_numpy(plain) -> None:
    _, told = read([str(plain.python), "-I"], ("explain ../logs/{log}", "layout", "--help"))

    assert told.splitlines()[-3:] == ["numpy not imported", "llvmlite not imported", "unicorn not imported"]


@pytest.mark.parametrize(
    ("command", "extra"),
    [
        ("boot", "boot"),
        ("boot --engine qemu", "compile"),
        ("image -o image.elf", "compile"),
        ("conform --cases 10", "boot"),
        ("matrix tests/data/ORIGIN.md", None),
    ],
)
def test_what_it_lacks_is_an_extra(plain, command: str, extra: str | None, tmp_path: Path) -> None:
    done = subprocess.run(
        [*plain.program, *command.split()],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=os.environ | {"FIVEFOLD_CACHE": ""},
        timeout=60,
    )

    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert extra is None or line.endswith(f"install it with: pip install 'fivefold[{extra}]'")
    assert list(tmp_path.iterdir()) == []


def test_code_that_does_not_fit_names_the_compiler(plain, tmp_path: Path) -> None:
    """As on a CPU that the wheel has no code for."""
    shutil.copytree(plain.site / "fivefold", tmp_path / "fivefold", ignore=shutil.ignore_patterns("*.code"))
    done = subprocess.run(
        [str(plain.python), "-m", "fivefold", "dump", str(GUESTS / FIVE)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=os.environ | {"FIVEFOLD_CACHE": ""},
        timeout=60,
    )

    assert done.returncode == 2
    assert done.stderr.rstrip().endswith("install it with: pip install 'fivefold[compile]'")


def test_the_sdist_builds_the_same_wheel(wheel: Path, built, tmp_path: Path) -> None:
    sdist = built(ROOT, "sdist", tmp_path / "sdist")
    with tarfile.open(sdist) as packed:
        # Debian 12's Python has no filters yet, and newer ones want one.
        packed.extractall(tmp_path, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))

    again = built(tmp_path / sdist.name.removesuffix(".tar.gz"), "wheel", tmp_path / "again")

    assert (again.name, again.read_bytes()) == (wheel.name, wheel.read_bytes())


def test_the_wheel_has_code_for_both_cpus_and_no_extension(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()

    assert wheel.name.endswith("-py3-none-any.whl")
    assert [name for name in names if name.endswith(".code")] == [
        "fivefold/metal/aarch64.code",
        "fivefold/metal/x86_64.code",
    ]
    assert not [name for name in names if name.endswith((".so", ".pyc"))]


def test_on_aarch64_it_reads_the_same(wheel: Path, lacks, tmp_path: Path) -> None:
    """Debian's arm64 packages and the dependencies' wheels for AArch64, as `.ci/arm64` unpacks them."""
    place = os.environ.get("FIVEFOLD_ARM64")
    emulator = shutil.which("qemu-aarch64-static")
    if place is None or emulator is None:
        lacks("FIVEFOLD_ARM64 names no folder that .ci/arm64 made, or qemu-user-static is not installed")
    with zipfile.ZipFile(wheel) as packed:
        packed.extractall(tmp_path)
    path = f"{tmp_path}:{place}/site"
    python = [emulator, "-L", place, "-E", f"PYTHONPATH={path}", f"{place}/usr/bin/python3.11"]
    out, _ = read(python, ON_ARM, FIVEFOLD_CACHE="", PYTHONDONTWRITEBYTECODE="1")
    want, _ = read([sys.executable], ON_ARM)

    assert out == want
    assert out.count(b"\nstatus 0\n") == len(ON_ARM)
    assert subprocess.check_output([*python, "-c", "import os; print(os.uname().machine)"]) == b"aarch64\n"

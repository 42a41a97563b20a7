"""What `pip install` brings, and how long first commands take: installations of a wheel, each in a folder of its own.

Used by `startup.py --install`. It builds the wheel and fetches its dependencies with pip, so it needs a package index.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

from measure import Claim, Row, Sample, command

ROOT: Final = Path(__file__).parents[1]
GUEST: Final = ROOT / "tests/data/guests/plain-la57-kaslr.elf.xz"
LOG: Final = ROOT / "tests/data/logs/reports.txt"
MOST_MEGABYTES: Final = 120


def installations(rounds: int) -> tuple[dict[str, Row | int | str], list[Claim]]:
    """Install without extras and with `boot`; return sizes and times."""
    rows: dict[str, Row | int | str] = {}
    with tempfile.TemporaryDirectory() as place:
        _pip("wheel", "--no-deps", "-w", f"{place}/wheel", str(ROOT))
        (wheel,) = Path(place, "wheel").iterdir()
        rows["the wheel"] = f"{wheel.stat().st_size / 1e6:.1f} MB"
        plain, size = _installed(Path(place, "plain"), str(wheel))
        rows["pip install fivefold"] = f"{size:.0f} MB with bytecode"
        for name, words in {"dump": ("dump", str(GUEST)), "layout": ("layout",), "--help": ("--help",)}.items():
            rows[f"{name}, the first time"] = _timed(plain, words, rounds, Path(place), fresh=True)
            rows[f"{name}, again"] = _timed(plain, words, rounds, Path(place), fresh=False)
        boot, with_boot = _installed(Path(place, "boot"), f"{wheel}[boot]")
        rows["pip install 'fivefold[boot]'"] = f"{with_boot:.0f} MB with bytecode"
        rows["boot, the first time"] = _timed(boot, ("boot",), 1, Path(place), fresh=True)
    return rows, [Claim("pip install fivefold", size, MOST_MEGABYTES, "MB")]


def _pip(*words: str) -> None:
    subprocess.run([sys.executable, "-m", "pip", "-q", *words], check=True)


def _installed(place: Path, wanted: str) -> tuple[str, float]:
    """Install *wanted*; return the program and the size on disk in MB, without the pip of a usual environment."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(place)], check=True)
    _pip("--python", str(place / "bin" / "python"), "install", "--compile", wanted)
    size = sum(path.lstat().st_blocks for path in place.rglob("*")) * 512
    return str(place / "bin" / "fivefold"), size / 1e6


def _timed(program: str, words: tuple[str, ...], rounds: int, place: Path, *, fresh: bool) -> Sample:
    """Time a command, each time with an empty cache if *fresh*."""
    took = []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory(dir=place) as cache:
            if not fresh:
                command(program, *words, cache=Path(cache))
            took.append(command(program, *words, cache=Path(cache))[0])
    return Sample(tuple(took))

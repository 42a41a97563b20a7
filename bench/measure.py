"""What every bench shares: rounds that take turns, medians with their spread, and the machine that they ran on."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Final, Protocol

from clock import CLOCKS, VARIABLE, now

_PACKAGES: Final = ("llvmlite", "unicorn", "numpy")


@dataclass(frozen=True)
class Sample:
    """One side of a comparison: the seconds of each of its rounds."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """The middle round, which a burst of noise does not move."""
        return statistics.median(self.seconds)

    def __str__(self) -> str:
        return f"{duration(self.median)} ({duration(min(self.seconds))} to {duration(max(self.seconds))})"

    def to_json(self) -> dict[str, Any]:
        """The median, the extremes and every round, in seconds."""
        return {
            "median": self.median,
            "least": min(self.seconds),
            "most": max(self.seconds),
            "rounds": list(self.seconds),
        }


def ratio(ours: Sample, theirs: Sample) -> float:
    """How many times longer *ours* takes: the middle ratio, each of two sides that ran in the same round."""
    return statistics.median(a / b for a, b in zip(ours.seconds, theirs.seconds, strict=True))


def duration(seconds: float) -> str:
    """A time with three digits that matter."""
    if seconds < 1e-3:
        return f"{seconds * 1e6:.3g} µs"
    return f"{seconds * 1e3:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"


def take_turns(sides: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, Sample]:
    """Run each side once a round, so that what slows the machine for a while slows all of them.

    A side returns the seconds that count. One round before the first is not kept.
    """
    found: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds + 1):
        for name, side in sides.items():
            seconds = side()
            if number:
                found[name].append(seconds)
    return {name: Sample(tuple(taken)) for name, taken in found.items()}


def machine() -> dict[str, str]:
    """What the figures are worth nothing without."""
    facts = {
        "processor": _processor(),
        "cores": str(os.cpu_count()),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in _PACKAGES},
        "commit": _first_line("git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"),
    }
    return {name: value for name, value in facts.items() if value}


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def _first_line(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.partition("\n")[0]


def command(*words: str, cache: Path | None = None) -> tuple[float, str]:
    """Run a whole command once; return its seconds and its output. *cache* is where compiled code is kept."""
    environment = os.environ | ({"FIVEFOLD_CACHE": str(cache)} if cache else {})
    began = now()
    done = subprocess.run(words, env=environment, capture_output=True, text=True)
    seconds = now() - began
    if done.returncode:
        raise SystemExit(f"{' '.join(words)}: status {done.returncode}\n{done.stderr}")
    return seconds, done.stdout


def gcc_version() -> str:
    """What the compiler of the other side calls itself; empty without one."""
    return _first_line("gcc", "--version")


def parser_of(description: str, rounds: int) -> argparse.ArgumentParser:
    """``--rounds`` and ``--json``, for a bench with options of its own that counts the processor's time."""
    os.environ[VARIABLE] = "processor"
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--rounds", type=int, default=rounds, help="rounds of each side (default %(default)s)")
    parser.add_argument("--json", action="store_true", help="print one object instead of a table")
    return parser


def arguments(description: str, rounds: int, **flags: str) -> argparse.Namespace:
    """Read ``--rounds``, ``--json``, ``--clock`` and *flags*; processes started from here use the same clock."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--rounds", type=int, default=rounds, help="rounds of each side (default %(default)s)")
    parser.add_argument("--json", action="store_true", help="print one object instead of a table")
    parser.add_argument("--clock", choices=CLOCKS, default=CLOCKS[0], help="what times whole commands: %(default)s")
    for name, meaning in flags.items():
        parser.add_argument(f"--{name}", action="store_true", help=meaning)
    found = parser.parse_args()
    os.environ[VARIABLE] = found.clock
    if found.rounds < 1:
        parser.error(f"--rounds {found.rounds}: expected 1 or more")
    return found


@dataclass(frozen=True)
class Claim:
    """A target of the design: *value* is to be at most *limit*."""

    name: str
    value: float
    limit: float
    unit: str

    @property
    def holds(self) -> bool:
        """Whether this run keeps the target."""
        return self.value <= self.limit

    def __str__(self) -> str:
        verdict = "met   " if self.holds else "MISSED"
        return f"{verdict} {self.name}: {self.value:.4g} of at most {self.limit:g} {self.unit}"


class Row(Protocol):
    """A result that is more than a number or a text."""

    def to_json(self) -> Any:
        """What ``--json`` prints of it."""
        ...


def tell(schema: str, rows: Mapping[str, Row | int | str], claims: list[Claim], as_json: bool, **more: str) -> int:
    """Print what was found and whether the targets were met; 1 if one was not, else 0."""
    where = machine() | {"clock": os.environ[VARIABLE]} | more
    if as_json:
        found = {name: row if isinstance(row, int | str) else row.to_json() for name, row in rows.items()}
        told = [{"name": c.name, "value": c.value, "limit": c.limit, "unit": c.unit, "ok": c.holds} for c in claims]
        json.dump({"schema": schema, "machine": where, "results": found, "claims": told}, sys.stdout, indent=2)
        print()
    else:
        print(", ".join(f"{name} {value}" for name, value in where.items()))
        width = max(map(len, rows))
        print("\n".join(f"  {name:{width}}  {row}" for name, row in rows.items()))
        print("\n".join(map(str, claims)))
    return 0 if all(claim.holds for claim in claims) else 1

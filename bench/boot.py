"""Time `fivefold boot` as a whole command: warm, cold (nothing compiled yet), and the compilation alone."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Final

from measure import Claim, Row, arguments, command, take_turns, tell

BUILD: Final = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from clock import now
from fivefold.boot import build_image
began = now()
build_image()
print(now() - began)
"""
BOOT: Final = (str(Path(sys.executable).with_name("fivefold")), "boot", "--json")


def emptied(cache: Path) -> Path:
    """The same directory, with nothing in it."""
    for entry in cache.glob("*"):
        entry.unlink()
    return cache


def compile_image(cache: Path) -> Callable[[], float]:
    """Build the image in a new process; the seconds of that alone."""
    return lambda: float(command(sys.executable, "-c", BUILD, cache=emptied(cache))[1])


def main() -> int:
    """Time all of them in turns."""
    options = arguments("Time the boot of both CPUs on the embedded engine.", rounds=5)
    with tempfile.TemporaryDirectory() as cold, tempfile.TemporaryDirectory() as warm:
        report = json.loads(command(*BOOT, cache=Path(warm))[1])
        found = take_turns(
            {
                "fivefold boot, warm": lambda: command(*BOOT, cache=Path(warm))[0],
                "fivefold boot, cold": lambda: command(*BOOT, cache=emptied(Path(cold)))[0],
                "the image alone, cold": compile_image(Path(cold)),
            },
            options.rounds,
        )
    rows: dict[str, Row | int | str] = {**found}
    for run in report["runs"]:
        rows[f"{run['cpu']}: instructions"] = run["instructions"] or "not counted here"
        rows[f"{run['cpu']}: checks"] = len(run["checks"])
    claims = [
        Claim("fivefold boot, warm", found["fivefold boot, warm"].median, 2.0, "s"),
        Claim("the image alone, cold", found["the image alone, cold"].median, 1.0, "s"),
    ]
    return tell("fivefold.bench.boot/1", rows, claims, options.json)


if __name__ == "__main__":
    sys.exit(main())

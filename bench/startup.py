"""How long it takes before anything happens: the import, `--help`, and a compiled program out of the cache.

With `--install` also what an installation from the wheel brings, and how long its first commands take.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Final

from installations import installations
from measure import Claim, Row, arguments, command, take_turns, tell

HEAVY: Final = ("capstone", "llvmlite", "numpy", "rich", "unicorn")
"""What a command that needs none of it must not import."""

HELP: Final = f"""
import sys
sys.argv = ["fivefold", "--help"]
from fivefold.cli.main import main
try:
    main()
finally:
    print("imported:", *(name for name in {HEAVY} if name in sys.modules))
"""
LOAD: Final = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from clock import now
began = now()
from fivefold.metal.run import host
from fivefold.metal.program import Program
imported = now()
host.load(Program(
    ("map_loop",),
    bindings={{
        "fivefold.kernel.paging.pgtable.l5_enabled": 1,
        "fivefold.kernel.paging.pgtable.pgdir_shift": 48,
        "fivefold.kernel.paging.pgtable.ptrs_per_p4d": 512,
    }},
    replace={{"fivefold.kernel.paging.phys.phys_to_virt": "fivefold.metal.extents.phys_to_virt"}},
    roots=("fivefold.kernel.paging.memblock.add",),
))
loaded = now()
print(imported - began, loaded - imported, "llvmlite" in sys.modules)
"""


def python(code: str) -> Callable[[], float]:
    """A whole run of this Python with *code*."""
    return lambda: command(sys.executable, "-c", code)[0]


def host_load(cache: Path, fresh: bool) -> Callable[[], float]:
    """Load a host program in a new process; the seconds of the load alone, which compiles first if *fresh*."""

    def run() -> float:
        if fresh:
            for entry in cache.glob("*"):
                entry.unlink()
        _, load, compiler = command(sys.executable, "-c", LOAD, cache=cache)[1].split()
        if (compiler == "True") is not fresh:
            raise SystemExit(f"llvmlite was {'not ' * fresh}imported by a {'cold' if fresh else 'warm'} load")
        return float(load)

    return run


def main() -> int:
    """Time all of them in turns."""
    install = "install the wheel, without extras and with `boot`, and measure both; fetches packages"
    options = arguments("Time what comes before the work.", rounds=9, install=install)
    imported = command(sys.executable, "-c", HELP)[1].rpartition("imported:")[2].split()
    program = str(Path(sys.executable).with_name("fivefold"))
    with tempfile.TemporaryDirectory() as cold, tempfile.TemporaryDirectory() as warm:
        host_load(Path(warm), fresh=True)()
        found = take_turns(
            {
                "python -c pass": python("pass"),
                "import fivefold": python("import fivefold"),
                "fivefold --help": lambda: command(program, "--help")[0],
                "host program, warm": host_load(Path(warm), fresh=False),
                "host program, cold": host_load(Path(cold), fresh=True),
            },
            options.rounds,
        )
    rows: dict[str, Row | int | str] = {**found, "--help imports of the heavy packages": " ".join(imported) or "none"}
    claims = [
        Claim("import fivefold", found["import fivefold"].median, 0.15, "s"),
        Claim("fivefold --help", found["fivefold --help"].median, 0.15, "s"),
        Claim("heavy packages that --help imports", len(imported), 0, "packages"),
        Claim("host program, warm", found["host program, warm"].median, 0.02, "s"),
        Claim("host program, cold", found["host program, cold"].median, 0.5, "s"),
    ]
    if options.install:
        more, sizes = installations(options.rounds)
        rows, claims = rows | more, claims + sizes
    return tell("fivefold.bench.startup/1", rows, claims, options.json)


if __name__ == "__main__":
    sys.exit(main())

"""Ask memories of server sizes, and print time and memory of whole commands: maximum resident set without mapped files.

The inputs are made here, in a temporary folder: some 300 MB on disk, sparse. Memory is what the kernel counts for the
process as RssAnon and RssShmem (/proc/PID/status), asked a hundred times a second: pages of files that are mapped are
the page cache's, and go when memory is short. Time is of the processor.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

import size_images
from fivefold.units import GIB, MIB
from measure import Claim, Row, parser_of, tell
from size_images import Made

_RESIDENT: Final = re.compile(r"^(?:RssAnon|RssShmem):\s+(\d+) kB", re.MULTILINE)
_EVERY: Final = 0.01
PYTHON: Final = [sys.executable, "-c", "from fivefold.cli.main import main; main()"]


@dataclass(frozen=True)
class Taken:
    """What a command took; *peak* is in bytes."""

    seconds: float
    peak: int
    status: int
    said: str

    def __str__(self) -> str:
        said = f"; {self.said}" if self.said else ""
        return f"{self.seconds:.2f} s, {self.peak / MIB:.0f} MiB, status {self.status}{said}"

    def to_json(self) -> dict[str, Any]:
        """All of it."""
        return {"seconds": self.seconds, "peak": self.peak, "status": self.status, "said": self.said}


def run(*words: str, out: int | IO[bytes] = subprocess.DEVNULL, bytecode: Path | None = None) -> Taken:
    """Run fivefold with *words*; what it prints goes to *out*.

    Python keeps compiled modules in the folder *bytecode*, as an installation does beside them.
    """
    kept = {} if bytecode is None else {"PYTHONPYCACHEPREFIX": str(bytecode), "PYTHONDONTWRITEBYTECODE": ""}
    with tempfile.TemporaryFile() as errors:
        child = subprocess.Popen([*PYTHON, *words], stdout=out, stderr=errors, env=os.environ | kept)
        peak = 0
        while True:
            peak = max(peak, _resident(child.pid))
            pid, status, usage = os.wait4(child.pid, os.WNOHANG)
            if pid:
                break
            time.sleep(_EVERY)
        child.returncode = os.waitstatus_to_exitcode(status)
        errors.seek(0)
        said = errors.read().decode(errors="replace").strip().splitlines()
    return Taken(usage.ru_utime + usage.ru_stime, peak, child.returncode, said[-1] if said else "")


def _resident(pid: int) -> int:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    return 1024 * sum(map(int, _RESIDENT.findall(status)))


@dataclass(frozen=True)
class Input:
    """What is asked of a made memory, in commands and their words, with bounds in seconds and bytes."""

    name: str
    make: Callable[[Path], Made]
    questions: dict[str, tuple[str, ...]]
    bounds: dict[str, tuple[float | None, int]]


_PLAIN: Final = {
    "info": ("info",),
    "dump": ("dump",),
    "walk": ("walk", "0xffffffff81000000"),
    "audit": ("audit",),
    "stats": ("stats",),
}
_ALL: Final = {**_PLAIN, "roots": ("roots",), "find": ("find", "--bytes", "00112233445566778899")}
_BOUND: Final = dict.fromkeys(_ALL, (None, GIB))

INPUTS: Final = (
    Input("9 GiB kdump", size_images.nine_gib, _ALL, {**_BOUND, "dump": (1.0, 300 * MIB)}),
    Input("1 TiB kdump, 100,000 pages", size_images.one_tib, _ALL, _BOUND),
    Input("1 TiB sparse raw image", size_images.sparse, _ALL, _BOUND),
    Input("70,000 isolated runs", size_images.isolated, _ALL, _BOUND),
    Input("one damaged page", size_images.damaged, _ALL, _BOUND),
)


def words_of(made: Made, words: tuple[str, ...]) -> list[str]:
    """The command line: a search for roots is not told one."""
    options = list(made.options)
    if words[0] == "roots":
        options = options[options.index("--ram-map") :] if "--ram-map" in options else []
    return [words[0], str(made.path), *words[1:], *options]


def measured(given: Input, place: Path) -> tuple[dict[str, Row | int | str], list[Claim]]:
    """Make the input and ask it."""
    made = given.make(place / "memory")
    run("info", str(size_images.GUEST), bytecode=place / "bytecode")
    on_disk = made.path.stat().st_blocks * 512
    rows: dict[str, Row | int | str] = {f"{given.name}: on disk": f"{on_disk / MIB:.0f} MiB"}
    claims = []
    for name, words in given.questions.items():
        taken = run(*words_of(made, words), bytecode=place / "bytecode")
        print(f"{given.name}: {name}: {taken}", file=sys.stderr, flush=True)
        rows[f"{given.name}: {name}"] = taken
        seconds, size = given.bounds[name]
        claims.append(Claim(f"{given.name}, {name}", taken.peak / MIB, size / MIB, "MiB"))
        claims.append(Claim(f"{given.name}, {name}", taken.status, 1, "as status"))
        if seconds is not None:
            claims.append(Claim(f"{given.name}, {name}", taken.seconds, seconds, "s"))
    made.path.unlink()
    return rows, claims


def main() -> int:
    """Run the inputs once each."""
    parser = parser_of((__doc__ or "").split("\n")[0], rounds=1)
    parser.add_argument("--only", default="", metavar="WORDS", help="inputs whose name has these words: %(default)r")
    options = parser.parse_args()
    rows: dict[str, Row | int | str] = {}
    claims: list[Claim] = []
    with tempfile.TemporaryDirectory() as place:
        for given in (one for one in INPUTS if options.only in one.name):
            found, made = measured(given, Path(place))
            rows |= found
            claims += made
    return tell("fivefold.bench.sizes/1", rows, claims, options.json)


if __name__ == "__main__":
    sys.exit(main())

"""The walkers of drgn, volatility3 and MemProcFS through `fivefold vectors`: right or wrong, and the smallest case.

    python -m venv peers && peers/bin/pip install volatility3 drgn memprocfs
    python bench/peer_vectors.py --peers peers/bin/python --count 1000

A walker says where an address leads, or that it leads nowhere; it knows no rights. So the vectors that are asked are
those that the CPU translates, and those in which an entry is not present or malformed, or the address not canonical.
EFER.NXE is 1 in all of them, since no walker asks. Each peer runs in a process of its own, in the Python of
``--peers``; one that is not there is told with its reason. The exit status is 1 if the consumer of
``examples/walker_vectors.py`` or our own walk is wrong.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Final

from clock import VARIABLE
from fivefold.arch import AddressSpace, Cpu, Mapped, translate
from fivefold.conform.cases.case import MODES
from fivefold.conform.vectors import CPU, vectors
from fivefold.units import PhysAddr, VirtAddr
from measure import Claim, Row, tell
from peer_images import PAGE, ROOT_AT, core_head, vmcoreinfo_of

HERE: Final = Path(__file__).parent
SCRIPTS: Final = {
    "drgn": HERE / "vectors_drgn.py",
    "volatility3": HERE.parent / "integrations" / "volatility3" / "bench" / "vectors_volatility3.py",
    "memprocfs": HERE / "vectors_memprocfs.py",
}
RAM: Final = 256 << 20
"""Above every table of a vector; what pages lead to is not read."""
SECONDS: Final = 900
OUTCOMES: Final = (
    "right",
    "another address",
    "nothing, where the CPU finds a page",
    "an address, where the CPU faults",
    "refused",
)

Answer = int | str | None


@dataclass(frozen=True)
class Asked:
    """One vector: its tables, and where each address leads, None where it must lead nowhere."""

    id: str
    levels: int
    root: int
    words: dict[int, int]
    expected: dict[int, int | None]

    @property
    def request(self) -> dict[str, Any]:
        """What a peer is told of it."""
        words = [[at, value] for at, value in self.words.items()]
        return {"levels": self.levels, "root": self.root, "words": words, "addresses": list(self.expected)}


def chosen(count: int, seed: int, levels: int) -> list[Asked]:
    """*count* vectors that a walker can answer, evenly from the product's first ones and random ones."""
    modes = tuple(name for name, mode in MODES.items() if int(mode.top) == levels)
    found = list(_askable(vectors(4 * count, seed, modes), levels))
    return [found[len(found) * number // count] for number in range(min(count, len(found)))]


def _askable(source: Iterator[dict[str, Any]], levels: int) -> Iterator[Asked]:
    for vector in source:
        registers, expected = vector["registers"], _expected(vector)
        if expected and int(registers["efer"], 16) >> 11 & 1:
            words = {int(word["at"], 16): int(word["value"], 16) for word in vector["memory"]}
            yield Asked(vector["id"], levels, int(registers["cr3"], 16) & ~0xFFF, words, expected)


def _expected(vector: dict[str, Any]) -> dict[int, int | None]:
    """Each address that is asked, and where it leads."""
    outcome = vector["outcome"]
    if outcome["allowed"]:
        return {int(page["va"], 16): int(page["pa"], 16) for page in outcome["pages"]}
    code, cr2 = int(outcome["error_code"], 16), outcome["cr2"]
    if cr2 is None and vector["access"]["size"] == 1:
        return {int(vector["access"]["va"], 16): None}
    # P=0: not present. RSVD=1: malformed. All else is a question of rights.
    return {int(cr2, 16): None} if cr2 is not None and (not code & 1 or code & 8) else {}


@dataclass
class Score:
    """How often a walker did what, and the smallest case of each kind that is not right."""

    counts: Counter[str] = field(default_factory=Counter)
    smallest: dict[str, tuple[str, str]] = field(default_factory=dict)

    def add(self, asked: Asked, va: int, got: Answer) -> None:
        """Take in one answer."""
        want = asked.expected[va]
        kind = _kind(want, got)
        self.counts[kind] += 1
        if kind != "right" and (kind not in self.smallest or len(asked.id) < len(self.smallest[kind][0])):
            self.smallest[kind] = (asked.id, f"{va:#x}: {_text(want)} expected, {_text(got)} said")

    def row(self) -> str:
        """All of it on one line."""
        return "; ".join(f"{self.counts[kind]:,} {kind}" for kind in OUTCOMES if self.counts[kind])


def _kind(want: int | None, got: Answer) -> str:
    if isinstance(got, str):
        return "refused"
    if got == want:
        return "right"
    if want is None:
        return "an address, where the CPU faults"
    return "nothing, where the CPU finds a page" if got is None else "another address"


def _text(answer: Answer) -> str:
    return answer if isinstance(answer, str) else "no address" if answer is None else f"{answer:#x}"


class Words:
    """The memory of a vector."""

    def __init__(self, words: dict[int, int]) -> None:
        self.words = words

    def read(self, pa: PhysAddr, size: int, /) -> bytes:
        """The 8 bytes at *pa*."""
        return self.words.get(pa, 0).to_bytes(size, "little")


def ours(asked: Asked, cpu: Cpu = CPU) -> list[Answer]:
    """By the walk of `fivefold.arch`."""
    mode = next(mode for mode in MODES.values() if int(mode.top) == asked.levels)
    space = AddressSpace(Words(asked.words), PhysAddr(asked.root), mode, cpu)
    walks = (translate(space, VirtAddr(va)) for va in asked.expected)
    return [int(walk.pa) if isinstance(walk, Mapped) else None for walk in walks]


def prepared(place: Path, asked: list[Asked]) -> Path:
    """The files that peers read, and the request, in *place*."""
    raw, core = place / "vectors.raw", place / "vectors.core"
    raw.touch()
    os.truncate(raw, RAM)
    # Two segments: drgn takes one at physical 0 for a core without physical addresses.
    core.write_bytes(core_head([range(RAM // 2), range(RAM // 2, RAM)]))
    os.truncate(core, PAGE + RAM)
    told = {str(levels): vmcoreinfo_of(asked[0].root, levels) for levels in (4, 5)}
    request = {"raw": str(raw), "core": str(core), "core_head": PAGE, "root_at": ROOT_AT, "vmcoreinfo": told}
    path = place / "request.json"
    path.write_text(json.dumps(request | {"tables": [one.request for one in asked]}))
    return path


def ask(python: str, script: Path, request: Path) -> tuple[str, list[list[Answer]] | None]:
    """A peer's version and answers, or the reason why there are none."""
    environment = {**os.environ, "PYTHONPATH": str(HERE)}
    command = [python, str(script), str(request)]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=SECONDS, check=False, env=environment
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return f"no answer in {SECONDS} s", None
    if done.returncode or not done.stdout.strip():
        return (done.stderr.strip().splitlines() or [f"ended with status {done.returncode}"])[-1], None
    told = json.loads(done.stdout.strip().splitlines()[-1])
    return told["version"], told["answers"]


def score(asked: list[Asked], answers: list[list[Answer]]) -> Score:
    """Hold *answers* against what must be."""
    made = Score()
    for one, told in zip(asked, answers, strict=True):
        for va, got in zip(one.expected, told, strict=True):
            made.add(one, va, got)
    return made


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", default=sys.executable, help="the Python that has the peers installed")
    parser.add_argument("--count", type=int, default=1000, help="vectors of each depth (default %(default)s)")
    parser.add_argument(
        "--memprocfs", type=int, default=100, help="of these for MemProcFS, which starts for each (default %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="print one object instead of a table")
    options = parser.parse_args()
    if shutil.which(options.peers) is None:
        parser.error(f"--peers {options.peers}: expected a Python that can be run")
    os.environ[VARIABLE] = "none"
    if options.count < 1 or options.memprocfs < 1:
        parser.error("expected at least one vector")
    rows: dict[str, Row | int | str] = {}
    wrong = 0
    for levels in (4, 5):
        asked = chosen(options.count, options.seed, levels)
        mine = score(asked, [ours(one) for one in asked])
        wrong += mine.counts.total() - mine.counts["right"]
        rows[f"{levels} levels: fivefold.arch"] = mine.row()
        with tempfile.TemporaryDirectory() as folder:
            for name, script in SCRIPTS.items():
                part = list(islice(asked, options.memprocfs)) if name == "memprocfs" else asked
                version, answers = ask(options.peers, script, prepared(Path(folder), part))
                if answers is None:
                    rows[f"{levels} levels: {name}"] = f"not compared because {version}"
                    continue
                made = score(part, answers)
                rows[f"{levels} levels: {name} {version}"] = made.row()
                for kind, (case, text) in made.smallest.items():
                    rows[f"{levels} levels: {name}, {kind}"] = f"{case}  ({text})"
    return tell("fivefold.bench.peer-vectors/1", rows, [Claim("ours wrong", wrong, 0, "answers")], options.json)


if __name__ == "__main__":
    sys.exit(main())

"""The same questions to other readers of page tables, on the same memory: results compared before times.

    python -m venv peers && peers/bin/pip install volatility3 drgn memprocfs
    python bench/peers.py --peers peers/bin/python

Two captures of page tables, and a Linux that is booted in either mode where QEMU and its kernel are here (see
``tests/live``). What is right is not ours to say: what is mapped is held against what QEMU's ``info tlb`` printed of
the same guest, addresses against the plain walk in `fivefold.arch`, words against the file at that walk's answer.

A peer runs in a process of its own and times itself, by processor time and without opening. One that is not there, or
refuses the image, is told with its reason; the exit status is 1 if *we* are wrong.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, TypeVar

import numpy as np

from clock import VARIABLE
from fivefold.arch import Mapped
from fivefold.report.text.tlb import write_leaves
from fivefold.survey.scan.leaves import Leaves as LeafReader
from fivefold.survey.scan.scan import leaves_of
from fivefold.survey.scan.scan_result import Contiguity, Flags, RegionKind, ScanResult, Words, expand_leaves
from fivefold.survey.scan.translator import translator_of
from fivefold.survey.space import Space
from fivefold.units import MASK64, MIB, VirtAddr
from measure import Claim, Row, duration, tell
from peer_images import CAPTURES, Image, NoGuestError, captured, leaves_in, live
from peer_verdicts import Spans, Truth, answer_verdict, list_verdict, past_ram, unsigned, without

HERE: Final = Path(__file__).parent
ELSEWHERE: Final = {"volatility3": HERE.parent / "integrations" / "volatility3" / "bench"}
"""Peers whose licence asks for what runs them, too: their scripts are kept under it."""
MAPPED: Final = 16_000
OTHERS: Final = 4_000
SECONDS: Final = 300
MANY: Final = 1 << 22
"""Leaves that are not listed one by one."""
QUESTIONS: Final = {"ranges": "list", "phys": "translate", "words": "read"}
FIVE_LEVELS: Final = "NUMBER(pgtable_l5_enabled)="

PEERS: Final = ("volatility3", "memprocfs", "drgn")

T = TypeVar("T")
Rows = dict[str, Row | int | str]


@dataclass(frozen=True)
class Answers:
    """What a reader said, and the seconds of each round by question; *refused* if it said nothing at all."""

    ranges: Sequence[Sequence[int]] | None = None
    phys: list[int | None] | None = None
    words: list[int | None] | None = None
    seconds: dict[str, list[float]] = field(default_factory=dict)
    version: str = ""
    note: str = ""
    refused: str = ""


def ours(space: Space, asked: Asked, rounds: int) -> Answers:
    """By the compiled scan and the compiled translation, which answer in columns; those are what is timed."""
    addresses, readable = np.array(asked.addresses, np.uint64), np.array(asked.readable, np.uint64)
    translator, memory = translator_of(space), space.source.memory.banks()[0].data
    words = np.frombuffer(memory, "<u8", len(memory) // 8)

    def read() -> tuple[Words, Flags]:
        found = translator.batch(readable)
        inside = found.mapped & (found.phys >> np.uint64(3) < np.uint64(len(words)))
        return words[np.where(inside, found.phys >> np.uint64(3), np.uint64(0))], inside

    scans, scan_seconds = timed(lambda: space.scan(contiguity=Contiguity.IGNORE), rounds)
    found, batch_seconds = timed(lambda: translator.batch(addresses), rounds)
    values, read_seconds = timed(read, rounds)
    return Answers(
        ranges=ranges_of(scans),
        phys=or_none(found.phys, found.mapped),
        words=or_none(*values),
        seconds={"ranges": scan_seconds, "phys": batch_seconds, "words": read_seconds},
    )


def one_by_one(space: Space, asked: Asked) -> Answers:
    """Our plain walk, in Python, which keeps every step; its answers are what the others' are held against."""
    phys, seconds = timed(lambda: walked(space, asked.addresses), 1)
    return Answers(phys=phys, seconds={"phys": seconds}, note="the judge of addresses; every step kept")


def timed(run: Callable[[], T], rounds: int) -> tuple[T, list[float]]:
    """What *run* returns, and the processor time of each round, after one that does not count."""
    found, seconds = run(), []
    for _ in range(rounds):
        began = time.process_time()
        found = run()
        seconds.append(time.process_time() - began)
    return found, seconds


def walked(space: Space, addresses: list[int]) -> list[int | None]:
    """Where the plain walk leads."""
    walks = (space.translate(VirtAddr(va)) for va in addresses)
    return [int(walk.pa) if isinstance(walk, Mapped) else None for walk in walks]


def ranges_of(result: ScanResult) -> list[tuple[int, int]]:
    """What is mapped, ends exclusive, as the peers give it."""
    chosen = result.kind == RegionKind.MAPPED
    return list(zip(result.start[chosen].tolist(), (result.last[chosen] + np.uint64(1)).tolist(), strict=True))


def or_none(values: Words, there: Flags) -> list[int | None]:
    """Columns as a list."""
    return [value if hit else None for value, hit in zip(values.tolist(), there.tolist(), strict=True)]


@dataclass(frozen=True)
class Asked:
    """Addresses to translate, and those of them to read: mapped to RAM, or not mapped."""

    addresses: list[int]
    readable: list[int]


def sampled(space: Space) -> list[int]:
    """Addresses of words: most mapped, some just after what is mapped, some anywhere."""
    # A shared table once: else nearly all would be of the 65,536 aliases of one ESPfix page.
    result = space.scan(repeat_above=0)
    result = replace(result, rows=result.rows[result.kind == RegionKind.MAPPED])
    rng = np.random.default_rng(4)
    rows, after = rng.integers(0, len(result), MAPPED), rng.integers(0, len(result), OTHERS // 2)
    inside = rng.integers(0, 1 << 62, MAPPED, dtype=np.uint64) % result.size[rows]
    near = result.last[after] + rng.integers(1, 2 * MIB, OTHERS // 2, dtype=np.uint64)
    anywhere = rng.integers(0, 1 << 63, OTHERS // 2, dtype=np.uint64)
    chosen = np.concatenate([result.start[rows] + inside, near, anywhere]) & ~np.uint64(7)
    return [space.mode.value.sign_extend(va) & MASK64 for va in chosen.tolist()]


def judged(image: Image, space: Space) -> tuple[str, Spans]:
    """Who says what is mapped, and what it is: QEMU, or where its listing was not kept, code that is not the scan.

    `SystemExit` where we list other leaves; where there are too many to list, if we count another number of them.
    """
    reader = LeafReader(space.tables)
    if (count := reader.count()) > MANY:
        result = space.scan(contiguity=Contiguity.IGNORE)
        judge, same, ranges = "our counter of leaves", count == leaves_of(result), ranges_of(result)
    else:
        lines = io.StringIO()
        write_leaves(reader.tables(range(1 << 64)), lines)
        judge = "our lister of single leaves" if image.leaves is None else "QEMU's info tlb"
        mine = expand_leaves(space.scan(contiguity=Contiguity.BREAK))
        pairs = set(zip(mine["start"].tolist(), mine["phys"].tolist(), strict=True))
        same = pairs == (image.leaves or leaves_in(lines.getvalue()))
        ends = mine["start"] + (np.uint64(1) << np.uint64(3) + np.uint64(9) * mine["level"]) - np.uint64(1)
        ranges = [(start, end + 1) for start, end in zip(mine["start"].tolist(), ends.tolist(), strict=True)]
    if not same:
        raise SystemExit(f"{image.name}: we list other leaves than {judge}")
    return f"{judge} ({count:,} leaves)", unsigned(ranges, space.mode.value.va_bits)


def truth_of(image: Image, space: Space, addresses: list[int]) -> tuple[Truth, Asked]:
    """What is so, and what is to be asked; `SystemExit` where the judge does not list the leaves that we do."""
    (judge, mapped), va_bits = judged(image, space), space.mode.value.va_bits
    # A shared table once more: nobody shares tables of what is not RAM.
    pieces = space.scan(contiguity=Contiguity.BREAK, repeat_above=64)
    ram = without(
        mapped, past_ram(replace(pieces, rows=pieces.rows[pieces.kind == RegionKind.MAPPED]), image.ram, va_bits)
    )
    phys = walked(space, addresses)
    memory = np.memmap(image.raw, "<u8", "r")
    not_ram = {pa for pa in phys if pa is not None and not any(pa in part for part in image.ram)}
    readable, words = [], []
    for va, pa in zip(addresses, phys, strict=True):
        if image.full and pa not in not_ram:
            readable.append(va)
            words.append(None if pa is None else int(memory[pa >> 3]))
    return Truth(f"{judge}, the plain walk", ram, mapped, phys, words, not_ram), Asked(addresses, readable)


def ask(python: str, script: Path, request: Path, rounds: int) -> Answers:
    """A peer's answers, with the times of *rounds* processes, or why there are none, on one line."""
    made: list[Answers] = []
    for _ in range(rounds):
        made.append(asked_once(python, script, request))
        if made[-1].refused:
            return made[-1]
    kept = made[-1]
    return replace(kept, seconds={asked: [t for one in made for t in one.seconds[asked]] for asked in kept.seconds})


def asked_once(python: str, script: Path, request: Path) -> Answers:
    """What one process of a peer says."""
    try:
        done = subprocess.run(
            [python, str(script), str(request)],
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
            env={**os.environ, "PYTHONPATH": str(HERE)},
        )
    except subprocess.TimeoutExpired:
        return Answers(refused=f"no answer in {SECONDS} s")
    if done.returncode or not done.stdout.strip():
        return Answers(refused=(done.stderr.strip().splitlines() or ["ended without a word"])[-1])
    told = json.loads(done.stdout.strip().splitlines()[-1])
    return Answers(**told | {"seconds": {question: [taken] for question, taken in told["seconds"].items()}})


def answers_of(image: Image, space: Space, asked: Asked, python: str, place: Path, rounds: int) -> dict[str, Answers]:
    """Everyone's answers, ours first."""
    found = {"fivefold": ours(space, asked, rounds), "fivefold, one by one": one_by_one(space, asked)}
    request = image.request(place, asked.addresses, asked.readable)
    for name in PEERS:
        found[name] = ask(python, ELSEWHERE.get(name, HERE) / f"peer_{name}.py", request, rounds)
    if image.levels == 5:
        told = "".join(line for line in image.vmcoreinfo.splitlines(True) if not line.startswith(FIVE_LEVELS))
        request = replace(image, vmcoreinfo=told).request(place, asked.addresses, asked.readable)
        found["drgn, levels not told"] = ask(python, HERE / "peer_drgn.py", request, rounds)
    return found


def verdicts(found: Answers, truth: Truth, va_bits: int) -> dict[str, tuple[bool, str]]:
    """Right or wrong, for each question that was answered."""
    told: dict[str, tuple[bool, str]] = {}
    if found.ranges is not None:
        told["ranges"] = list_verdict(unsigned(found.ranges, va_bits), truth)
    if found.phys is not None:
        told["phys"] = answer_verdict(found.phys, truth.phys, truth.not_ram)
    if found.words and truth.words:
        told["words"] = answer_verdict(found.words, truth.words, set())
    return told


def compared(image: Image, python: str, place: Path, rounds: int) -> tuple[Rows, Rows, int]:
    """Verdicts, times, and how many of our own answers are wrong."""
    with image.open() as space:
        truth, asked = truth_of(image, space, sampled(space))
        found = answers_of(image, space, asked, python, place, rounds)
        va_bits = space.mode.value.va_bits
    told_of = {name: verdicts(answers, truth, va_bits) for name, answers in found.items()}
    right: Rows = {f"{image.name}: judges": truth.judges}
    times: Rows = {}
    for name, answers in found.items():
        reader, _, how = name.partition(", ")
        who = f"{image.name}: {reader} {answers.version}".rstrip() + (f", {how}" if how else "")
        if answers.refused:
            right[who] = f"not compared because {answers.refused}"
        else:
            told = [f"{QUESTIONS[q]} {text}" for q, (_, text) in told_of[name].items()]
            right[who] = "; ".join(told) + (f"  ({answers.note})" if answers.note else "")
            times[who] = "; ".join(time_of(q, answers, found["fivefold"], asked) for q in told_of[name])
    wrong = sum(not ok for name in ("fivefold", "fivefold, one by one") for ok, _ in told_of[name].values())
    return right, times, wrong


def time_of(question: str, theirs: Answers, mine: Answers, asked: Asked) -> str:
    """A time or a rate, and how many times ours it takes."""
    seconds, base = (statistics.median(who.seconds[question]) for who in (theirs, mine))
    counts = {"phys": len(asked.addresses), "words": len(asked.readable)}
    amount = f"{counts[question] / seconds / 1e6:.3g} M/s" if question in counts else duration(seconds)
    return f"{QUESTIONS[question]} {amount} ({seconds / base:.3g} x)"


def images(place: Path, alive: bool) -> Iterator[tuple[str, AbstractContextManager[Image]]]:
    """Names, and what makes the image while it is needed."""
    for name in CAPTURES:
        yield name, nullcontext(captured(name, place))
    if alive:
        for levels in (4, 5):
            yield f"live Linux, {levels} levels", live(levels, place)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", default=sys.executable, help="the Python that has the peers installed")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of each question (default %(default)s)")
    parser.add_argument("--captures-only", action="store_true", help="boot no Linux")
    parser.add_argument("--json", action="store_true", help="print one object instead of a table")
    options = parser.parse_args()
    if shutil.which(options.peers) is None:
        parser.error(f"--peers {options.peers}: expected a Python that can be run")
    os.environ[VARIABLE] = "processor"
    right: Rows = {}
    times: Rows = {}
    wrong = 0
    with tempfile.TemporaryDirectory() as folder:
        for name, context in images(Path(folder), not options.captures_only):
            print(f"{name} …", file=sys.stderr)
            try:
                with context as image:
                    made = compared(image, options.peers, Path(folder), options.rounds)
            except NoGuestError as reason:
                right[name] = f"not compared because {reason}"
                continue
            right |= made[0]
            times |= {f"{who}, time": row for who, row in made[1].items()}
            wrong += made[2]
    return tell("fivefold.bench.peers/1", right | times, [Claim("ours wrong", wrong, 0, "answers")], options.json)


if __name__ == "__main__":
    sys.exit(main())

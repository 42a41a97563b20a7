"""Translate ten million random addresses: the kernel's batch walk, native, against one walk after the other in C.

268 MB of tables that lie anywhere, five levels; with the memory in one extent and in 36. Both sides must give the
same answers. What counts is the processor's time.
"""

from __future__ import annotations

import ctypes
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np

from dump_images import BASE, Image, runs
from fivefold.survey.scan.translator import Translator
from fivefold.units import PhysAddr
from measure import Claim, Row, Sample, arguments, gcc_version, ratio, take_turns, tell

ADDRESSES: Final = 10_000_000
LEAF_TABLES: Final = 65_536
EXTENTS: Final = 36
NS: Final = 1e9 / ADDRESSES
ONE_AT_MOST: Final = 1000 / 40
"""Nanoseconds an address at 40 M a second."""
MANY_AT_MOST: Final = 1000 / 25


def banks_of(image: Image, count: int) -> list[tuple[int, Any]]:
    """The tables in *count* extents."""
    borders = np.linspace(0, len(image.tables), count + 1).astype(int).tolist()
    return [(BASE + 4096 * a, image.tables[a:b]) for a, b in pairwise(borders)]


def batch(translator: Translator, addresses: Any, answers: dict[str, Any], name: str) -> Callable[[], float]:
    """Our side; the sum of where the mapped addresses lead is kept."""

    room = translator.batch(addresses)

    def run() -> float:
        began = time.thread_time()
        found = translator.batch(addresses, room)
        seconds = time.thread_time() - began
        answers[name] = (int(found.mapped.sum()), int(found.phys[found.mapped].sum()))
        return seconds

    return run


def in_c(image: Image, addresses: Any, answers: dict[str, Any], place: Path) -> Callable[[], float]:
    """The other side, compiled now: one walk after the other, in one extent."""
    library, source = place / "translate.so", Path(__file__).with_name("translate.c")
    subprocess.run(["gcc", "-O2", "-shared", "-fPIC", "-Wall", "-Werror", "-o", library, source], check=True)
    native = ctypes.CDLL(str(library))
    native.translate.argtypes = [
        ctypes.c_void_p,
        *[ctypes.c_uint64] * 3,
        ctypes.c_void_p,
        ctypes.c_void_p,
        ctypes.c_uint64,
    ]
    out = np.zeros(ADDRESSES, np.uint64)

    def run() -> float:
        began = time.thread_time()
        native.translate(
            image.tables.ctypes.data,
            BASE,
            image.tables.nbytes,
            image.root,
            addresses.ctypes.data,
            out.ctypes.data,
            ADDRESSES,
        )
        seconds = time.thread_time() - began
        hit = out != np.uint64(2**64 - 1)
        answers["C"] = (int(hit.sum()), int(out[hit].sum()))
        return seconds

    return run


class Rate:
    """Seconds a round, told as addresses a second."""

    def __init__(self, sample: Sample) -> None:
        self.sample = sample

    def __str__(self) -> str:
        return f"{ADDRESSES / self.sample.median / 1e6:.3g} M/s, {self.sample.median * NS:.3g} ns each ({self.sample})"

    def to_json(self) -> dict[str, Any]:
        """As `Sample.to_json`, with the rate."""
        return {**self.sample.to_json(), "per_second": ADDRESSES / self.sample.median}


def main() -> int:
    asked = arguments(__doc__ or "", 5)
    image = runs(LEAF_TABLES, shuffled=True)
    addresses = np.random.default_rng(9).integers(0, LEAF_TABLES << 21, ADDRESSES, dtype=np.uint64)
    one, many = (Translator(banks_of(image, n), PhysAddr(image.root), 5) for n in (1, EXTENTS))
    answers: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as place:
        sides = {
            "batches of 64, one extent": batch(one, addresses, answers, "one"),
            f"batches of 64, {EXTENTS} extents": batch(many, addresses, answers, "many"),
            "one by one in C, one extent, no checks": in_c(image, addresses, answers, Path(place)),
        }
        samples = take_turns(sides, asked.rounds)
    if len(set(answers.values())) != 1:
        raise SystemExit(f"the sides disagree: {answers}")
    ours, ours_many, theirs = samples.values()
    claims = [
        Claim("one extent", ours.median * NS, ONE_AT_MOST, "ns an address"),
        Claim(f"{EXTENTS} extents", ours_many.median * NS, MANY_AT_MOST, "ns an address"),
    ]
    rows: dict[str, Row | int | str] = {name: Rate(sample) for name, sample in samples.items()}
    rows["one extent, times C"] = f"{ratio(ours, theirs):.2f}"
    rows["mapped"] = answers["one"][0]
    return tell("fivefold.bench.translate/1", rows, claims, asked.json, gcc=gcc_version())


if __name__ == "__main__":
    sys.exit(main())

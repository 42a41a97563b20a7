"""One address at a time, from Python: `Space.translate` and `walk` with its steps, against drgn's `follow_phys`.

A capture of a real guest with five levels, read in place; 20,000 mapped addresses, drawn by region. Both give the same
physical addresses. drgn is asked in the Python that has it (`--peers PYTHON`), in a process of its own for each round;
without one our side is timed alone. What counts is the processor's time.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np

from fivefold import walk
from fivefold.arch import translate
from fivefold.survey.scan.scan_result import RegionKind
from fivefold.survey.space import Space
from fivefold.units import VirtAddr
from measure import Claim, Row, Sample, parser_of, tell
from peer_images import captured
from peers import HERE, asked_once

GUEST: Final = "debian-la57-kaslr-pti"
ADDRESSES: Final = 20_000


def mapped(space: Space) -> list[int]:
    """Addresses inside what is mapped, each region as likely as any other."""
    found = space.scan()
    rows = np.flatnonzero(found.kind == RegionKind.MAPPED)
    rng = np.random.default_rng(7)
    chosen = rows[rng.integers(0, len(rows), ADDRESSES)]
    inside = (rng.random(ADDRESSES) * found.size[chosen]).astype(np.uint64)
    addresses: list[int] = (found.start[chosen] + inside).tolist()
    return addresses


class Each:
    """Seconds for all addresses, told for each."""

    def __init__(self, sample: Sample) -> None:
        self.sample = sample

    def __str__(self) -> str:
        each = self.sample.median / ADDRESSES
        return f"{1e-6 / each:.2f} M/s, {1e6 * each:.2f} µs each"

    def to_json(self) -> dict[str, Any]:
        """As `Sample.to_json`, with the rate."""
        return {**self.sample.to_json(), "per_second": ADDRESSES / self.sample.median}


def timed(one: Callable[[int], object], addresses: list[int]) -> float:
    """Seconds to ask *one* of all."""
    began = time.process_time()
    for va in addresses:
        one(va)
    return time.process_time() - began


def main() -> int:
    """Take turns, round by round."""
    parser = parser_of(__doc__ or "", 7)
    parser.add_argument("--peers", metavar="PYTHON", help="a Python that has drgn")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        image = captured(GUEST, Path(place))
        with image.open() as space:
            addresses = mapped(space)
            sides: dict[str, Callable[[int], object]] = {
                "translate": space.translate,
                "translate, and where it leads": lambda va: space.translate(va).pa,  # type: ignore[union-attr]
                "walk, with its steps": lambda va: tuple(walk(space, va)),
                "the plain walk": lambda va: translate(space.tables, VirtAddr(va)),
            }
            answers = [space.translate(va).pa for va in addresses]  # type: ignore[union-attr]
            request = image.request(Path(place), addresses, [])
            taken: dict[str, list[float]] = {name: [] for name in sides}
            drgn: list[float] = []
            for _ in range(asked.rounds):
                for name, one in sides.items():
                    taken[name].append(timed(one, addresses))
                if asked.peers:
                    peer = asked_once(asked.peers, HERE / "peer_drgn.py", request)
                    if peer.refused or peer.phys != answers:
                        raise SystemExit(f"drgn answers otherwise: {peer.refused or 'other addresses'}")
                    drgn.append(peer.seconds["phys"][0])
    rows: dict[str, Row | int | str] = {name: Each(Sample(tuple(seconds))) for name, seconds in taken.items()}
    claims = []
    if drgn:
        rows["drgn, follow_phys"] = Each(Sample(tuple(drgn)))
        theirs = statistics.median(drgn)
        claims = [
            Claim("translate", statistics.median(taken["translate"]) / theirs, 0.5, "x drgn"),
            Claim("walk, with its steps", statistics.median(taken["walk, with its steps"]) / theirs, 1.0, "x drgn"),
        ]
    return tell("fivefold.bench.one_by_one/1", rows, claims, asked.json)


if __name__ == "__main__":
    sys.exit(main())

"""The regions of a space as packed columns."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Final, NamedTuple

import numpy as np

from fivefold.report.page.packed import Packed, pack
from fivefold.report.text.dump import Findings
from fivefold.survey.scan.regions import Region
from fivefold.survey.space import Space

MAX_ROWS: Final = 400_000
"""Regions on a page; of more, the first and the last half of so many are there, and how many are not is said."""

SHARED_ABOVE: Final = 16
"""A table with so many ranges that is mapped again is a row with a count, not its ranges again."""

COLUMNS: Final = ("start", "pages", "phys", "flags", "info", "area", "repeats", "symbol")
PAGE: Final = 4096


class RegionColumns(NamedTuple):
    """*packed* has `COLUMNS`; *names* are what ``area`` and ``symbol`` count from 1; *cut* regions are missing at *at*.

    ``start`` and ``pages`` count pages of 4 KiB, ``phys`` too and from 1 on, 0 for what is not contiguous. ``info`` is
    the kind, the level from bit 4 on, and W, U and X of the effective rights from bit 8 on.
    """

    packed: Packed
    names: list[str]
    at: int
    cut: int
    wrong: str | None
    """What `fivefold dump` says of entries that are malformed and tables that are not in memory."""


class _Names:
    def __init__(self) -> None:
        self.known: dict[str, int] = {}

    def __call__(self, name: str | None) -> int:
        return 0 if name is None else self.known.setdefault(name, len(self.known) + 1)


def region_columns(space: Space, max_rows: int = MAX_ROWS) -> RegionColumns:
    """What `fivefold dump` lists, in its order. Raises what scans raise."""
    findings = Findings(space.regions(all_bits=False, repeat_above=SHARED_ABOVE))
    first, last, cut = _kept(findings, max_rows)
    names = _Names()
    symbols = space.symbols
    rows = [
        (*_numbers(region), names(region.area), region.repeats, names(symbols.at(region.start)))
        for region in (*first, *last)
    ]
    table = np.array(rows, np.uint64).reshape(-1, len(COLUMNS))
    packed = pack({name: table[:, index] for index, name in enumerate(COLUMNS)})
    wrong = findings.sentence() if findings.kept else None
    return RegionColumns(packed, list(names.known), len(first), cut, wrong)


def _kept(regions: Iterable[Region], most: int) -> tuple[list[Region], Iterable[Region], int]:
    """The first and the last of *regions*, *most* in all, and how many are between."""
    running: Iterator[Region] = iter(regions)
    first, last = list(islice(running, most // 2)), deque[Region](maxlen=most - most // 2)
    after = 0
    for region in running:
        last.append(region)
        after += 1
    return first, last, after - len(last)


def _numbers(region: Region) -> tuple[int, int, int, int, int]:
    rights = region.effective
    info = region.kind | region.level << 4 | rights.write << 8 | rights.user << 9 | rights.execute << 10
    phys = 0 if region.phys is None else region.phys // PAGE + 1
    return region.start // PAGE, region.size // PAGE, phys, region.flags, info

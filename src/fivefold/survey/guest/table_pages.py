"""Which pages of a memory could be page tables, and of which level: judged from below, without registers.

A page could be a PT if no present entry holds an address that is out of the question. It could
be a table higher up if nearly all that it holds leads to pages that could be the level below, or
is a large page where one may be. So a chain of good tables has to hang below a root; what
data looks like one by chance ends after a step or two.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from operator import attrgetter
from typing import Final

import numpy as np
import numpy.typing as npt

from fivefold.arch import FRAME_BITS, Flag, Level
from fivefold.memory import Bank, Extent
from fivefold.units import MASK64, PAGE, PhysAddr

Words = npt.NDArray[np.uint64]
Marks = npt.NDArray[np.bool_]
Indices = npt.NDArray[np.intp]

CHUNK: Final = 2048
"""Pages that are looked at together."""

TOLERATED: Final = 8
"""One entry in so many may lead nowhere: a dump may be torn, or lack pages."""

EMPTY_LEFT_OUT: Final = 128
"""More empty tables than this, eight to each that is used, hang below no root: Linux makes 64 ahead for vmalloc.

What looks so is a PT of the direct map over memory that was never written, among it a few page tables.
"""

_P: Final = np.uint64(int(Flag.P))
_PS: Final = np.uint64(int(Flag.BIT7))
_FRAME: Final = np.uint64(FRAME_BITS)


class TablePages:
    """The pages of some memory, numbered in ascending order, and what each of them could be.

    *phys_bits*: addresses this wide or wider are out of the question in a table. *written*: the parts, ascending,
    that may hold anything but zeros, where not all of *banks* may; the rest is not even read. *not_address*: bits of
    entries that are about encryption; they are taken as clear.
    """

    def __init__(
        self,
        banks: Sequence[Bank],
        phys_bits: int = 48,
        written: Sequence[Extent] | None = None,
        *,
        not_address: int = 0,
    ) -> None:
        self._kept = np.uint64(~not_address & MASK64)
        self._views, self._starts = _pages_of(banks)
        sizes = [len(view) for view in self._views]
        self._first = np.concatenate([[0], np.cumsum(sizes)]).astype(np.intp)
        self.count = int(self._first[-1])
        self._unlikely = np.uint64(FRAME_BITS & ~((1 << phys_bits) - 1))
        # Memory that is not written to costs nothing: a sparse file has more pages than there is room for.
        self._filled = np.zeros(self.count, np.bool_)
        self._clean = np.zeros(self.count, np.bool_)
        self._classify(written)
        self.of_level: dict[Level, Marks] = {}
        self._judge()

    def frames(self, numbers: Indices) -> Words:
        """The physical addresses of pages."""
        bank = np.searchsorted(self._first, numbers, side="right") - 1
        return self._starts[bank] + (numbers - self._first[bank]).astype(np.uint64) * np.uint64(PAGE)

    def numbers(self, frames: Words) -> Indices:
        """The pages at *frames*, -1 for those that are not in memory."""
        if not len(self._starts):
            return np.full(frames.shape, -1, np.intp)
        bank = np.searchsorted(self._starts, frames, side="right") - 1
        offset = (frames - self._starts[bank]) // np.uint64(PAGE)
        inside = (bank >= 0) & (offset < (self._first[bank + 1] - self._first[bank]).astype(np.uint64))
        return np.where(inside, self._first[bank] + offset.astype(np.intp), -1)

    def entries(self, numbers: Indices) -> Words:
        """The entries of pages: a row of 512 for each."""
        rows = np.empty((len(numbers), 512), np.uint64)
        bank = np.searchsorted(self._first, numbers, side="right") - 1
        for which in np.unique(bank).tolist():
            mine = bank == which
            rows[mine] = self._views[which][numbers[mine] - self._first[which]] & self._kept
        return rows

    def entries_at(self, frame: PhysAddr) -> Words | None:
        """The 512 entries of the page at *frame*, None where it is not in memory."""
        number = self.numbers(np.array([frame], np.uint64))
        return None if number[0] < 0 else self.entries(number)[0]

    def children(self, numbers: Indices, level: Level) -> Indices:
        """The pages that tables of *level* point to, each once, but for tables that point to themselves."""
        found: list[Indices] = []
        for at in range(0, len(numbers), CHUNK):
            part = numbers[at : at + CHUNK]
            entries = self.entries(part)
            pointing = (entries & _P != 0) & ((entries & _PS == 0) | (level > Level.PDPT))
            below = self.numbers(entries & _FRAME)
            found.append(np.unique(below[pointing & (below >= 0) & (below != part[:, None])]))
        return np.unique(np.concatenate(found)) if found else np.empty(0, np.intp)

    def _classify(self, written: Sequence[Extent] | None) -> None:
        """Find the pages that are not empty, and those whose present entries hold likely addresses."""
        for number, view in enumerate(self._views):
            for at, end in self._parts(number, written):
                for first in range(at, end, CHUNK):
                    entries = view[first : min(first + CHUNK, end)] & self._kept
                    here = slice(int(self._first[number]) + first, int(self._first[number]) + first + len(entries))
                    self._filled[here] = np.bitwise_or.reduce(entries, axis=1) != 0
                    present = np.bitwise_or.reduce(entries * (entries & _P), axis=1)
                    self._clean[here] = (present != 0) & (present & self._unlikely == 0)

    def _parts(self, number: int, written: Sequence[Extent] | None) -> Iterator[tuple[int, int]]:
        """The pages of a bank that may hold something: from and to, within the bank."""
        start, count = int(self._starts[number]), len(self._views[number])
        if written is None:
            yield 0, count
            return
        for index in range(bisect_right(written, start, key=attrgetter("end")), len(written)):
            first = max((written[index].start - start) // PAGE, 0)
            if first >= count:
                break
            yield first, min(-(-(written[index].end - start) // PAGE), count)

    def _judge(self) -> None:
        """Decide level by level, from the PT up."""
        self.of_level[Level.PT] = self._clean
        candidates = np.flatnonzero(self._clean)
        for level in (Level.PD, Level.PDPT, Level.PML4, Level.PML5):
            below = self.of_level[Level(level - 1)]
            marks = np.zeros(self.count, np.bool_)
            for at in range(0, len(candidates), CHUNK):
                part = candidates[at : at + CHUNK]
                marks[part] = self._could_be(self.entries(part), level, below)
            self.of_level[level] = marks

    def _could_be(self, entries: Words, level: Level, below: Marks) -> Marks:
        """Which rows of *entries* could be tables of *level*, if *below* could be of the next."""
        present = entries & _P != 0
        large = present & (entries & _PS != 0)
        fits = large & (entries & np.uint64((level.span - 1) & ~0x1FFF) & _FRAME == 0)
        if level > Level.PDPT:
            fits &= False
        child = self.numbers(entries & _FRAME)
        known = present & ~large & (child >= 0)
        table = known & below[child]
        empty = known & ~self._filled[child]
        good = (fits | table | empty).sum(axis=1)
        bad = ((entries != 0) & ~(fits | table | empty)).sum(axis=1)
        used, unused = (fits | table).sum(axis=1), empty.sum(axis=1)
        over_memory = (unused > EMPTY_LEFT_OUT) & (unused > 8 * used)
        fine: Marks = (used > 0) & ~over_memory & (bad * TOLERATED <= good + bad)
        return fine


def _pages_of(banks: Sequence[Bank]) -> tuple[list[Words], Words]:
    """Whole pages of each bank as rows of entries, and where each bank's first page lies."""
    views, starts = [], []
    for start, data in banks:
        skip = -start % PAGE
        pages = (len(data) - skip) // PAGE if len(data) > skip else 0
        if pages > 0:
            views.append(np.frombuffer(data, "<u8", pages * 512, skip).reshape(pages, 512))
            starts.append(start + skip)
    return views, np.array(starts, np.uint64)

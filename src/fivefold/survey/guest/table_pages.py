"""Which pages of a memory could be page tables, and of which level: judged from below, without registers.

A page could be a PT if no present entry holds an address that is out of the question. It could
be a table higher up if nearly all that it holds leads to pages that could be the level below, or
is a large page where one may be. So a chain of good tables has to hang below a root; what
data looks like one by chance ends after a step or two.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Final

import numpy as np
import numpy.typing as npt

from fivefold.arch import FRAME_BITS, Flag, Level
from fivefold.errors import MemoryReadError
from fivefold.memory import Extent, SourceMemory
from fivefold.memory.source import Progress
from fivefold.units import MASK64, PAGE, PhysAddr

Words = npt.NDArray[np.uint64]
Marks = npt.NDArray[np.bool_]

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
_SHIFT: Final = np.uint64(12)
_NONE: Final = np.zeros(0, np.uint64)


class TablePages:
    """The pages of some memory that are not empty, by their addresses, and what each of them could be.

    Memory is read once, some pages at a time; what is kept are a bit for each page that may be written, and the
    addresses of those that could be tables. *phys_bits*: addresses this wide or wider are out of the question in a
    table. *not_address*: bits of entries that are about encryption; they are taken as clear. *progress* is told bytes.
    """

    def __init__(
        self, memory: SourceMemory, phys_bits: int = 48, *, not_address: int = 0, progress: Progress | None = None
    ) -> None:
        self._memory = memory
        self._kept = np.uint64(~not_address & MASK64)
        self._unlikely = np.uint64(FRAME_BITS & ~((1 << phys_bits) - 1))
        written = memory.written()
        self._extents = _columns_of(_whole_pages(memory.extents))
        self._written = _columns_of(_joined(_touched_pages(written)))
        self._first = np.concatenate([[0], np.cumsum(self._written[1] - self._written[0])]).astype(np.uint64)
        self._filled = np.zeros(int(self._first[-1]) // 8 + 1, np.uint8)
        self.of_level: dict[Level, Words] = {Level.PT: self._classify(progress)}
        self._judge()

    @property
    def count(self) -> int:
        """How many pages are not empty."""
        return int(np.unpackbits(self._filled).sum(dtype=np.int64))

    def has(self, frames: Words) -> Marks:
        """Which of *frames* are whole pages of memory."""
        starts, ends = self._extents
        if not len(starts):
            return np.zeros(frames.shape, np.bool_)
        pages = frames >> _SHIFT
        run = np.searchsorted(starts, pages, side="right").astype(np.intp) - 1
        inside: Marks = (run >= 0) & (pages < ends[run])
        return inside

    def is_filled(self, frames: Words) -> Marks:
        """Which of *frames*, pages of memory, are not empty."""
        inside, bits = self._bits(frames)
        found: Marks = inside & (self._filled[bits >> np.uint64(3)] & _bit(bits) != 0)
        return found

    def _bits(self, frames: Words) -> tuple[Marks, Words]:
        """Which of *frames* may be written, and the numbers of their bits."""
        starts, ends = self._written
        if not len(starts):
            return np.zeros(frames.shape, np.bool_), np.zeros(frames.shape, np.uint64)
        pages = frames >> _SHIFT
        run = np.searchsorted(starts, pages, side="right").astype(np.intp) - 1
        inside = (run >= 0) & (pages < ends[run])
        return inside, np.where(inside, self._first[run] + pages - starts[run], np.uint64(0))

    def entries(self, frames: Words) -> Words:
        """The entries of pages: a row of 512 for each; zeros where one can no longer be read."""
        rows = np.zeros((len(frames), 512), np.uint64)
        for number, frame in enumerate(frames.tolist()):
            with suppress(MemoryReadError):
                rows[number] = np.frombuffer(self._memory.read(PhysAddr(frame), PAGE), "<u8")
        return rows & self._kept

    def entries_at(self, frame: PhysAddr) -> Words | None:
        """The 512 entries of the page at *frame*, None where it is not in memory."""
        asked = np.array([frame], np.uint64)
        return self.entries(asked)[0] if self.has(asked)[0] else None

    def children(self, frames: Words, level: Level) -> Words:
        """The pages that tables of *level* point to, each once, but for tables that point to themselves."""
        found: list[Words] = [_NONE]
        for at in range(0, len(frames), CHUNK):
            part = frames[at : at + CHUNK]
            entries = self.entries(part)
            pointing = (entries & _P != 0) & ((entries & _PS == 0) | (level > Level.PDPT))
            below = entries & _FRAME
            found.append(np.unique(below[pointing & (below != part[:, None])]))
        every = np.unique(np.concatenate(found))
        return every[self.has(every)]

    def _classify(self, progress: Progress | None) -> Words:
        """Note the pages that are not empty; return those whose present entries hold likely addresses."""
        clean: list[Words] = [_NONE]
        done, total = 0, int(self._first[-1]) * PAGE
        for addresses, rows in self._memory.page_batches():
            entries = rows & self._kept
            self._note(addresses[np.bitwise_or.reduce(entries, axis=1) != 0])
            present = np.bitwise_or.reduce(entries * (entries & _P), axis=1)
            clean.append(addresses[(present != 0) & (present & self._unlikely == 0)])
            done += PAGE * len(addresses)
            if progress is not None:
                progress(min(done, total), total)
        return np.concatenate(clean)

    def _note(self, frames: Words) -> None:
        inside, bits = self._bits(frames)  # a live guest may have written to more of them meanwhile
        bits = bits[inside]
        np.bitwise_or.at(self._filled, bits >> np.uint64(3), _bit(bits))

    def _judge(self) -> None:
        """Decide level by level, from the PT up: a page that could not be a table of one could be of none above it."""
        candidates = self.of_level[Level.PT]
        for level in (Level.PD, Level.PDPT, Level.PML4, Level.PML5):
            below = self.of_level[Level(level - 1)]
            marks = [np.zeros(0, np.bool_)]
            for at in range(0, len(candidates), CHUNK):
                marks.append(self._could_be(self.entries(candidates[at : at + CHUNK]), level, below))
            candidates = candidates[np.concatenate(marks)]
            self.of_level[level] = candidates

    def _could_be(self, entries: Words, level: Level, below: Words) -> Marks:
        """Which rows of *entries* could be tables of *level*, if *below* could be of the next."""
        present = entries & _P != 0
        large = present & (entries & _PS != 0)
        fits = large & (entries & np.uint64((level.span - 1) & ~0x1FFF) & _FRAME == 0)
        if level > Level.PDPT:
            fits &= False
        table, empty = np.zeros_like(present), np.zeros_like(present)
        link = present & ~large
        child = entries[link] & _FRAME
        table[link] = is_among(child, below)
        empty[link] = ~table[link] & self.has(child) & ~self.is_filled(child)
        good = (fits | table | empty).sum(axis=1)
        bad = ((entries != 0) & ~(fits | table | empty)).sum(axis=1)
        used, unused = (fits | table).sum(axis=1), empty.sum(axis=1)
        over_memory = (unused > EMPTY_LEFT_OUT) & (unused > 8 * used)
        fine: Marks = (used > 0) & ~over_memory & (bad * TOLERATED <= good + bad)
        return fine


def _bit(numbers: Words) -> npt.NDArray[np.uint8]:
    """The bit of each in its byte."""
    bit: npt.NDArray[np.uint8] = np.uint8(1) << (numbers & np.uint64(7)).astype(np.uint8)
    return bit


def is_among(frames: Words, ascending: Words) -> Marks:
    """Which of *frames* are in *ascending*."""
    if not len(ascending):
        return np.zeros(frames.shape, np.bool_)
    at = np.minimum(np.searchsorted(ascending, frames), len(ascending) - 1)
    found: Marks = ascending[at] == frames
    return found


def _whole_pages(extents: Iterable[Extent]) -> Iterator[tuple[int, int]]:
    """The numbers of the pages that lie in *extents*, ends exclusive."""
    for start, end in extents:
        if -(-start // PAGE) < end // PAGE:
            yield -(-start // PAGE), end // PAGE


def _touched_pages(extents: Iterable[Extent]) -> Iterator[tuple[int, int]]:
    return ((start // PAGE, -(-end // PAGE)) for start, end in extents)


def _joined(runs: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Ascending *runs*, those that touch or overlap as one."""
    last: tuple[int, int] | None = None
    for start, end in runs:
        if last is not None and start <= last[1]:
            last = (last[0], max(last[1], end))
            continue
        if last is not None:
            yield last
        last = (start, end)
    if last is not None:
        yield last


def _columns_of(runs: Iterable[tuple[int, int]]) -> tuple[Words, Words]:
    pairs = np.fromiter((number for run in runs for number in run), np.uint64).reshape(-1, 2)
    return pairs[:, 0].copy(), pairs[:, 1].copy()

"""Every leaf of an address space, one by one and in order, with the tables that they come from."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fivefold.arch import FRAME_BITS, TABLE_SIZE, AddressSpace, Flag, Level
from fivefold.errors import MemoryReadError
from fivefold.units import PhysAddr

Words = npt.NDArray[np.uint64]
_P = np.uint64(int(Flag.P))
_PS = np.uint64(int(Flag.BIT7))


class LeafTable(NamedTuple):
    """Leaves in one table, which begins at address *va*: *indices* and raw *entries*, equally long."""

    va: int
    level: Level
    table: PhysAddr
    indices: Words
    entries: Words


class Leaves:
    """The leaves under one root; `missing` fills up with tables that are not in memory."""

    def __init__(self, space: AddressSpace) -> None:
        self.space = space
        self._missing: dict[PhysAddr, None] = {}
        self._tables: dict[int, Words | None] = {}
        self._counts: dict[tuple[int, Level], int] = {}

    @property
    def missing(self) -> list[PhysAddr]:
        """The tables that were asked for so far and are not in memory, each once."""
        return list(self._missing)

    def count(self) -> int:
        """How many leaves there are, shared tables counted at every place."""
        return self._count(self.space.root, self.space.mode.top)

    def count_in(self, window: range, enough: int) -> int:
        """How many leaves touch *window*; the count may stop once it is past *enough*."""
        total = 0
        for table in self.tables(window):
            total += len(table.indices)
            if total > enough:
                break
        return total

    def _count(self, table: int, level: Level) -> int:
        key = (table, level)
        if key not in self._counts:
            words = self._read(table)
            leaf, below = _split(words, level)
            total = len(leaf)
            if words is not None and len(below):
                frames, times = np.unique(words[below] & np.uint64(FRAME_BITS), return_counts=True)
                for frame, n in zip(frames.tolist(), times.tolist(), strict=True):
                    total += n * self._count(frame, Level(level - 1))
            self._counts[key] = total
        return self._counts[key]

    def tables(self, window: range) -> Iterator[LeafTable]:
        """The leaves that touch *window*, ascending: table by table, large leaves between them."""
        yield from self._below(self.space.root, self.space.mode.top, 0, window)

    def _below(self, table: int, level: Level, va: int, window: range) -> Iterator[LeafTable]:
        words = self._read(table)
        leaf, below = _split(words, level)
        if words is None:
            return
        if not len(below):
            inside = _inside(window, va, level)
            leaf = leaf[(leaf >= inside.start) & (leaf < inside.stop)]
            if len(leaf):
                yield LeafTable(va, level, PhysAddr(table), leaf.astype(np.uint64), words[leaf])
            return
        leaves = set(leaf.tolist())
        for index in sorted([*leaves, *below.tolist()]):
            at = self._address(va, level, index)
            if at >= window.stop or at + level.span <= window.start:
                continue
            if index in leaves:
                one = slice(index, index + 1)
                yield LeafTable(va, level, PhysAddr(table), np.array([index], np.uint64), words[one])
            else:
                yield from self._below(int(words[index]) & FRAME_BITS, Level(level - 1), at, window)

    def _address(self, va: int, level: Level, index: int) -> int:
        at = va + index * level.span
        return int(self.space.mode.sign_extend(at)) if level == self.space.mode.top else at

    def _read(self, table: int) -> Words | None:
        if table not in self._tables:
            if len(self._tables) == 1 << 12:
                self._tables.clear()
            try:
                raw = self.space.memory.read(PhysAddr(table), TABLE_SIZE)
                self._tables[table] = np.frombuffer(raw, "<u8")
            except MemoryReadError:
                self._missing[PhysAddr(table)] = None
                self._tables[table] = None
        return self._tables[table]


def _inside(window: range, va: int, level: Level) -> range:
    """Which entries of a table that begins at *va* touch *window*."""
    first = max(window.start - va, 0) >> level.shift
    return range(first, max(-(-(window.stop - va) >> level.shift), 0))


def _split(words: Words | None, level: Level) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Indices of the present entries that are leaves, and of those that point to a table."""
    if words is None:
        nothing = np.empty(0, np.intp)
        return nothing, nothing
    present = words & _P != 0
    if level == Level.PT:
        return np.flatnonzero(present), np.empty(0, np.intp)
    large = present & (words & _PS != 0)
    if level > Level.PDPT:
        # Malformed: neither a leaf nor a table.
        return np.empty(0, np.intp), np.flatnonzero(present & ~large)
    return np.flatnonzero(large), np.flatnonzero(present & ~large)

"""Sets of physical memory as sorted runs, for questions about what is mapped twice.

A set is a pair of columns, starts and exclusive ends, ascending, never touching. All work is
on whole columns: a guest of 16 M scattered pages is one call.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np

from fivefold.survey.scan.info_word import kind_of, level_of, rights_of
from fivefold.survey.scan.scan_result import Flags, RegionKind, Rows, ScanResult, Words, column

_NOTHING: Final = np.zeros(0, np.uint64)


class FrameSet(NamedTuple):
    """Physical memory: ``start[i]`` to ``end[i]``, the end exclusive."""

    start: Words
    end: Words

    @property
    def size(self) -> int:
        """Bytes."""
        return int((self.end - self.start).sum())

    def __and__(self, other: FrameSet) -> FrameSet:
        """What is in both."""
        low = np.searchsorted(self.end, other.start, "right")
        counts = np.maximum(np.searchsorted(self.start, other.end, "left") - low, 0)
        which = np.repeat(np.arange(len(counts)), counts)
        nth = np.arange(len(which)) - np.repeat(np.cumsum(counts) - counts, counts)
        mine = low[which] + nth
        return FrameSet(np.maximum(self.start[mine], other.start[which]), np.minimum(self.end[mine], other.end[which]))

    def __or__(self, other: FrameSet) -> FrameSet:
        """What is in either."""
        return joined(np.concatenate([self.start, other.start]), np.concatenate([self.end, other.end]))

    def holds(self, points: Words) -> Flags:
        """For each of *points*, physical addresses, whether it is in the set."""
        nearest = np.searchsorted(self.start, points, "right") - 1
        if not len(self.start):
            return np.zeros(len(points), np.bool_)
        inside: Flags = (nearest >= 0) & (points < self.end[np.maximum(nearest, 0)])
        return inside

    def ranges(self, limit: int) -> list[range]:
        """The first *limit* runs."""
        return [range(a, b) for a, b in zip(self.start[:limit].tolist(), self.end[:limit].tolist(), strict=True)]


EMPTY: Final = FrameSet(_NOTHING, _NOTHING)


def joined(start: Words, end: Words) -> FrameSet:
    """The set of runs that may overlap and come in any order.

    >>> runs = joined(np.array([8, 0, 4], np.uint64), np.array([12, 4, 6], np.uint64))
    >>> runs.ranges(9)
    [range(0, 6), range(8, 12)]
    """
    if not len(start):
        return EMPTY
    order = np.argsort(start, kind="stable")
    start, end = start[order], end[order]
    reach = np.maximum.accumulate(end)
    first = np.flatnonzero(np.concatenate([[True], start[1:] > reach[:-1]]))
    last = np.concatenate([first[1:] - 1, [len(start) - 1]])
    return FrameSet(start[first], reach[last])


class LeafRuns(NamedTuple):
    """Runs of leaves that are contiguous in virtual and in physical memory, as equal columns.

    *pat* is the number of the PAT entry that they select; sizes are in bytes.
    """

    start: Words
    size: Words
    phys: Words
    level: Words
    writable: Flags
    user: Flags
    executable: Flags
    pat: Words

    @classmethod
    def of(cls, result: ScanResult) -> LeafRuns:
        """The mapped rows of a scan with `Contiguity.BREAK`; `ValueError` after another."""
        if not bool(result.contiguous[result.kind == RegionKind.MAPPED].all()):
            raise ValueError("runs of leaves are known only after a scan with Contiguity.BREAK")
        return cls.of_rows(result.rows)

    @classmethod
    def of_rows(cls, rows: Rows) -> LeafRuns:
        """The same from rows alone, which the caller knows to be contiguous."""
        rows = rows[kind_of(column(rows, "info")) == RegionKind.MAPPED]
        info, start = column(rows, "info"), column(rows, "start")
        level = level_of(info)
        rights = [rights_of(info) >> np.uint64(bit) & np.uint64(1) != 0 for bit in range(3)]
        return cls(
            start,
            column(rows, "last") - start + np.uint64(1),
            column(rows, "phys"),
            level,
            rights[0],
            rights[1],
            rights[2],
            _pat_index(column(rows, "flags"), level),
        )

    def where(self, chosen: Flags) -> LeafRuns:
        """Only the rows in *chosen*."""
        return LeafRuns(
            self.start[chosen],
            self.size[chosen],
            self.phys[chosen],
            self.level[chosen],
            self.writable[chosen],
            self.user[chosen],
            self.executable[chosen],
            self.pat[chosen],
        )

    def and_also(self, others: list[LeafRuns]) -> LeafRuns:
        """These and *others*, one after the other."""
        every = [self, *others]
        return LeafRuns(*(np.concatenate([getattr(one, name) for one in every]) for name in LeafRuns._fields))

    @property
    def frames(self) -> FrameSet:
        """The physical memory that they map."""
        return joined(self.phys, self.phys + self.size)

    def at(self, pa: int, limit: int = 8) -> list[int]:
        """The first *limit* virtual addresses that lead to physical *pa*, ascending."""
        point = np.uint64(pa)
        inside = (self.phys <= point) & (point - self.phys < self.size)
        return sorted((self.start[inside] + (point - self.phys[inside])).tolist())[:limit]

    def times_mapped(self, pages: Words) -> Words:
        """How often each of *pages*, ascending physical addresses, is mapped."""
        steps = np.zeros(len(pages) + 1, np.int64)
        np.add.at(steps, np.searchsorted(pages, self.phys, "left"), 1)
        np.add.at(steps, np.searchsorted(pages, self.phys + self.size, "left"), -1)
        return np.cumsum(steps[:-1]).astype(np.uint64)


def _pat_index(flags: Words, level: Words) -> Words:
    """PAT, PCD and PWT as a number: PAT is bit 7 of a PT entry and bit 12 of a large leaf."""
    bit = np.where(level == np.uint64(1), np.uint64(7), np.uint64(12))
    index: Words = (flags >> bit & np.uint64(1)) << np.uint64(2) | flags >> np.uint64(3) & np.uint64(3)
    return index

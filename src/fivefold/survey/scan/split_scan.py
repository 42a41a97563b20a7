"""A scan in parts, one for each core: where to split an address space, and how the parts are put together again.

Parts see what one scan sees unless a table is reached from two of them: then one scan would have copied its ranges, and
counted it once. Such spaces, and few more that cannot be joined for certain, are left to one scan.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import fields, replace
from itertools import pairwise
from typing import Any, Final

import numpy as np

from fivefold.arch import ENTRIES, FRAME_BITS, LA48, LA57, TABLE_SIZE, Level
from fivefold.survey.scan.info_word import kind_of
from fivefold.survey.scan.scan_result import Contiguity, RegionKind, Rows, ScanCounts, ScanSettings, Words

LEAST_TABLES: Final = 4096
"""PTs; with fewer of them two cores gain nothing."""
MOST_PARTS: Final = 4
_MOST_TABLES: Final = 1 << 14
"""Tables above the PTs that are looked at to find where to split."""
_P, _PS = np.uint64(1), np.uint64(1 << 7)
_SUMS: Final = ("mapped_bytes", "wx_bytes", "replays", "malformed_entries", "unreadable_tables")
_TABLES: Final = ("tables_met", "tables_walked")


def cores() -> int:
    """On how many cores this process may run, as far as they are of use."""
    return min(len(os.sched_getaffinity(0)), MOST_PARTS)


class Splitter:
    """Where the tables of spaces lie, in banks that are read in place."""

    def __init__(self, banks: Sequence[tuple[int, Any]]) -> None:
        self._banks = sorted(((start, memoryview(data).cast("B")) for start, data in banks), key=lambda bank: bank[0])
        self._starts = [start for start, _ in self._banks]

    def table(self, frame: int) -> Words | None:
        """The entries of the table at *frame*."""
        index = bisect_right(self._starts, frame) - 1
        if index < 0:
            return None
        start, data = self._banks[index]
        if frame + TABLE_SIZE > start + len(data):
            return None
        words: Words = np.frombuffer(data, "<u8", ENTRIES, frame - start)
        return words

    def windows(self, root: int, levels: int, settings: ScanSettings, parts: int) -> list[ScanSettings]:
        """*settings* for each of *parts* with about as many PTs, ascending; only one where that is not worth while."""
        tables = [(0, root & FRAME_BITS)]
        for level in range(levels, Level.PD, -1):
            tables = self._below(tables, Level(level))
            if len(tables) > _MOST_TABLES:
                return [settings]
        if len(tables) * ENTRIES < LEAST_TABLES:
            return [settings]
        mode = LA57 if levels == 5 else LA48
        places = [int(mode.sign_extend(va)) for va, _ in tables]
        inside = [n for n, va in enumerate(places) if settings.first < va <= settings.last]
        weights = np.array([self._links(frame) for _, frame in tables])
        if not inside or weights.sum() < LEAST_TABLES:
            return [settings]
        before = np.cumsum(weights) - weights
        wanted = [weights.sum() * part // parts for part in range(1, parts)]
        splits = sorted({places[min(inside, key=lambda n: abs(int(before[n]) - int(goal)))] for goal in wanted})
        edges = [settings.first, *splits, settings.last + 1]
        return [replace(settings, first=low, last=high - 1) for low, high in pairwise(edges)]

    def _below(self, tables: list[tuple[int, int]], level: Level) -> list[tuple[int, int]]:
        """The tables that *tables* of *level* link, with the first address of each; not sign-extended."""
        found = []
        for va, frame in tables:
            words = self.table(frame)
            if words is None:
                continue
            linked = np.flatnonzero(words & (_P | _PS) == _P)
            below = (words[linked] & np.uint64(FRAME_BITS)).tolist()
            found += [(va + index * level.span, at) for index, at in zip(linked.tolist(), below, strict=True)]
            if len(found) > _MOST_TABLES:
                return found
        return found

    def _links(self, frame: int) -> int:
        """How many tables the one at *frame* links, each as often as it does."""
        words = self.table(frame)
        return 0 if words is None else int(np.count_nonzero(words & (_P | _PS) == _P))

    def on_both_ways(self, root: int, levels: int, split: int) -> int:
        """How many tables above the PTs have addresses on both sides of *split*, as far as there are tables."""
        table, found, bits = root & FRAME_BITS, 1, 12 + 9 * levels
        low, high = (split - 1) & ((1 << bits) - 1), split & ((1 << bits) - 1)
        for number in range(levels, Level.PD, -1):
            level = Level(number)
            words = self.table(table)
            entry = 0 if words is None else int(words[level.index(high)])
            if low // level.span != high // level.span or entry & 0x81 != 1:
                break
            table = entry & FRAME_BITS
            found += 1
        return found


def join_rows(room: Rows, parts: Sequence[Rows], contiguity: Contiguity) -> int | None:
    """Write the ranges of neighbouring *parts* to *room* as one scan has them; the first of them is there already.

    Return how many they are, or None where the rows alone do not say.
    """
    count = len(parts[0])
    for part in parts[1:]:
        if count and len(part):
            low, high = room[count - 1], part[0]
            one = (int(high["start"]), high["info"], high["flags"]) == (int(low["last"]) + 1, low["info"], low["flags"])
            if one and int(low["jump"]):
                return None  # where it leads at its end is not in the row
            if one and _merge(low, high, contiguity):
                if contiguity == Contiguity.NOTE and kind_of(int(high["info"])) == RegionKind.MAPPED:
                    follows = int(high["phys"]) == _next_phys(low)
                    low["jump"] = high["jump"] or (0 if follows else high["start"])
                low["last"] = high["last"]
                part = part[1:]
        room[count : count + len(part)] = part
        count += len(part)
    return count


def _next_phys(row: Any) -> int:
    return int(row["phys"]) + int(row["last"]) - int(row["start"]) + 1


def _merge(low: Any, high: Any, contiguity: Contiguity) -> bool:
    """Whether *high* goes on with *low*, which agree in all but where they lead."""
    kind = kind_of(int(low["info"]))
    if kind == RegionKind.MAPPED:
        return contiguity != Contiguity.BREAK or int(high["phys"]) == _next_phys(low)
    return kind != RegionKind.UNREADABLE or int(high["phys"]) == int(low["phys"])


def joined_counts(parts: Sequence[ScanCounts], twice: int) -> ScanCounts | None:
    """The counts of all parts, of which *twice* tables were walked by two; None where tables lie on their own ways."""
    if any(getattr(one, field.name) for one in parts for field in fields(one) if field.name not in _SUMS + _TABLES):
        return None
    sums = {name: sum(getattr(one, name) for one in parts) for name in _SUMS + _TABLES}
    rest = {field.name: 0 for field in fields(parts[0]) if field.name not in sums}
    return ScanCounts(**{**rest, **sums, **{name: sums[name] - twice for name in _TABLES}})


def shared(indices: Sequence[Words], expected: int) -> bool:
    """Whether parts walked more tables together than the *expected* ones, by their index words of each frame."""
    met = np.zeros(len(indices[0]), np.uint8)
    for index in indices:
        met += index != 0
    return int((met.astype(np.int64) - 1).clip(0).sum()) != expected

"""Where two address spaces can differ: both trees walked in step, equal parts left out.

Two tables are compared once for each pair of rights they are met under; what is equal below a
shared table costs nothing more. What this finds may be too much, never too little.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np

from fivefold.arch import ENTRIES, Entry, Flag, Level, Rights
from fivefold.survey.scan.tables import PS, Marks, P, Tables, Words
from fivefold.survey.space import Space
from fivefold.units import GIB

MAX_PAIRS: Final = 1 << 20
"""Pairs of tables that are compared; what lies below further ones counts as different."""

MAX_LINKS: Final = 1 << 18
"""Links of tables to tables that are followed on both sides; what lies below further ones counts as different."""

MAX_PIECES: Final = 1 << 12
"""Pieces that the differences below one entry are reported in; with more, all below it counts as different."""

JOIN_BELOW: Final = GIB
"""Pieces closer to each other than this are one: what is equal in between is found equal again."""

_NX = np.uint64(Flag.NX)


class Pair(NamedTuple):
    """A table of each side with the rights that lead there; *level* is the same for both."""

    ours: int
    theirs: int
    level: Level
    our_rights: Rights
    their_rights: Rights


@dataclass(frozen=True)
class Pieces:
    """Parts of what one table spans, as offsets from its start: ascending, ends exclusive."""

    runs: tuple[tuple[int, int], ...]

    def moved(self, by: int) -> list[tuple[int, int]]:
        """The same, further up."""
        return [(start + by, end + by) for start, end in self.runs]


NOTHING: Final = Pieces(())


class Walker:
    """Two trees, walked in step. *mask*: bits of leaves that count, frame bits if physical addresses do."""

    def __init__(self, ours: Space, theirs: Space, mask: int) -> None:
        self.ours, self.theirs = ours, theirs
        self.mask = np.uint64(mask | Flag.P | Flag.RW | Flag.US | Flag.NX)
        self.known: dict[Pair, Pieces] = {}
        self.links = 0
        self.tables = tuple(Tables(side.source.memory, side.cpu, nxe=side.tables.nxe) for side in (ours, theirs))

    def windows(self) -> list[range]:
        """The addresses at which something may differ, ascending, ends exclusive; `ValueError` unless levels agree."""
        if self.ours.levels != self.theirs.levels:
            raise ValueError(f"{self.ours.levels} and {self.theirs.levels} levels cannot be walked in step")
        mode = self.ours.mode.value
        half = 1 << (mode.va_bits - 1)
        pieces = self.below(Pair(self.ours.root.value, self.theirs.root.value, mode.top, Rights(), Rights()))
        # The sign bit parts the halves, so a piece that crosses it is two.
        parts = [part for start, end in pieces.runs for part in ((start, min(end, half)), (max(start, half), end))]
        return [range(mode.sign_extend(low), mode.sign_extend(high - 1) + 1) for low, high in parts if low < high]

    def below(self, pair: Pair) -> Pieces:
        """Where the tables of *pair* differ, or what lies below them."""
        if pair not in self.known:
            if len(self.known) == MAX_PAIRS or self.links > MAX_LINKS:
                return Pieces(((0, ENTRIES * pair.level.span),))
            self.known[pair] = NOTHING  # for a table that contains itself; its other entries are compared
            self.known[pair] = self._compare(pair)
        return self.known[pair]

    def _compare(self, pair: Pair) -> Pieces:
        ours, theirs = self.tables[0].fetch(pair.ours), self.tables[1].fetch(pair.theirs)
        if ours is None or theirs is None:
            same = ours is theirs and pair.ours == pair.theirs and pair.our_rights == pair.their_rights
            return NOTHING if same else Pieces(((0, ENTRIES * pair.level.span),))
        differ = self._differ(ours, theirs, pair)
        if pair.level == Level.PT:
            # All of it: what is equal in it is found equal again, and shared tables stay whole.
            return Pieces(((0, ENTRIES * pair.level.span),)) if differ.any() else NOTHING
        return self._upper(ours, theirs, pair, differ)

    def _differ(self, ours: Words, theirs: Words, pair: Pair) -> Marks:
        """Which entries differ in what counts of a leaf, or in what it lets through."""
        either = (ours | theirs) & P != 0
        differ = (ours ^ theirs) & self.mask != 0
        if pair.our_rights != pair.their_rights:
            differ |= _effective(ours, pair.our_rights) != _effective(theirs, pair.their_rights)
        found: Marks = either & differ
        return found

    def _upper(self, ours: Words, theirs: Words, pair: Pair, differ: Marks) -> Pieces:
        found: list[tuple[int, int]] = []
        span = pair.level.span
        sides = zip(self.tables, (ours, theirs), strict=True)
        our_links, their_links = (tables.classes(side, pair.level).link for tables, side in sides)
        both, other_size = our_links & their_links, (ours ^ theirs) & PS != 0
        for index in np.flatnonzero((ours | theirs) & P).tolist():
            if both[index]:
                mine, other = Entry(int(ours[index]), pair.level), Entry(int(theirs[index]), pair.level)
                found += self._child(pair, mine, other).moved(index * span)
            elif differ[index] or other_size[index]:
                found.append((index * span, (index + 1) * span))
        return _pieces(found)

    def _child(self, pair: Pair, mine: Entry, other: Entry) -> Pieces:
        self.links += 1
        child = Pair(
            self.ours.cpu.frame(mine),
            self.theirs.cpu.frame(other),
            Level(pair.level - 1),
            pair.our_rights.through(mine),
            pair.their_rights.through(other),
        )
        pieces = self.below(child)
        return pieces if len(pieces.runs) <= MAX_PIECES else Pieces(((0, pair.level.span),))


def _effective(entries: Words, rights: Rights) -> Words:
    """Which of write, user and no-execute hold behind each entry."""
    nx = entries & _NX if rights.execute else np.full_like(entries, _NX)
    kept = np.uint64((Flag.RW if rights.write else 0) | (Flag.US if rights.user else 0))
    found: Words = entries & kept | nx
    return found


def _pieces(runs: list[tuple[int, int]]) -> Pieces:
    """*runs*, ascending, joined where they are close."""
    joined: list[tuple[int, int]] = []
    for start, end in runs:
        if joined and start - joined[-1][1] < JOIN_BELOW:
            joined[-1] = (joined[-1][0], end)
        else:
            joined.append((start, end))
    return Pieces(tuple(joined))

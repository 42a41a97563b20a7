"""How many levels a tree of page tables has, from the tables alone.

Nothing in a table says how high it stands. But four steps down from a root the two
readings part: with four levels the entries there map pages, with five they
point on to tables or map 2 MiB pages. Both leave traces that chance does not.
Where all of memory is there, a page of data may look like a table, and the direct map of a
small kernel maps tables as pages. So the entry is asked, too: rights are kept back in leaves, and an
entry that points on is seldom marked as not executable, global or read-only. Linux' ESPfix stacks
have such tables, so this alone says nothing.
A table that was met before, as in Windows' map of the tables by themselves, is
one step further down than it says, so it has no say.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Final

from fivefold.arch import ENTRIES, FRAME_BITS, TABLE_SIZE, Flag, TableReader
from fivefold.survey.scan.tables import Tables
from fivefold.units import GIB, MIB, PhysAddr

_P: Final = 1
_RW: Final = int(Flag.RW)
_A: Final = int(Flag.A)
_PS: Final = 1 << 7
_OF_LEAVES: Final = int(Flag.G | Flag.NX)
_UNLIKELY: Final = 0xF << 48
"""Address bits that no guest seen so far uses, though wide CPUs have them."""

LOUD: Final = 32
LOUDER: Final = 8
"""Entries that must speak against a register, and how many times as many as speak for it."""

SAMPLE: Final = 96
"""How many tables are read at each step down, spread evenly."""


@dataclass(frozen=True, slots=True)
class LevelEvidence:
    """What speaks for four levels and what for five, in entries looked at."""

    four: int = 0
    five: int = 0

    @property
    def levels(self) -> int | None:
        """4 or 5 where one outweighs the other at least two to one, else None."""
        if self.five > 2 * self.four:
            return 5
        return 4 if self.four > 2 * self.five else None

    @property
    def loud(self) -> int | None:
        """4 or 5 where there is enough of it, and nearly all one way, to doubt a register; else None."""
        if self.five >= LOUD and self.five > LOUDER * self.four:
            return 5
        return 4 if self.four >= LOUD and self.four > LOUDER * self.five else None

    def __str__(self) -> str:
        """Both counts, on one line."""
        return f"{self.five} entries of the tables speak for five levels, {self.four} for four"

    def plus(self, other: LevelEvidence) -> LevelEvidence:
        """Both together."""
        return LevelEvidence(self.four + other.four, self.five + other.five)


FOUR: Final = LevelEvidence(four=1)
FIVE: Final = LevelEvidence(five=1)
NEITHER: Final = LevelEvidence()


def level_evidence(memory: TableReader, root: PhysAddr, supposed: int | None = None) -> LevelEvidence:
    """Weigh the two readings of the tree at *root*; bounded work. `MemoryReadError` if the root cannot be read.

    Where *supposed*, 4 or 5, is given, no more is read once the tables speak loudly for it.
    """
    total = NEITHER
    for vote in _votes(memory, root):
        total = total.plus(vote)
        if supposed is not None and total.loud == supposed:
            break
    return total


def contradicts(memory: TableReader, root: PhysAddr, levels: int) -> LevelEvidence | None:
    """What the tables at *root* say against *levels*, 4 or 5, that a register names; None unless they say it loudly.

    Reads little where the tables agree. `MemoryReadError` if the root cannot be read.
    """
    total = NEITHER
    for vote in _votes(memory, root):
        total = total.plus(vote)
        if total.loud == levels:
            return None
    return None if total.loud is None else total


def _votes(memory: TableReader, root: PhysAddr) -> Iterator[LevelEvidence]:
    """What each entry says that is looked at, from the root down."""
    memory.read(root, TABLE_SIZE)
    frames, tables = [int(root)], Tables(memory)
    met = set(frames)
    for step in (1, 2, 3, 4):
        below: dict[int, None] = {}
        for raw in _entries(tables, frames):
            if raw & FRAME_BITS in met and not raw & _PS:
                continue
            if (vote := _weigh(tables, raw, step)) is not NEITHER:
                yield vote
            if not raw & _PS:
                below[raw & FRAME_BITS] = None
        frames = list(below)
        met.update(frames)


def _entries(tables: Tables, frames: list[int]) -> Iterator[int]:
    """The present entries of some of the tables at *frames*."""
    stride = -(-len(frames) // SAMPLE)
    for frame in frames[:: max(stride, 1)]:
        yield from (raw for raw in _read(tables, frame) if raw & _P)


def _read(tables: Tables, frame: int) -> list[int]:
    words = tables.fetch(frame)
    return [] if words is None else words.tolist()


def _weigh(tables: Tables, raw: int, step: int) -> LevelEvidence:
    """What one present entry *step* tables down from the root says."""
    if step == 4:
        return _weigh_last(tables, raw)
    if step == 3 and raw & _PS:
        # A 2 MiB page of four levels, or a 1 GiB page of five.
        return FOUR if raw & FRAME_BITS & GIB - 1 & ~0x1FFF else NEITHER
    return FOUR if step == 2 and raw & _PS else NEITHER


def _weigh_last(tables: Tables, raw: int) -> LevelEvidence:
    """What an entry says that maps a page of four levels, or is a PD entry of five."""
    if raw & _PS:
        return FOUR if raw & FRAME_BITS & 2 * MIB - 1 & ~0x1FFF else FIVE
    if not looks_like_table(_read(tables, raw & FRAME_BITS)):
        return FOUR
    return NEITHER if raw & _OF_LEAVES or not raw & _RW else FIVE


def looks_like_table(entries: Iterable[int]) -> bool:
    """Whether some are present and none is out of the question: by its address, or as a small odd number."""
    present = [raw for raw in islice(entries, ENTRIES) if raw & _P]
    return bool(present) and not any(raw & _UNLIKELY or (raw < TABLE_SIZE and not raw & _A) for raw in present)

"""The entries of an address space in order, holes included, as the kernel's own dump meets them.

Descending and noting are apart: here are runs of like entries, `ptdump_lines.py` makes lines
of them. An absent entry is a piece of the level that it was found at. What has to be as it
is in Linux 6.1 (*mm/ptdump.c*, *mm/pagewalk.c*):

- the sixteen top-level slots of the guard hole are passed over;
- a table of KASAN's early shadow is not entered: each entry that leads to one is met as its
  zero page, with the effective protection of whatever PTE came last;
- inside such a table at the top level, the walk goes on by entries of the level below;
- bit 12 of a large leaf, its PAT, counts as address.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Final, NamedTuple

import numpy as np

from fivefold.arch import FRAME_BITS, TABLE_SIZE, AddressSpace, Flag, Level
from fivefold.errors import MemoryReadError
from fivefold.layout import shadow_bounds
from fivefold.survey.scan.tables import Tables
from fivefold.units import MASK64, PhysAddr

GUARD_SLOTS: Final = range(256, 272)

REMEMBERED: Final = 1 << 12
"""So many page tables are kept in pieces, in case they are shared."""

_P: Final = int(Flag.P)
_RW: Final = int(Flag.RW)
_US: Final = int(Flag.US)
_PS: Final = int(Flag.BIT7)
_NX: Final = int(Flag.NX)
_LEADS: Final = FRAME_BITS | int(Flag.P | Flag.BIT7)
"""What of an entry says where it leads."""

_SEEN: Final = 1 << 12
"""In a piece's `prot`: the entry was not zero. Bits 12 to 51 are address, so this one is free."""
_KEPT: Final = MASK64 & ~FRAME_BITS


class Piece(NamedTuple):
    """Like entries in a row: *end* exclusive, *step* bytes each.

    *prot* is 0 for absent ones, else the bits that are not address. *effective*: RW, US and NX of the whole
    path, 0 for absent ones. *left* is what the last PTE leaves behind for the early shadow; None above the PT.
    *effective* None is the early shadow itself.
    """

    start: int
    end: int
    level: Level
    prot: int
    effective: int | None
    step: int
    left: int | None = None


TakePiece = Callable[[Piece], None]


class UnreadableTable(NamedTuple):
    """A table that is not in memory, and the first address that it would say something of."""

    va: int
    level: Level
    table: PhysAddr


class TableWalk:
    """The entries of an address space in order, absent ones too; *unreadable* fills up on the way."""

    def __init__(self, space: AddressSpace) -> None:
        self.space = space
        self.top = space.mode.top
        self.unreadable: list[UnreadableTable] = []
        self._read = Tables(space.memory)
        self._early = early_shadow(space)
        self._zero_prot = _zero_page_prot(space, self._early)
        self._known: dict[tuple[int, int], list[Piece]] = {}
        self._uniform: dict[tuple[int, Level, int], Piece] = {}
        self._note: TakePiece = _ignore

    def each(self, note: TakePiece) -> None:
        """Call *note* with every piece of the space but the guard hole, ascending.

        A call for each instead of a generator: a shared table can be a hundred thousand pieces.
        """
        self._note = note
        root = self._entries(self.space.root, self.top, 0)
        if root is None:
            raise MemoryReadError(self.space.root, TABLE_SIZE, "the dumped memory")
        self._behind(root[: GUARD_SLOTS.start], self.top, 0, None)
        high = int(self.space.mode.gap.stop) + len(GUARD_SLOTS) * self.top.span
        self._behind(root[GUARD_SLOTS.stop :], self.top, high, None)

    def _entries(self, table: int, level: Level, va: int) -> list[int] | None:
        words = self._read.fetch(table)
        if words is None:
            self.unreadable.append(UnreadableTable(va, level, PhysAddr(table)))
            return None
        entries: list[int] = words.tolist()
        return entries

    def _behind(self, entries: Sequence[int], level: Level, va: int, above: int | None) -> Piece | None:
        """Note what is behind *entries*, which begin at *va*; *above* is the effective protection so far.

        Returns a piece if all that was noted is like it.
        """
        span, count = level.span, len(entries)
        found: list[Piece | None] = []
        index = 0
        while index < count:
            raw = entries[index]
            after = index + 1
            while after < count and entries[after] == raw:
                after += 1
            start, end = va + index * span, va + after * span
            if not raw & _P and not raw & _PS:
                found.append(self._say(Piece(start, end, level, 0, 0, span)))
            elif level <= Level.PDPT and raw & _PS:
                prot = raw & _KEPT | _SEEN
                found.append(self._say(Piece(start, end, level, prot, narrowed(above, prot), span)))
            else:
                found.append(self._tables(raw, level, start, end, narrowed(above, raw)))
            index = after
        return _all_alike(found)

    def _say(self, piece: Piece) -> Piece:
        self._note(piece)
        return piece

    def _tables(self, raw: int, level: Level, start: int, end: int, effective: int) -> Piece | None:
        """Note what is behind entries from *start* to *end* that all are *raw* and point to a table."""
        below, table = Level(level - 1), raw & FRAME_BITS
        if self._early.get(below) == table:
            step = min(level.span, Level.PML4.span)
            return self._say(Piece(start, end, Level.PT, self._zero_prot, None, step))
        for at in range(start, end, level.span):
            whole = self._uniform.get((table, below, effective))
            if whole is not None:
                return self._say(whole._replace(start=at, end=end))
            like = self._table(table, below, at, effective)
            if like is not None:
                self._uniform[table, below, effective] = like
        return self._uniform.get((table, below, effective))

    def _table(self, table: int, level: Level, va: int, effective: int) -> Piece | None:
        if level == Level.PT:
            pieces, note = self._leaves(table, va, effective), self._note
            for start, end, at, prot, allowed, step, left in pieces:
                note(Piece(va + start, va + end, at, prot, allowed, step, left))
            return pieces[0] if len(pieces) == 1 else None
        entries = self._entries(table, level, va)
        if entries is None:
            return self._say(Piece(va, va + level.span * 512, level, 0, 0, level.span))
        return self._behind(entries, level, va, effective)

    def _leaves(self, table: int, va: int, above: int) -> list[Piece]:
        """The pieces of a PT, with addresses from its own start."""
        key = (table, above)
        if key not in self._known:
            if len(self._known) == REMEMBERED:
                self._known.clear()
            self._known[key] = self._read_leaves(table, va, above)
        return self._known[key]

    def _read_leaves(self, table: int, va: int, above: int) -> list[Piece]:
        entries = self._entries(table, Level.PT, va)
        if entries is None:
            return [Piece(0, Level.PD.span, Level.PT, 0, 0, Level.PT.span, above & _NX)]
        words = np.array(entries, np.uint64)
        prot = words & np.uint64(_KEPT) | np.where(words != 0, np.uint64(_SEEN), np.uint64(0))
        edges = [0, *(np.flatnonzero(prot[1:] != prot[:-1]) + 1).tolist(), 512]
        pieces = []
        for first, after in pairwise(edges):
            bits = int(prot[first])
            left = narrowed(above, bits)
            pieces.append(Piece(first << 12, after << 12, Level.PT, bits, left if bits else 0, Level.PT.span, left))
        return pieces


def _ignore(piece: Piece) -> None:
    """What a walk does with pieces before it is asked for them."""


def _all_alike(found: Sequence[Piece | None]) -> Piece | None:
    """The first of *found* if the others differ from it in their addresses only."""
    first = found[0]
    if first is None or any(piece is None or piece[2:] != first[2:] for piece in found):
        return None
    return first


def narrowed(above: int | None, raw: int) -> int:
    """Effective protection with one more entry: RW and US need every level, NX any. The first is taken whole."""
    own = raw & (_RW | _US | _NX)
    if above is None:
        return own
    return (above & own & (_RW | _US)) | ((above | own) & _NX)


def early_shadow(space: AddressSpace) -> dict[Level, int]:
    """The tables of KASAN's early shadow by their level, the PT's last; empty where there is no shadow.

    They are those on the way to the first byte of the shadow: it stands for addresses that no
    kernel maps. Each leads to the next with all of its 512 entries, though not with the same
    flags: kernels set US in the first.
    """
    found: dict[Level, int] = {}
    va = shadow_bounds(int(space.mode.top)).start
    table, tables = int(space.root), Tables(space.memory)
    for level in space.mode.levels:
        words = tables.fetch(table)
        if words is None:
            return {}
        raw = int(words[level.index(va)])
        if not raw & _P or (raw & _PS and level > Level.PT):
            return {}
        if level < space.mode.top and bool(((words ^ np.uint64(raw)) & np.uint64(_LEADS) == 0).all()):
            found[level] = table
        table = raw & FRAME_BITS
    return found if Level.PT in found else {}


def _zero_page_prot(space: AddressSpace, early: dict[Level, int]) -> int:
    """The bits of the shadow's zero page in its PT."""
    if Level.PT not in early:
        return 0
    entry = int.from_bytes(space.memory.read(PhysAddr(early[Level.PT]), 8), "little")
    return entry & _KEPT | _SEEN

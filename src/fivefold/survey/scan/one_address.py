"""Addresses one by one, natively, in memory that is read in place: light answers, their evidence made when asked."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import Any, Final

from fivefold.arch import (
    AddressSpace,
    Cause,
    Entry,
    Level,
    Mapped,
    Rights,
    Step,
    Translation,
    translate,
    walk,
)
from fivefold.kernel.scan import translate as kernel_translate
from fivefold.memory import SourceMemory
from fivefold.metal.extents import attach
from fivefold.metal.run import host
from fivefold.survey.scan.programs import ONE, walk_program
from fivefold.survey.scan.scan_result import RegionKind
from fivefold.units import MASK64, PhysAddr, VirtAddr

_FRAME: Final = MASK64 & ~0xFFF
_KIND, _LEVEL, _RIGHTS = 7, 4, 8
_MAPPED: Final = int(RegionKind.MAPPED)
_CAUSES: Final = {
    kernel_translate.ABSENT: Cause.NOT_PRESENT,
    kernel_translate.NON_CANONICAL: Cause.NON_CANONICAL,
    int(RegionKind.MALFORMED): Cause.RESERVED,
}
_ALL_RIGHTS: Final = tuple(Rights(bool(word & 1), bool(word & 2), bool(word & 4)) for word in range(8))
_LEVELS: Final = (None, *(Level(level) for level in range(1, 6)))
_REMEMBERED: Final = 1024
_LEAF_LEVEL: Final = 7 << _LEVEL
_PT: Final = 1 << _LEVEL
_tuple: Final = tuple.__new__
_object: Final = object.__new__


class LightMapped(Mapped):
    """A `Mapped` whose steps are read when they are asked for; equal to one that has them."""

    __slots__ = ("_tables", "_va", "_word")
    _tables: AddressSpace
    _va: VirtAddr
    _word: int
    __setattr__ = object.__setattr__  # for the three slots; all else is a property

    def __new__(cls, *values: Any, **fields: Any) -> Any:
        """A plain `Mapped`, for `dataclasses.replace`."""
        return Mapped(*values, **fields)

    @property
    def va(self) -> VirtAddr:
        return self._va

    @property
    def pa(self) -> PhysAddr:
        return PhysAddr(self._word & _FRAME | self._va & 0xFFF)

    @property
    def page(self) -> Level:
        return Level(self._word >> _LEVEL & 7)

    @property
    def steps(self) -> tuple[Step, ...]:
        return tuple(walk(self._tables, self._va))

    @property
    def restarted(self) -> tuple[Step, ...]:
        return ()

    @property
    def rights(self) -> Rights:
        return _ALL_RIGHTS[self._word >> _RIGHTS & 7]

    def whole(self) -> Mapped:
        """The same with its evidence."""
        return Mapped(self.va, self.pa, self.page, self.steps)

    def __eq__(self, other: object) -> bool:
        return self.whole() == (other.whole() if isinstance(other, LightMapped) else other)

    def __hash__(self) -> int:
        return hash(self.whole())

    def __repr__(self) -> str:
        return repr(self.whole())

    def __reduce__(self) -> tuple[Any, ...]:
        return Mapped, (self.va, self.pa, self.page, self.steps)


class OneAddress:
    """Walks of one address space, one address at a time. Not for several threads at once."""

    def __init__(self, memory: SourceMemory, tables: AddressSpace) -> None:
        """*memory* is zero-copy, its root can be read, and no entry of *tables* has an encryption bit."""
        self.tables = tables
        banks = memory.banks()
        levels = int(tables.mode.top)
        code = host.load(walk_program(levels, scattered=len(banks) > 1))
        reach = attach(code, banks)
        code.set("scan_entries.reserved", tables.cpu.must_be_zero(Entry(0, Level.PT), tables.nxe))
        code.set("scan_entries.reserved_top", tables.cpu.must_be_zero(Entry(0, Level.PML4), tables.nxe))
        code.set("scan_entries.gib_pages", int(tables.cpu.gib_pages))
        code.set(f"{ONE}.root", tables.root)
        self._buffer = bytearray(24 * levels)
        self._words = struct.Struct(f"<{3 * levels}Q").unpack
        code.set(f"{ONE}.steps", code.map(self._buffer))
        self._levels, self._upper = levels, 3 * (levels - 2)
        self._known: dict[tuple[int, ...], tuple[Step, ...]] = {}
        self.word: Callable[[int], int] = code.direct(f"{ONE}.translate_one")
        self._walk: Callable[[int], int] = code.direct(f"{ONE}.walk_one")
        memory.when_closed(reach.close)

    def translate(self, va: VirtAddr) -> Translation:
        """What `fivefold.arch.translate` answers, for a 64-bit number."""
        word = self.word(va)
        if word & _KIND == _MAPPED:
            found: LightMapped = _object(LightMapped)
            found._va, found._word, found._tables = va, word, self.tables
            return found
        return translate(self.tables, va)

    def steps(self, va: VirtAddr) -> Iterator[Step]:
        """What `fivefold.arch.walk` yields, for a canonical address."""
        word = self._walk(va)
        if word & _KIND not in _ENDS:
            return walk(self.tables, va)
        words = self._words(self._buffer)
        split = self._upper
        if word & _LEAF_LEVEL != _PT:
            end = 3 * (self._levels + 1 - (word >> _LEVEL & 7))
            return iter((*self._upper_steps(words[: min(end, split)]), *self._made(words[split:end], 2)))
        # The upper entries of neighbours are the same, and so are their steps.
        upper = self._known.get(words[:split]) or self._upper_steps(words[:split])
        at_2, raw_2, rights_2, at_1, raw_1, rights_1 = words[split:]
        return iter(
            (
                *upper,
                _tuple(Step, (at_2, _tuple(Entry, (raw_2, _LEVELS[2])), _ALL_RIGHTS[rights_2])),
                _tuple(Step, (at_1, _tuple(Entry, (raw_1, _LEVELS[1])), _ALL_RIGHTS[rights_1])),
            )
        )

    def _upper_steps(self, words: tuple[int, ...]) -> tuple[Step, ...]:
        """The steps in *words*, from the top, remembered."""
        if len(self._known) == _REMEMBERED:
            self._known.clear()
        found = self._known[words] = tuple(self._made(words, self._levels))
        return found

    def _made(self, words: tuple[int, ...], level: int) -> list[Step]:
        """The steps from *level* down in *words*."""
        found = []
        for at in range(0, len(words), 3):
            entry = _tuple(Entry, (words[at + 1], _LEVELS[level]))
            found.append(_tuple(Step, (words[at], entry, _ALL_RIGHTS[words[at + 2]])))
            level -= 1
        return found


_ENDS: Final = frozenset({_MAPPED, kernel_translate.ABSENT, int(RegionKind.MALFORMED)})
"""Kinds of answers for which every entry was read."""

"""Levels and paging modes: how a linear address is cut.

::

    63        57 56    48 47    39 38    30 29    21 20    12 11        0
    |  sign     |  PML5  |  PML4  |  PDPT  |   PD   |   PT   |  offset   |   LA57
    |  sign              |  PML4  |  PDPT  |   PD   |   PT   |  offset   |   LA48

Source: Intel SDM, "4-Level Paging and 5-Level Paging", "Canonical Addressing".
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from functools import cache
from typing import Final

from fivefold.units import MASK64, VirtAddr

ENTRIES: Final = 512
"""Entries in a table, at every level of both modes."""

TABLE_SIZE: Final = 4096
"""Bytes of a table: 512 entries of 8."""


class Level(IntEnum):
    """A level of the tree, counted from the page: an entry at level 1 maps 4 KiB."""

    PT = 1
    PD = 2
    PDPT = 3
    PML4 = 4
    PML5 = 5

    @property
    def shift(self) -> int:
        """Lowest address bit of this level's index."""
        return 3 + 9 * self

    @property
    def span(self) -> int:
        """Bytes of virtual space behind one entry.

        >>> Level.PD.span == 2 << 20
        True
        """
        return 1 << self.shift

    def index(self, va: int) -> int:
        """Which of the 512 entries *va* takes at this level.

        >>> Level.PML5.index(0xff11_0000_0000_0000)
        273
        """
        return va >> self.shift & ENTRIES - 1


@dataclass(frozen=True, slots=True)
class PagingMode:
    """How wide a linear address is, and all that follows from it.

    >>> base = 0xff11_0000_0000_0000
    >>> LA48.is_canonical(base), LA57.is_canonical(base)
    (False, True)
    """

    name: str
    top: Level

    @property
    def va_bits(self) -> int:
        """Bits of an address that the tables translate."""
        return self.top.shift + 9

    @property
    def levels(self) -> tuple[Level, ...]:
        """The levels a walk meets, from the root down."""
        return _levels_from(self.top)

    @property
    def gap(self) -> range:
        """Every non-canonical address; the end is exclusive."""
        edge = 1 << (self.va_bits - 1)
        return range(edge, MASK64 + 1 - edge)

    def sign_extend(self, raw: int) -> VirtAddr:
        """Copy bit ``va_bits - 1`` of *raw* over the bits above it."""
        return extend(raw, self.va_bits)

    def is_canonical(self, raw: int) -> bool:
        """Whether the bits that are not translated all equal the highest one that is."""
        return extend(raw, self.va_bits) == raw

    def indices(self, va: VirtAddr) -> tuple[int, ...]:
        """The entry taken at each level, from the root down. `ValueError` if non-canonical.

        >>> LA48.indices(VirtAddr(0xffff_ffff_8100_0000))
        (511, 510, 8, 0)
        """
        if not self.is_canonical(va):
            raise ValueError(f"{va:#018x} is not canonical in {self.va_bits} bits")
        return tuple(level.index(va) for level in self.levels)

    def base_of(self, indices: tuple[int, ...]) -> VirtAddr:
        """The lowest address behind *indices*, given from the root down and possibly cut short."""
        raw = sum(index << level.shift for index, level in zip(indices, self.levels, strict=False))
        return self.sign_extend(raw)


@cache
def _levels_from(top: Level) -> tuple[Level, ...]:
    return tuple(Level(number) for number in range(top, 0, -1))


def extend(raw: int, bits: int) -> VirtAddr:
    """Copy bit ``bits - 1`` of *raw* over the bits above it, up to bit 63.

    >>> hex(extend(0x0000_8000_0000_0000, 48))
    '0xffff800000000000'
    """
    sign = 1 << (bits - 1)
    low = raw & (2 * sign - 1)
    return VirtAddr(((low ^ sign) - sign) & MASK64)


LA48: Final = PagingMode("la48", Level.PML4)
LA57: Final = PagingMode("la57", Level.PML5)

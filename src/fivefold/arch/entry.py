"""One page-table entry, and what its bits mean at its level.

::

    63 62  59 58   52 51                      12 11  9 8 7 6 5 4 3 2 1 0
    |NX| key |  soft  |  frame, reserved from M  | soft |G|7|D|A|C|T|U|W|P|

Bit 7 is the page size at PD and PDPT, PAT at PT and reserved above. A large leaf keeps PAT in
bit 12. Source: Intel SDM, "4-Level Paging and 5-Level Paging", the tables of entry formats;
AMD APM volume 2, "Long-Mode Page Translation".
"""

from __future__ import annotations

from enum import IntEnum, IntFlag
from functools import lru_cache
from typing import Final, NamedTuple

from fivefold.arch.modes import Level


class Flag(IntFlag):
    """Bits of an entry. Ask `Entry.is_leaf` about bit 7: its meaning turns on the level."""

    P = 1 << 0
    RW = 1 << 1
    US = 1 << 2
    PWT = 1 << 3
    PCD = 1 << 4
    A = 1 << 5
    D = 1 << 6
    BIT7 = 1 << 7
    G = 1 << 8
    BIT12 = 1 << 12
    NX = 1 << 63


class MemoryType(IntEnum):
    """What a PAT entry selects. Source: Intel SDM, "IA32_PAT MSR"."""

    UC = 0
    WC = 1
    WT = 4
    WP = 5
    WB = 6
    UC_MINUS = 7


PAT_RESET: Final = 0x0007_0406_0007_0406
"""The PAT MSR after reset: WB, WT, UC-, UC, twice."""

SOFTWARE_BITS: Final = 0x7 << 9 | 0x7F << 52
"""Bits 9 to 11 and 52 to 58: the CPU reads no meaning in them (no HLAT here)."""

FRAME_BITS: Final = ((1 << 52) - 1) & ~0xFFF
"""The widest address field there can be; how much of it a CPU has is `Cpu.frame_mask`."""

_MEMORY_TYPES: Final = frozenset(int(kind) for kind in MemoryType)

# Plain ints: arithmetic on an enum costs over ten times more.
_P: Final = int(Flag.P)
_BIT7: Final = int(Flag.BIT7)


class Entry(NamedTuple):
    """One 64-bit entry and the level it was read at; neither means much alone.

    Present, zero, leaf and malformed are four questions. The last one needs the CPU too:
    `Cpu.reserved`.

    >>> [Entry(0x83, at).is_leaf for at in (Level.PT, Level.PD, Level.PML4)]
    [True, True, False]
    >>> Entry(0x03, Level.PT).is_leaf
    True
    """

    raw: int
    level: Level

    @property
    def is_present(self) -> bool:
        """Whether the CPU reads any other bit at all."""
        return bool(self.raw & _P)

    @property
    def is_zero(self) -> bool:
        """Whether no bit is set. An entry that is not present need not be zero."""
        return self.raw == 0

    @property
    def is_leaf(self) -> bool:
        """Whether it would map a page, were it present and well formed."""
        if self.level == 1:
            return True
        return self.level <= 3 and bool(self.raw & _BIT7)

    @property
    def pat_index(self) -> int:
        """Which of the eight PAT entries it selects: for a leaf its page, else the table below.

        >>> Entry(0x1083, Level.PD).pat_index, Entry(0x83, Level.PT).pat_index
        (4, 4)
        """
        pat_bit = 7 if self.level == 1 else 12
        pat = self.raw >> pat_bit & 1 if self.is_leaf else 0
        return pat << 2 | self.raw >> 3 & 3

    def memory_type(self, pat: int = PAT_RESET) -> MemoryType:
        """The type that *pat*, the PAT MSR, gives it; MTRRs may make it stricter.

        Raises `ValueError` for an encoding that the MSR could not hold.
        """
        value = pat >> 8 * self.pat_index & 0xFF
        if value not in _MEMORY_TYPES:
            raise ValueError(f"PAT entry {self.pat_index} is {value:#x}, which is no memory type")
        return MemoryType(value)

    @property
    def key(self) -> int:
        """Bits 59 to 62: the protection key of a leaf, where CR4.PKE or CR4.PKS is set."""
        return self.raw >> 59 & 15

    @property
    def software(self) -> int:
        """The bits left to software, in their places."""
        return self.raw & SOFTWARE_BITS


_ALWAYS: Final = (
    (Flag.P, "P"),
    (Flag.RW, "RW"),
    (Flag.US, "US"),
    (Flag.PWT, "PWT"),
    (Flag.PCD, "PCD"),
    (Flag.A, "A"),
    (Flag.D, "D"),
)
_SOFTWARE_NUMBERS: Final = (9, 10, 11, *range(52, 59))


def flag_names(flags: int, level: Level) -> list[str]:
    """Names of the bits in *flags*, a leaf's at *level*: bit 7 is PS, or PAT in a PT entry."""
    return list(_names_of(flags, level))


@lru_cache(maxsize=1 << 12)
def _names_of(flags: int, level: Level) -> tuple[str, ...]:
    """There are few different leaves, and a great many of each."""
    names = [name for bit, name in _ALWAYS if flags & bit]
    if flags & Flag.BIT7:
        names.append("PAT" if level == Level.PT else "PS")
    if flags & Flag.G:
        names.append("G")
    if flags & Flag.BIT12 and level > Level.PT:
        names.append("PAT")
    if flags & Flag.NX:
        names.append("NX")
    if key := Entry(flags, level).key:
        names.append(f"PK{key}")
    return (*names, *(f"SW{bit}" for bit in _SOFTWARE_NUMBERS if flags >> bit & 1))

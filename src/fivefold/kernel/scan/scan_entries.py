"""What an entry means to the scan: leaf or table, malformed or not, which of its bits are recorded.

The settings are the CPU's side (which bits are reserved) and the asker's (which bits of a
leaf are recorded, and so break a range where they change). They are read once for a run of
entries, never in the inner loops.
"""

from __future__ import annotations

from typing import Final

from fivefold.kernel.paging.pgtable import FRAME_MASK, NX, PRESENT, PSE, PTE_LEVEL, PUD_LEVEL, RW, USER, level_shift
from fivefold.kernel.scan.scan_ranges import EXECUTE, WRITE
from fivefold.metal.lang import inline, u64

LARGE_PAT: Final = 1 << 12
"""PAT of a large leaf; in other entries the bit belongs to the address."""

flags_mask: u64 = 0x8000_0000_0000_119F
"""Bits of a leaf that are recorded: by default all but A, D, software bits and key. Bit 12: of large leaves only."""
reserved: u64 = 0
"""Bits that must be zero at every level: those from MAXPHYADDR to 51; bit 63 where EFER.NXE=0."""
reserved_top: u64 = PSE
"""Further bits that must be zero at the P4D level and above; AMD CPUs have bit 8 there, too."""
gib_pages: bool = True
"""Whether PS is allowed in a PUD entry."""


@inline
def is_leaf(level: u64, entry: u64) -> bool:
    """Whether a present entry maps a page; PS higher up is no leaf but malformed."""
    return level == PTE_LEVEL or (entry & PSE != 0 and level <= PUD_LEVEL)


@inline
def large_low_bits(level: u64) -> u64:
    """Reserved bits of a large leaf: between PAT and its frame."""
    return (1 << level_shift(level)) - 1 & ~(LARGE_PAT | 0xFFF)


@inline
def must_be_zero(level: u64, entry: u64) -> u64:
    """Reserved bits of a present entry of this kind at *level*."""
    if level > PUD_LEVEL:
        return reserved | reserved_top
    if level == PTE_LEVEL or entry & PSE == 0:
        return reserved
    if level == PUD_LEVEL and not gib_pages:
        return reserved | PSE
    return reserved | large_low_bits(level)


@inline
def leaf_flags(level: u64) -> u64:
    """`flags_mask` without what is the address at this level."""
    return flags_mask & ~(FRAME_MASK if level == PTE_LEVEL else FRAME_MASK & ~LARGE_PAT)


@inline
def run_mask(level: u64) -> u64:
    """Bits that are equal in all entries of a run: then kind and rights are, too."""
    mask = leaf_flags(level) | PRESENT | RW | USER | NX | reserved
    return mask if level == PTE_LEVEL else mask | PSE | large_low_bits(level)


@inline
def narrowed(rights: u64, entry: u64) -> u64:
    """Rights after one more entry: W and U need every level, X needs no NX at any."""
    return rights & ((entry >> 1 & 3) | (~entry >> 61 & EXECUTE))


@inline
def is_wx(rights: u64) -> bool:
    """Whether *rights* let code be written and executed at the same address."""
    return rights & (WRITE | EXECUTE) == WRITE | EXECUTE

"""Translate one address: the walk of the CPU, its answer in one word.

The low twelve bits of an answer are `scan_ranges.info_of`: kind, level and rights; those of the address itself are its
caller's to put there. `translate.py` walks many addresses at once.
"""

from __future__ import annotations

from typing import Final

from fivefold.kernel.paging.pgtable import FRAME_MASK, PRESENT, entry_frame, is_canonical, level_shift, levels
from fivefold.kernel.scan.scan_entries import is_leaf, must_be_zero, narrowed
from fivefold.kernel.scan.scan_ranges import ALL_RIGHTS, MALFORMED, MAPPED, UNREADABLE, info_of
from fivefold.kernel.scan.tables import phys_table
from fivefold.kernel.scan.translate import ABSENT, NON_CANONICAL, entry_offset
from fivefold.metal.lang import export, inline, load64, store64, u64
from fivefold.units import PhysAddr, VirtAddr

LEVELS: Final = (5, 4, 3, 2, 1)

root: u64 = 0
"""The physical address of the top table, which can be read."""

steps: u64 = 0
"""Where `walk_one` has room for three words for each level."""


@export
def translate_one(va: u64) -> u64:
    """Return where *va* leads, or what stops it; of a table that cannot be read its frame."""
    return walked(va, 0)


@export
def walk_one(va: u64) -> u64:
    """Return as `translate_one` does, and put three words at `steps` for each entry: place, entry, rights so far."""
    return walked(va, steps)


@inline
def walked(va: u64, to: u64) -> u64:
    """The walk; entries are written down where *to* is not 0."""
    if not is_canonical(VirtAddr(va)):
        return info_of(NON_CANONICAL, 0, 0)
    table = PhysAddr(root)
    rights = ALL_RIGHTS
    for level in LEVELS:
        if level <= levels():
            page = phys_table(table)
            if page == 0:
                return table | info_of(UNREADABLE, level, rights)
            entry = load64(page + entry_offset(level, va))
            rights = narrowed(rights, entry)
            if to != 0:
                store64(to, table + entry_offset(level, va))
                store64(to + 8, entry)
                store64(to + 16, rights)
                to += 24
            if entry & PRESENT == 0:
                return info_of(ABSENT, level, 0)
            if entry & must_be_zero(level, entry) != 0:
                return info_of(MALFORMED, level, 0)
            if is_leaf(level, entry):
                inside = (1 << level_shift(level)) - 1
                return (entry & FRAME_MASK & ~inside | va & inside & FRAME_MASK) | info_of(MAPPED, level, rights)
            table = PhysAddr(entry_frame(entry))
    return 0

"""The 32-bit entry, before long mode exists: decide the mode, build the first tables [proposal: part 1].

Compiled for i386 without relocations, so it runs wherever the loader put the image. The
assembly around it only moves what it returns into CR4, CR3, EFER and CR0.

The tables are an identity map of the first 4 GiB with 2 MiB pages::

    five levels:  top -> level 4 -> level 3 -> 4 x level 2      7 pages
    four levels:  top ------------> level 3 -> 4 x level 2      6 pages

`BOOT_TABLE_PAGES` is what the fifth level needs; the proposal kept the 6 pages of four
levels, so its last table lay beyond the buffer and kept stale upper halves.
"""

from __future__ import annotations

from typing import Final

from fivefold.kernel.boot.detect import REASON_CPU_HAS_LA57, REASON_CPU_LACKS_LA57, reason_for_mode, wants_five_levels
from fivefold.metal.lang import export, fill64, load64, store64, u64

BOOT_TABLE_PAGES: Final = 7
BOOT_TABLE: Final = 0x7
"""P, RW, US."""
BOOT_LEAF: Final = 0x183
"""P, RW, PS, G: the early pages are executable, since the image runs from them."""

START_INFO_CMDLINE: Final = 24
"""Offset of the command line's address in PVH's hvm_start_info (Xen: "x86/HVM direct boot ABI")."""


def build_boot_tables(tables: u64, extra: u64) -> u64:
    """Fill the buffer at *tables*; *extra* is 1 for five levels, else 0. Return the address of the top table."""
    fill64(tables, 0, BOOT_TABLE_PAGES * 512)
    level3 = tables + 4096 * (1 + extra)
    level2 = level3 + 4096
    for i in range(4 * 512):
        store64(level2 + 8 * i, i << 21 | BOOT_LEAF)
    for i in range(4):
        store64(level3 + 8 * i, level2 + 4096 * i | BOOT_TABLE)
    if extra != 0:
        store64(tables + 4096, level3 | BOOT_TABLE)
    store64(tables, tables + 4096 | BOOT_TABLE)
    return tables


@export
def startup_32(start_info: u64, tables: u64, force: u64) -> u64:
    """Return the root table in the low half, and in the high half the reason for the mode it was built for.

    *start_info* is PVH's; *tables* a page-aligned buffer of `BOOT_TABLE_PAGES` pages below 4 GiB;
    *force* a number of levels that a caller insists on, or 0.
    """
    reason = reason_for_mode(load64(start_info + START_INFO_CMDLINE))
    if force != 0:
        reason = REASON_CPU_HAS_LA57 if force == 5 else REASON_CPU_LACKS_LA57
    extra = u64(wants_five_levels(reason))
    return build_boot_tables(tables, extra) | reason << 32

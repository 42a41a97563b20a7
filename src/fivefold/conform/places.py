"""Where everything lies in physical memory, for the cases, the payload and the engines in this process alike.

::

    0x02000000  the payload's image
    0x04000000  the tables of a case: root first, then a table a level, twice
    0x04010000  the driver's tables: an identity map of the first 4 GiB, behind slot 0 of the root
    0x04100000  the code that makes the access: a page for privilege level 0, a page for 3
    0x04200000  data, 4 MiB: what the pages of a case map
    0x08000000  the table of cases

The tables of the driver are the same for every case, so slot 0 of the root is no place for a case, but for
address 0, which the driver maps to the last page of data: that is where an access ends that wraps.
"""

from __future__ import annotations

from typing import Final

IMAGE: Final = 0x0200_0000
"""Above what UEFI firmware unpacks itself to in low memory."""
ARENA: Final = 0x0400_0000
TABLES: Final = ARENA
"""The root, then PML4, PDPT, PD and PT of the first page; 0x5000 further those of the second."""
SECOND: Final = 0x5000
LOW_PML4: Final = ARENA + 0x1_0000
LOW_PDPT: Final = ARENA + 0x1_1000
LOW_PD: Final = ARENA + 0x1_2000
"""Four of them, one for each GiB."""
LOW_PT0: Final = ARENA + 0x1_6000
ARENA_PT: Final = ARENA + 0x1_7000
CODE: Final = ARENA + 0x10_0000
USER_CODE: Final = CODE + 0x1000
SCRATCH: Final = 0xF00
"""Where in the code page the stack begins of instructions that need one."""
DATA: Final = ARENA + 0x20_0000
DATA_SIZE: Final = 0x40_0000
DATA_END: Final = DATA + DATA_SIZE
WRAP_PAGE: Final = DATA_END - 0x1000
"""What the driver maps at address 0."""
CASES: Final = 0x0800_0000
ROOT: Final = TABLES

LINK: Final = 0x67
"""P, RW, US, A, D: an entry of the driver's that leads to a table, or to user's memory."""
KERNEL_PAGE: Final = 0x63
"""P, RW, A, D: a page of the driver's own; never a user's, so that SMEP and SMAP leave it alone."""
LARGE: Final = 0x80

PATTERN: Final = 0x00CF_F300_0000_00CC
"""Every 8 bytes of data: INT3 as their first, a data segment's descriptor, the page's number in bits 16 to 31."""


def pattern(pa: int) -> int:
    """The 8 bytes of data at *pa*, a multiple of 8."""
    return PATTERN | (pa - DATA >> 12) << 16


def driver_entries(levels: int) -> dict[int, int]:
    """The driver's entries that are not regular, by physical address."""
    entries = {
        ROOT: (LOW_PML4 if levels == 5 else LOW_PDPT) | LINK,
        LOW_PML4: LOW_PDPT | LINK,
        LOW_PD: LOW_PT0 | LINK,
        LOW_PD + 8 * (ARENA >> 21): ARENA_PT | LINK,
        LOW_PT0: WRAP_PAGE | LINK,
        ARENA_PT + 8 * (USER_CODE >> 12 & 511): USER_CODE | LINK,
    }
    return entries | {LOW_PDPT + 8 * gib: LOW_PD + 0x1000 * gib | LINK for gib in range(4)}


def driver_entry(pa: int, levels: int) -> int:
    """The entry at *pa* of the driver's tables; 0 where there is none.

    Regular are 2 MiB pages, and the 4 KiB pages of the first 2 MiB and of the arena's first 2 MiB.
    """
    special = driver_entries(levels).get(pa)
    if special is not None:
        return special
    if LOW_PD <= pa < LOW_PT0:
        return (pa - LOW_PD) // 8 << 21 | KERNEL_PAGE | LARGE
    if LOW_PT0 <= pa < LOW_PT0 + 0x1000:
        return (pa - LOW_PT0) // 8 << 12 | KERNEL_PAGE
    if ARENA_PT <= pa < ARENA_PT + 0x1000:
        return ARENA + ((pa - ARENA_PT) // 8 << 12) | KERNEL_PAGE
    return 0

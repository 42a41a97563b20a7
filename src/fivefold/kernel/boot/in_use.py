"""Which physical memory is in use: the question that is asked before any memory is written.

`note` enters into memblock what the loader calls memory and what lies in it that must stay: the image (and with it the
stack, GDT, IDT and early tables that the CPU uses), the start information and all that it points to, modules, earlier
kernels, the pages of the change of mode. Rows of the map that are not RAM are no memory. `note_tables` adds the page
tables that the CPU walks, as long as they are the loader's, and `note_low_tables` those that are only looked into when
a place is asked for again. Afterwards `memblock.find` returns free memory only.

The boot code asks before it moves the image and before it borrows pages for the change of mode; the kernel proper asks
for everything else: tables, the secondary CPUs' trampoline, the places of kexec and hibernation.
"""

from __future__ import annotations

from typing import Final

from fivefold.kernel import params
from fivefold.kernel.boot import start_info
from fivefold.kernel.paging import memblock
from fivefold.kernel.paging.cpu import CR4_LA57, CR4_SMAP, CR4_SMEP
from fivefold.kernel.paging.pgtable import FRAME_MASK, NX, PRESENT, PSE, RW, USER, pgtable_levels_of
from fivefold.kernel.paging.phys import PAGE_SIZE, phys_to_virt
from fivefold.metal.lang import load64, noinline, read_cr3, read_cr4, u64
from fivefold.units import PhysAddr, VirtAddr

LOW_PAGES: Final = 2
"""Pages below 1 MiB that a change of mode needs: a root table and code that runs without paging."""
TRAMPOLINE_LIMIT: Final = 0x9F000
"""Below the BIOS' extended data area on every PC; what is really free is asked of the memory map."""
PLACES_END: Final = 1 << 32
"""Exclusive end of where `move.py` looks for a place."""
EVERYWHERE: Final = (1 << 64) - 1

tables_end: u64 = 0
"""End of the highest table that `reserve_path` met."""


@noinline
def note(info: PhysAddr, load: PhysAddr, image_end: PhysAddr, cmdline: VirtAddr) -> None:
    """Fill memblock from the start information; *cmdline* is the command line's address as this code sees it, or 0."""
    memblock.forget()
    start_info.add_memory(info)
    memblock.reserve(load, image_end - load)
    start_info.reserve_memory(info)
    reserve_earlier_kernels(cmdline)


def reserve_earlier_kernels(cmdline: VirtAddr) -> None:
    """Reserve the kernels that led here by kexec: their reports are still to be read."""
    at = params.find_option(cmdline, "previous=")
    while at != params.ABSENT:
        upto = params.find_option(VirtAddr(at), "previous_end=")
        if upto == params.ABSENT:
            return
        if params.is_number_at(at) and params.is_number_at(upto) and params.number_at(at) < params.number_at(upto):
            load = params.number_at(at)
            memblock.reserve(PhysAddr(load), params.number_at(upto) - load)
        at = params.find_option(VirtAddr(at), "previous=")


# -- what the active tables are needed for; only where physical memory is seen at its own address -----------


@noinline
def note_tables(info: PhysAddr, load: PhysAddr, image_end: PhysAddr) -> None:
    """Reserve the active tables that map the image, the start information and what is read of it."""
    reserve_tables(load, image_end)
    reserve_tables(info, info + start_info.SIZE)
    rows = start_info.field64(info, start_info.OFFSET_MEMORY_MAP)
    reserve_tables(rows, rows + start_info.map_count(info) * start_info.MAP_ENTRY_SIZE)
    cmdline = start_info.field64(info, start_info.OFFSET_CMDLINE)
    if cmdline != 0:
        reserve_tables(cmdline, cmdline + start_info.cmdline_size(PhysAddr(cmdline)) + 1)


@noinline
def note_low_tables() -> None:
    """Reserve the active tables below `TRAMPOLINE_LIMIT` that map tables, or memory in which there may be a place.

    `can_run_at` is asked again when the borrowed pages are in use: it reads the tables of any place, at their own
    addresses. Tables may lie beyond the memory that the map shows.
    """
    global tables_end
    tables_end = 0
    va = u64(0)
    end = min(u64(memblock.end_of_memory()), PLACES_END)
    while va < max(end, tables_end):
        span = reserve_path(va, TRAMPOLINE_LIMIT)
        va = (va & ~(span - 1)) + span


@noinline
def reserve_tables(start: u64, end: u64) -> None:
    """Reserve the active tables on the paths of [start, end)."""
    va = start
    while start <= va and va < end:  # the start information may name any address, the last one too
        span = reserve_path(va, EVERYWHERE)
        va = (va & ~(span - 1)) + span


@noinline
def reserve_path(va: u64, limit: u64) -> u64:
    """Reserve the active tables below *limit* on the path of *va*; return how many bytes around it have no other path.

    All of a table of 4 KiB pages, but only one entry of a table above, whose next may lead to a table again.
    """
    global tables_end
    at = active_root()
    level = active_levels()
    while True:
        tables_end = max(tables_end, at + PAGE_SIZE)
        if at < limit:
            memblock.reserve(PhysAddr(at), PAGE_SIZE)
        entry = load64(phys_to_virt(PhysAddr(at)) + 8 * (va >> (3 + 9 * level) & 511))
        if entry & PRESENT == 0 or level == 1 or (level <= 3 and entry & PSE != 0):
            return u64(1) << (3 + 9 * max(level, 2))
        at = entry & FRAME_MASK
        level -= 1
    return 0


def active_root() -> u64:
    """Physical address of the active top table."""
    return read_cr3() & FRAME_MASK


def active_levels() -> u64:
    """Levels of the active tables: the loader's depth, which need not be the one that is wanted (INV-1)."""
    return pgtable_levels_of(read_cr4() & CR4_LA57 != 0)


def bars_user_pages() -> bool:
    """Whether SMEP or SMAP keeps ring 0 from pages of ring 3."""
    return read_cr4() & (CR4_SMEP | CR4_SMAP) != 0


@noinline
def can_run_at(start: u64, end: u64) -> bool:
    """Whether the active tables identity-map all of [start, end), writable and executable, and do not lie in it."""
    va = start
    while va < end:
        span = span_at(va, start, end)
        if span == 0:
            return False
        va = (va & ~(span - 1)) + span
    return True


def span_at(va: u64, start: u64, end: u64) -> u64:
    """Bytes of the page that identity-maps *va* with all rights, 0 if none does or a table of its path is in the way.

    Rights are folded over the path: every entry must allow the write, none may forbid execution. A page of ring 3 is
    no place for the kernel where SMEP or SMAP is on. Bit 63 is reserved while NXE is off.
    """
    at = active_root()
    level = active_levels()
    user = u64(USER)
    while True:
        if at < end and start < at + PAGE_SIZE:
            return 0
        entry = load64(phys_to_virt(PhysAddr(at)) + 8 * (va >> (3 + 9 * level) & 511))
        user = user & entry
        if entry & (PRESENT | RW) != PRESENT | RW or entry & NX != 0:
            return 0
        if level == 1 or (level <= 3 and entry & PSE != 0):
            break
        at = entry & FRAME_MASK
        level -= 1
    span = u64(1) << (3 + 9 * level)
    if user != 0 and bars_user_pages():
        return 0
    return span if entry & FRAME_MASK & ~(span - 1) == va & ~(span - 1) else u64(0)


@noinline
def find_low_pages() -> PhysAddr:
    """Highest `LOW_PAGES` free pages below `TRAMPOLINE_LIMIT` that the active tables let code run in; 0 without any."""
    size = u64(LOW_PAGES * PAGE_SIZE)
    place = memblock.find_below(size, PhysAddr(TRAMPOLINE_LIMIT))
    while place != 0 and not can_run_at(place, place + size):
        place = memblock.find_below(size, PhysAddr(place + size - PAGE_SIZE))
    return place

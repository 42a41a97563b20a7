"""The KASAN shadow: one byte for eight, at one offset in both modes [proposal: part 7, and its discussion].

::

    shadow(va) = (va >> 3) + 0xdffffc0000000000

A compiler puts the offset into every access, so a kernel that chooses its mode at boot can have only one. With four
levels the shadow starts at a top-level entry; with five it does not, and its end lies inside the slot of the kernel
image. Linux rounds the start down and fills the whole slot; here both ends are exact: the first and the last slot are
filled entry by entry, one level below.

Before memory is known all of it reads as zero through one table a level, whose entries all lead to the next. Later
what is in use gets memory of its own, and the rest stays on the shared tables, then without write permission. The
tables lie in the image; their physical addresses take `phys_base` into account, as the first such kernel did not.
"""

from __future__ import annotations

from typing import Final

from fivefold.kernel.boot import early
from fivefold.kernel.paging import layout, memblock, phys
from fivefold.kernel.paging.backing import back_range
from fivefold.kernel.paging.layout import AREAS, SHADOW_END, SHADOW_START
from fivefold.kernel.paging.pgtable import (
    KERNEL_RO,
    KERNEL_RW,
    P4D_SIZE,
    PTRS_PER_TABLE,
    TABLE,
    USER,
    entry_frame,
    entry_large,
    entry_none,
    p4d_folded,
    p4d_none,
    p4d_offset,
    p4d_populate,
    pgd_none,
    pgd_offset,
    pgd_populate,
    pgd_size,
    pud_offset,
    table_at,
)
from fivefold.kernel.paging.phys import PAGE_SIZE, kernel_to_phys, phys_to_virt
from fivefold.metal.lang import buffer, fill64, inline, load64, noinline, store64, symbol, u64
from fivefold.units import PhysAddr, VirtAddr

SHADOW_OFFSET: Final = 0xDFFF_FC00_0000_0000
SCALE_SHIFT: Final = 3

zero_page: Final = buffer(PAGE_SIZE, PAGE_SIZE)
zero_pte: Final = buffer(PAGE_SIZE, PAGE_SIZE)
zero_pmd: Final = buffer(PAGE_SIZE, PAGE_SIZE)
zero_pud: Final = buffer(PAGE_SIZE, PAGE_SIZE)
zero_p4d: Final = buffer(PAGE_SIZE, PAGE_SIZE)
first_p4d: Final = buffer(PAGE_SIZE, PAGE_SIZE)
"""Of the slot that the shadow starts inside: its lower part stays empty."""

early_read: u64 = 1
"""What a shadow byte read as before memory was known; 0 is right."""


@inline
def shadow_of(va: VirtAddr) -> VirtAddr:
    """Where the shadow byte of *va* lies."""
    return VirtAddr((va >> SCALE_SHIFT) + SHADOW_OFFSET)


def shadow_start() -> VirtAddr:
    """First shadow address: that of the kernel half's first."""
    return VirtAddr(SHADOW_START[layout.column()])


def shadow_end() -> VirtAddr:
    """Exclusive end, the same in both modes."""
    return VirtAddr(SHADOW_END[layout.column()])


@inline
def image_phys(buffer_at: u64) -> PhysAddr:
    """Physical address of a table in the image."""
    return kernel_to_phys(VirtAddr(buffer_at))


def fill_zero_tables(protection: u64) -> None:
    """Make each shared table lead to the next one in all its entries, the last to the zero page with *protection*."""
    fill64(VirtAddr(zero_pte), image_phys(zero_page) | protection, PTRS_PER_TABLE)
    fill64(VirtAddr(zero_pmd), image_phys(zero_pte) | TABLE, PTRS_PER_TABLE)
    fill64(VirtAddr(zero_pud), image_phys(zero_pmd) | TABLE, PTRS_PER_TABLE)
    fill64(VirtAddr(zero_p4d), image_phys(zero_pud) | TABLE, PTRS_PER_TABLE)


def zero_tables_in_use() -> u64:
    """Tables of the image that the final tables lead to: a PTE, a PMD and a PUD, and with five levels two P4Ds."""
    return 3 + 2 * u64(not p4d_folded())


@noinline
def link_zero_tables(top: VirtAddr) -> None:
    """Put the shared tables wherever the shadow has nothing yet, as high up as they fit."""
    va = u64(shadow_start())
    while va < shadow_end():
        pgd = pgd_offset(top, VirtAddr(va))
        if pgd_none(load64(pgd)):
            pgd_populate(pgd, image_phys(zero_p4d) if va & (pgd_size() - 1) == 0 else image_phys(first_p4d))
        if entry_frame(load64(pgd)) == image_phys(zero_p4d):
            va += pgd_size()  # all of the slot is there, and nothing below it needs to be looked at
        else:
            link_shared_p4d(p4d_offset(pgd, VirtAddr(va)))
            va += P4D_SIZE


@inline
def link_shared_p4d(p4d: VirtAddr) -> None:
    """Make a P4D entry lead to the shared tables; what it leads to already keeps what it has."""
    entry = load64(p4d)
    if p4d_none(entry):
        p4d_populate(p4d, image_phys(zero_pud))
    elif entry_frame(entry) != image_phys(zero_pud):
        fill_below(pud_offset(p4d, VirtAddr(0)), VirtAddr(zero_pmd))


@noinline
def fill_below(pud: VirtAddr, shared: VirtAddr) -> None:
    """Fill the empty entries of a PUD table, and of the PMD and PTE tables under it, if they are not shared ones."""
    for i in range(PTRS_PER_TABLE):
        entry = load64(pud + 8 * i)
        if entry_none(entry):
            store64(pud + 8 * i, image_phys(shared) | TABLE)
        elif not entry_large(entry) and entry != image_phys(shared) | TABLE:
            fill_pmd(table_at(entry))


@noinline
def fill_pmd(pmd: VirtAddr) -> None:
    """Fill the empty entries of a PMD table, and of the PTE tables under it, if they are not shared ones."""
    for i in range(PTRS_PER_TABLE):
        entry = load64(pmd + 8 * i)
        if entry_none(entry):
            store64(pmd + 8 * i, image_phys(zero_pte) | TABLE)
        elif not entry_large(entry) and entry != image_phys(zero_pte) | TABLE:
            pte = table_at(entry)
            for k in range(PTRS_PER_TABLE):
                if entry_none(load64(pte + 8 * k)):
                    store64(pte + 8 * k, image_phys(zero_page) | KERNEL_RO)


def early_init() -> None:
    """Give the early tables a shadow, before memory is known.

    While this walks, memory is seen through the image's window: the tables of this time lie in the image.
    """
    global early_read
    fill_zero_tables(KERNEL_RW & ~USER)
    seen_through = phys.phys_window
    phys.phys_window = early.window
    link_zero_tables(phys_to_virt(PhysAddr(early.top)))
    phys.phys_window = seen_through
    early_read = load64(shadow_of(VirtAddr(symbol("_text"))) & ~7)


@noinline
def back(top: VirtAddr, start: VirtAddr, end: VirtAddr, largest: u64) -> bool:
    """Give the shadow of [start, end) memory of its own."""
    return back_range(top, shadow_of(start), VirtAddr(shadow_of(VirtAddr(end - 1)) + 1), largest)


def init(top: VirtAddr, largest: u64) -> bool:
    """Build the final shadow in the tables at *top*; False without memory."""
    done = back(top, VirtAddr(symbol("_text")), VirtAddr(symbol("_end")), largest)
    for i in range(memblock.memory_count):
        start = layout.page_offset_base + memblock.range_start(memblock.memory, i)
        end = layout.page_offset_base + memblock.range_end(memblock.memory, i)
        done = back(top, VirtAddr(start), VirtAddr(end), largest) and done
    for row in AREAS:
        start = layout.area_start(row.movable, row.start[layout.column()])
        if start != 0 and row.movable < layout.SHADOW:
            done = back(top, VirtAddr(start), VirtAddr(start + PAGE_SIZE), largest) and done
    fill_zero_tables(KERNEL_RO)
    link_zero_tables(top)
    return done


def finish() -> None:
    """Clear the zero page, which may have been written while it stood for everything."""
    fill64(phys_to_virt(image_phys(zero_page)), 0, PAGE_SIZE // 8)

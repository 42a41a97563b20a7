"""The first tables of the 64-bit kernel, and the page-fault handler that extends them [proposal: part 4].

They are built by code that runs at its physical address, and map the image twice: at
itself, so that the instruction after the load of CR3 still exists, and in the kernel
window. Everything else appears when it is touched: a fault on an address of the direct
map gets a 2 MiB page from a pool of 64 tables; when the pool is empty, all but the
kernel's own top slot is wiped and filled again by the faults that follow.

All tables of this time lie in the image, so while this code walks them, physical memory
is seen through the kernel window (`window`), never through the direct map that it is making.
"""

from __future__ import annotations

from typing import Final

from fivefold.kernel.boot.detect import cpu_phys_bits
from fivefold.kernel.paging import layout, phys
from fivefold.kernel.paging.cpu import write_cr3
from fivefold.kernel.paging.pgtable import (
    LAST_SLOT,
    PMD_SIZE,
    PRESENT,
    PSE,
    RW,
    clear_table,
    entry_frame,
    entry_none,
    max_physmem_bits,
    p4d_none,
    p4d_offset,
    p4d_populate,
    pgd_none,
    pgd_offset,
    pgd_populate,
    pmd_offset,
    pud_offset,
)
from fivefold.kernel.paging.phys import PAGE_SIZE, phys_to_virt
from fivefold.metal.lang import load64, noinline, read_cr3, store64, u64
from fivefold.units import PhysAddr, VirtAddr

POOL_PAGES: Final = 64
LEAF: Final = PRESENT | RW | PSE
"""Executable, since the kernel runs from it, and not global, since it goes away."""

top: u64 = 0
pool: u64 = 0
"""Physical addresses of the early top table and of the pool."""
used: u64 = 0
window: u64 = 0
"""Where physical memory of the image is seen: 0 while the code runs at its physical address."""
faults: u64 = 0
"""Pages that were mapped because they were touched."""
wipes: u64 = 0


def begin(top_table: PhysAddr, pool_pages: PhysAddr, pages_used: u64, image_window: u64) -> None:
    """Start, or go on with, the tables whose top is *top_table*."""
    global top, pool, used, window
    top = top_table
    pool = pool_pages
    used = pages_used
    window = image_window


def take_table() -> PhysAddr:
    """A cleared table from the pool; 0 when it is empty."""
    global used
    if used == POOL_PAGES:
        return PhysAddr(0)
    table = PhysAddr(pool + PAGE_SIZE * used)
    used += 1
    clear_table(phys_to_virt(table))
    return table


def link_pgd(pgd: VirtAddr) -> bool:
    """Make sure that a PGD entry leads on; folded it always does."""
    if not pgd_none(load64(pgd)):
        return True
    table = take_table()
    if table == 0:
        return False
    pgd_populate(pgd, table)
    return True


def link(entry: VirtAddr) -> bool:
    """Make sure that a P4D or PUD entry points to a table."""
    if not p4d_none(load64(entry)):
        return True
    table = take_table()
    if table == 0:
        return False
    p4d_populate(entry, table)
    return True


@noinline
def map_page(va: VirtAddr, pa: PhysAddr) -> bool:
    """Map the 2 MiB page of *va* to that of *pa*; False when the pool is empty."""
    pgd = pgd_offset(phys_to_virt(PhysAddr(top)), va)
    if not link_pgd(pgd):
        return False
    p4d = p4d_offset(pgd, va)
    if not link(p4d):
        return False
    pud = pud_offset(p4d, va)
    if not link(pud):
        return False
    pmd = pmd_offset(pud, va)
    if entry_none(load64(pmd)):
        store64(pmd, pa & ~(PMD_SIZE - 1) | LEAF)
    return True


def map_image(va: VirtAddr, pa: PhysAddr, size: u64) -> bool:
    """Map *size* bytes of the image; *va* and *pa* have the same offset in their 2 MiB pages."""
    done = 0
    while done < size:
        if not map_page(VirtAddr(va + done), PhysAddr(pa + done)):
            return False
        done += PMD_SIZE
    return True


@noinline
def wipe() -> None:
    """Drop everything but the kernel's slot, and start the pool again after what that slot uses."""
    global used, wipes
    table = phys_to_virt(PhysAddr(top))
    for slot in range(LAST_SLOT):
        store64(table + 8 * slot, 0)
    used = kernel_tables
    wipes += 1
    write_cr3(PhysAddr(top))  # TLB: no early leaf is global, and the tables are not filled again before this


kernel_tables: u64 = 0
"""Tables at the start of the pool that the kernel's slot uses; a wipe keeps them."""


def handle_fault(address: VirtAddr, error: u64) -> bool:
    """Map what a page fault on *address* asked for; False for a fault that a mapping would not mend.

    It helps if the page is absent, the early tables are in use, and the address is that of memory in the direct map
    which this CPU can address. A page that is present faulted for another reason, and would fault again for ever: by
    the rights of its entry, or by a frame beyond the CPU's physical width, whose bits are reserved.
    """
    global faults
    offset = address - layout.page_offset_base
    if error & PRESENT != 0 or entry_frame(read_cr3()) != top:
        return False
    if offset >> min(max_physmem_bits(), cpu_phys_bits()) != 0:
        return False
    seen_through = phys.phys_window
    phys.phys_window = window
    mapped = map_page(address, PhysAddr(offset))
    if not mapped:
        wipe()
        mapped = map_page(address, PhysAddr(offset))
    phys.phys_window = seen_through
    faults += 1
    return mapped

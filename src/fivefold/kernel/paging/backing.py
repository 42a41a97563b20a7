"""Map fresh, cleared memory over a range of addresses: what descriptors and the shadow are made of."""

from __future__ import annotations

from fivefold.kernel.paging import memblock
from fivefold.kernel.paging.mapping import lookup, map_page, map_range
from fivefold.kernel.paging.pgtable import KERNEL_RW, PMD_LEVEL, PMD_SIZE
from fivefold.kernel.paging.phys import PAGE_SIZE, phys_to_virt
from fivefold.metal.lang import fill64, noinline, u64
from fivefold.units import VirtAddr


@noinline
def back_range(top: VirtAddr, start: VirtAddr, end: VirtAddr, largest: u64) -> bool:
    """Map memory for every page that [start, end) touches and that is not mapped; False without memory."""
    va = start & ~(PAGE_SIZE - 1)
    stop = end + PAGE_SIZE - 1 & ~(PAGE_SIZE - 1)
    while va < stop:
        size = PAGE_SIZE
        if lookup(top, VirtAddr(va)) == 0:
            size = back_page(top, VirtAddr(va), stop - va, largest)
        if size == 0:
            return False
        va += size
    return True


@noinline
def back_page(top: VirtAddr, va: VirtAddr, left: u64, largest: u64) -> u64:
    """Map one cleared page at *va*, a large one where it fits; return its size, 0 without memory."""
    if largest >= PMD_LEVEL and va & (PMD_SIZE - 1) == 0 and left >= PMD_SIZE:
        block = memblock.allocate(PMD_SIZE, PMD_SIZE)
        if block != 0:
            fill64(phys_to_virt(block), 0, PMD_SIZE // 8)
            return PMD_SIZE - map_range(top, va, block, PMD_SIZE, KERNEL_RW, PMD_LEVEL)
    page = memblock.allocate(PAGE_SIZE, PAGE_SIZE)
    if page == 0:
        return 0
    fill64(phys_to_virt(page), 0, PAGE_SIZE // 8)
    if not map_page(top, va, page, KERNEL_RW):
        return 0
    return PAGE_SIZE

"""One descriptor of 64 bytes for every page of memory, at `vmemmap_base` + 64 x frame number."""

from __future__ import annotations

from fivefold.kernel import layout, memblock
from fivefold.kernel.layout import STRUCT_PAGE_SIZE
from fivefold.kernel.mapping import lookup, map_page, map_range
from fivefold.kernel.pgtable import KERNEL_RW, PMD_LEVEL, PMD_SIZE
from fivefold.kernel.phys import PAGE_SHIFT, PAGE_SIZE, phys_to_virt
from fivefold.metal.lang import fill64, inline, store64, u64
from fivefold.units import PhysAddr, VirtAddr


@inline
def descriptor_of(pa: PhysAddr) -> VirtAddr:
    """Address of the descriptor of the page that holds *pa*."""
    return VirtAddr(layout.vmemmap_base + (pa >> PAGE_SHIFT) * STRUCT_PAGE_SIZE)


def populate(top: VirtAddr, start: PhysAddr, end: PhysAddr, largest: u64) -> bool:
    """Map descriptors for [start, end) and write the frame number in the first and the last; False without memory."""
    va = descriptor_of(start) & ~(PAGE_SIZE - 1)
    stop = descriptor_of(end) + PAGE_SIZE - 1 & ~(PAGE_SIZE - 1)
    while va < stop:
        step = PAGE_SIZE
        if lookup(top, VirtAddr(va)) == 0:
            step = populate_one(top, VirtAddr(va), stop - va, largest)
        if step == 0:
            return False
        va += step
    return True


def populate_one(top: VirtAddr, va: VirtAddr, left: u64, largest: u64) -> u64:
    """Map one page of cleared descriptors at *va*, a large one where it fits; return its size, 0 without memory."""
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


def vmemmap_init(top: VirtAddr, largest: u64) -> bool:
    """Map descriptors for all memory; False without memory for them."""
    for i in range(memblock.memory_count):
        start = PhysAddr(memblock.range_start(memblock.memory, i))
        end = PhysAddr(memblock.range_end(memblock.memory, i))
        if not populate(top, start, end, largest):
            return False
    return True


def number_descriptors() -> None:
    """Write its frame number into the first and the last descriptor of each range of memory."""
    for i in range(memblock.memory_count):
        first = memblock.range_start(memblock.memory, i)
        last = memblock.range_end(memblock.memory, i) - PAGE_SIZE
        store64(descriptor_of(PhysAddr(first)), first >> PAGE_SHIFT)
        store64(descriptor_of(PhysAddr(last)), last >> PAGE_SHIFT)

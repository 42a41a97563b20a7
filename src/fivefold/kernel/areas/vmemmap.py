"""One descriptor of 64 bytes for every page of memory, at `vmemmap_base` + 64 x frame number."""

from __future__ import annotations

from fivefold.kernel.paging import layout, memblock
from fivefold.kernel.paging.backing import back_range
from fivefold.kernel.paging.layout import STRUCT_PAGE_SIZE
from fivefold.kernel.paging.phys import PAGE_SHIFT, PAGE_SIZE
from fivefold.metal.lang import inline, store64, u64
from fivefold.units import PhysAddr, VirtAddr


@inline
def descriptor_of(pa: PhysAddr) -> VirtAddr:
    """Address of the descriptor of the page that holds *pa*."""
    return VirtAddr(layout.vmemmap_base + (pa >> PAGE_SHIFT) * STRUCT_PAGE_SIZE)


def vmemmap_init(top: VirtAddr, largest: u64) -> bool:
    """Map descriptors for all memory; False without memory for them."""
    for i in range(memblock.memory_count):
        start = descriptor_of(PhysAddr(memblock.range_start(memblock.memory, i)))
        end = descriptor_of(PhysAddr(memblock.range_end(memblock.memory, i)))
        if not back_range(top, start, end, largest):
            return False
    return True


def number_descriptors() -> None:
    """Write its frame number into the first and the last descriptor of each range of memory."""
    for i in range(memblock.memory_count):
        first = memblock.range_start(memblock.memory, i)
        last = memblock.range_end(memblock.memory, i) - PAGE_SIZE
        store64(descriptor_of(PhysAddr(first)), first >> PAGE_SHIFT)
        store64(descriptor_of(PhysAddr(last)), last >> PAGE_SHIFT)

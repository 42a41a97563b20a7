"""How the scan reaches a page table: the functions that are not the same everywhere.

In the booted kernel a table is read through the direct map, and only where the memory map
says that there is memory. On the host they are replaced by a lookup in the extents of a memory
image, or among the tables that were brought so far. Nothing else of the scan knows where it runs.
"""

from __future__ import annotations

from fivefold.kernel.paging import memblock
from fivefold.kernel.paging.memblock import memory, range_end, range_start
from fivefold.kernel.paging.phys import PAGE_SHIFT, PAGE_SIZE, phys_to_virt
from fivefold.metal.lang import inline, u64
from fivefold.units import PhysAddr


def phys_table(pa: PhysAddr) -> u64:
    """Address at which the running code reads the table in the frame of *pa*; 0 when it cannot be read."""
    for i in range(memblock.memory_count):
        if range_start(memory, i) <= pa and pa < range_end(memory, i):
            return phys_to_virt(PhysAddr(pa & ~(PAGE_SIZE - 1)))
    return 0


def frame_index(pa: PhysAddr) -> u64:
    """Number of the frame of *pa*, a readable one, among all frames of memory: holes take no place in an index."""
    before = 0
    for i in range(memblock.memory_count):
        start = range_start(memory, i)
        if start <= pa and pa < range_end(memory, i):
            return before + (pa - start >> PAGE_SHIFT)
        before += range_end(memory, i) - start >> PAGE_SHIFT
    return before


@inline
def is_awaited(pa: PhysAddr) -> bool:
    """Whether the table in the frame of *pa*, which cannot be read, may be there once it is asked for: never here."""
    return False

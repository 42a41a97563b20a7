"""All of physical memory at `page_offset_base` [proposal: part 6].

Each range of memory is mapped with the largest pages that its alignment, its size and the
CPU allow. Memory beyond what the mode has room for is cut off before, and said so. The
kernel's own text and read-only data are mapped here without write permission too: what may
not be written at one address may not be written at another.
"""

from __future__ import annotations

from fivefold.kernel.paging import layout, memblock
from fivefold.kernel.paging.mapping import map_range
from fivefold.kernel.paging.pgtable import KERNEL_RO, KERNEL_RW, max_physmem_bits
from fivefold.metal.lang import noinline, u64
from fivefold.units import PhysAddr, VirtAddr


def max_direct_mapped() -> PhysAddr:
    """MAXMEM: the exclusive end of physical memory that this mode's direct map has room for."""
    return PhysAddr(1 << max_physmem_bits())


def cut_memory(cpu_bits: u64) -> u64:
    """Drop memory that the mode, or the CPU with *cpu_bits* of physical address, cannot reach; return its bytes."""
    return memblock.cut(PhysAddr(min(max_direct_mapped(), 1 << cpu_bits)))


@noinline
def map_memory(top: VirtAddr, largest: u64, protection: u64, start: u64, end: u64) -> u64:
    """Map the parts of memory that lie in [start, end); return how many bytes could not be."""
    failed = 0
    for i in range(memblock.memory_count):
        low = max(start, memblock.range_start(memblock.memory, i))
        high = min(end, memblock.range_end(memblock.memory, i))
        if low < high:
            va = VirtAddr(layout.page_offset_base + low)
            failed += map_range(top, va, PhysAddr(low), high - low, protection, largest)
    return failed


def direct_map_init(top: VirtAddr, largest: u64, read_only: PhysAddr, read_only_end: PhysAddr) -> u64:
    """Map all memory, [read_only, read_only_end) without write permission; return how many bytes could not be."""
    end = memblock.end_of_memory()
    failed = map_memory(top, largest, KERNEL_RW, 0, read_only)
    failed += map_memory(top, largest, KERNEL_RO, read_only, read_only_end)
    return failed + map_memory(top, largest, KERNEL_RW, read_only_end, end)

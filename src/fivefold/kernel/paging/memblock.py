"""Physical memory before there is an allocator: what exists, what is taken [design: memory map in, pages out].

Two lists of ranges, each ascending and without overlap: what the loader says is memory, and
what is reserved. A frame is handed out once, never a reserved one, and never frame 0, whose
address would look like "none". Firmware lies: ranges may overlap, wrap around the end of the
address space, or be empty; `add` takes what is usable of them.
"""

from __future__ import annotations

from typing import Final

from fivefold.kernel.paging.pgtable import clear_table
from fivefold.kernel.paging.phys import PAGE_SIZE, phys_to_virt
from fivefold.metal.lang import buffer, cold, inline, load64, noinline, store64, u64
from fivefold.units import PhysAddr

LOW_MEMORY: Final = 0x100000
"""Below 1 MiB lies what firmware and loaders use, the next loader too; it is mapped, and nothing is allocated there."""

MAX_RANGES: Final = 512
"""As many as the memory map may have rows: each adds at most one range, RAM by itself, other rows by a cut."""
MAX_RESERVED: Final = 1024
RANGE_SIZE: Final = 16
"""A range is its start and its exclusive end."""

memory: Final = buffer((MAX_RANGES + 1) * RANGE_SIZE)
reserved: Final = buffer((MAX_RESERVED + 1) * RANGE_SIZE)

memory_count: u64 = 0
reserved_count: u64 = 0
overflowed: bool = False
"""Whether a list was full. Something was dropped then, so nothing is handed out any more."""

table_pages: u64 = 0
"""Pages handed out for page tables: the ledger that the scan is compared with."""
allocated_bytes: u64 = 0

pool_next: u64 = 0
pool_end: u64 = 0
POOL_PAGES: Final = 16
"""Tables are cut from a small run of pages, so the reserved list does not grow with every table."""

PATTERN: Final = 0x5AA5_C33C_0FF0_6996
lacking: u64 = 0
"""Where the map lists memory that is not there, as it was found out; 0 as long as all was."""

free_tables: u64 = 0
"""The page that `free_table` took back last, 0 without any; its first word leads to the one before."""


@inline
def range_start(ranges: u64, i: u64) -> u64:
    """Start of range *i* of a list."""
    return load64(ranges + RANGE_SIZE * i)


@inline
def range_end(ranges: u64, i: u64) -> u64:
    """Exclusive end of range *i* of a list."""
    return load64(ranges + RANGE_SIZE * i + 8)


@inline
def set_range(ranges: u64, i: u64, start: u64, end: u64) -> None:
    """Write range *i* of a list."""
    store64(ranges + RANGE_SIZE * i, start)
    store64(ranges + RANGE_SIZE * i + 8, end)


def forget() -> None:
    """Empty both lists, to fill them from what the loader says as it is now."""
    global memory_count, reserved_count, overflowed
    memory_count = 0
    reserved_count = 0
    overflowed = False


@noinline
def insert(ranges: u64, count: u64, start: u64, end: u64, most: u64) -> u64:
    """Add [start, end) to a list of *count* ranges, joining what it touches; return the new count.

    If the list has *most* ranges and none of them touches the new one, sets `overflowed` and returns *count*.
    """
    global overflowed
    first = 0
    while first < count and range_end(ranges, first) < start:
        first += 1
    last = first
    while last < count and range_start(ranges, last) <= end:
        start = min(start, range_start(ranges, last))
        end = max(end, range_end(ranges, last))
        last += 1
    if last == first and count >= most:
        overflowed = True
        return count
    return replace_ranges(ranges, count, first, last, start, end)


@noinline
def replace_ranges(ranges: u64, count: u64, first: u64, last: u64, start: u64, end: u64) -> u64:
    """Put one range in place of ranges *first* to *last* (exclusive); return the new count."""
    if last == first:
        for i in range(count - first):
            at = count - i
            set_range(ranges, at, range_start(ranges, at - 1), range_end(ranges, at - 1))
    elif last > first + 1:
        for i in range(last, count):
            to = first + 1 + (i - last)
            set_range(ranges, to, range_start(ranges, i), range_end(ranges, i))
    set_range(ranges, first, start, end)
    return count + 1 - (last - first)


@noinline
def add(start: PhysAddr, size: u64) -> None:
    """Take a range that the loader calls memory, rounded inward to whole pages."""
    global memory_count
    end = start + size
    if end < start:
        end = 0xFFFF_FFFF_FFFF_F000
    first = (start + PAGE_SIZE - 1) & ~(PAGE_SIZE - 1)
    last = end & ~(PAGE_SIZE - 1)
    if first >= start and first < last:
        memory_count = insert(memory, memory_count, first, last, MAX_RANGES)


@inline
def last_page(start: PhysAddr, size: u64) -> u64:
    """End of the pages that [start, start + size) touches; the last page boundary of all if that wraps."""
    end = start + size
    last = end + PAGE_SIZE - 1 & ~(PAGE_SIZE - 1)
    return 0xFFFF_FFFF_FFFF_F000 if end < start or last < end else last


@noinline
def remove(start: PhysAddr, size: u64) -> None:
    """Take [start, start + size) out of memory, rounded outward to pages: what two entries disagree on is not used."""
    global memory_count, overflowed
    if size == 0:
        return
    first = start & ~(PAGE_SIZE - 1)
    last = last_page(start, size)
    i = 0
    while i < memory_count:
        low = range_start(memory, i)
        high = range_end(memory, i)
        if high <= first or low >= last:
            i += 1
        elif low < first and high > last:
            if memory_count >= MAX_RANGES:
                overflowed = True
                return
            memory_count = replace_ranges(memory, memory_count, i, i, low, first)
            set_range(memory, i + 1, last, high)
            i += 2
        elif low < first:
            set_range(memory, i, low, first)
            i += 1
        elif high > last:
            set_range(memory, i, last, high)
            i += 1
        else:
            for k in range(i + 1, memory_count):
                set_range(memory, k - 1, range_start(memory, k), range_end(memory, k))
            memory_count -= 1


@noinline
def reserve(start: PhysAddr, size: u64) -> None:
    """Never hand out any page that [start, start + size) touches."""
    global reserved_count
    if size != 0:
        first = start & ~(PAGE_SIZE - 1)
        reserved_count = insert(reserved, reserved_count, first, last_page(start, size), MAX_RESERVED)


@noinline
def cut(limit: PhysAddr) -> u64:
    """Drop memory from *limit* up; return how many bytes that were."""
    global memory_count
    dropped = 0
    kept = 0
    for i in range(memory_count):
        start = range_start(memory, i)
        end = range_end(memory, i)
        if start < limit:
            set_range(memory, i, start, min(end, limit))
            kept = i + 1
        dropped += end - min(end, max(start, limit))
    memory_count = kept
    return dropped


@noinline
def total() -> u64:
    """Bytes of memory."""
    size = 0
    for i in range(memory_count):
        size += range_end(memory, i) - range_start(memory, i)
    return size


@noinline
def is_memory(start: PhysAddr, size: u64) -> bool:
    """Whether all *size* bytes at *start* are memory, which the direct map has; reserved ranges cover holes too."""
    for i in range(memory_count):
        if range_start(memory, i) <= start and start < range_end(memory, i):
            return size <= range_end(memory, i) - start
    return False


@noinline
def end_of_memory() -> PhysAddr:
    """Exclusive end of the highest range; 0 without memory."""
    if memory_count == 0:
        return PhysAddr(0)
    return PhysAddr(range_end(memory, memory_count - 1))


@noinline
def overlaps_reserved(start: u64, end: u64) -> u64:
    """Exclusive end of a reserved range that meets [start, end), or 0."""
    for i in range(reserved_count):
        if range_start(reserved, i) < end and range_end(reserved, i) > start:
            return range_end(reserved, i)
    return 0


@noinline
def find(size: u64, align: u64, low: PhysAddr, high: PhysAddr) -> PhysAddr:
    """Lowest free place for *size* bytes in [low, high), aligned to a power of two; 0 when there is none."""
    for i in range(memory_count):
        start = max(range_start(memory, i), max(low, PAGE_SIZE))
        end = min(range_end(memory, i), high)
        start = (start + align - 1) & ~(align - 1)
        while start < end and size <= end - start:
            taken = overlaps_reserved(start, start + size)
            if taken == 0:
                return PhysAddr(start)
            start = (taken + align - 1) & ~(align - 1)
    return PhysAddr(0)


floor: u64 = PAGE_SIZE
"""Nothing is handed out below this."""


def use_only_above(limit: PhysAddr) -> None:
    """From now on hand out only what lies above *limit*: what is below is about to be overwritten."""
    global floor, pool_next, pool_end, free_tables
    floor = limit
    pool_next = 0
    pool_end = 0
    free_tables = 0


def keeps(page: u64) -> bool:
    """Whether the free page *page* keeps what is written to it."""
    at = phys_to_virt(PhysAddr(page))
    store64(at, PATTERN)
    kept = load64(at) == PATTERN
    store64(at, ~PATTERN)
    return kept and load64(at) == ~PATTERN


@noinline
def is_there(start: PhysAddr, size: u64) -> bool:
    """Whether the first and the last page of free memory keep what is written: a map may list more than there is."""
    return keeps(start & ~(PAGE_SIZE - 1)) and keeps(start + size - 1 & ~(PAGE_SIZE - 1))


@noinline
def allocate(size: u64, align: u64) -> PhysAddr:
    """Take *size* bytes (whole pages), not cleared; 0 when there is none, or when it cannot be noted as taken.

    Nor is anything handed out that is not there, which `lacking` then tells.
    """
    global allocated_bytes, lacking
    place = find(size, align, PhysAddr(floor), end_of_memory())
    if place == 0:
        return place
    reserve(place, size)
    if overflowed:
        return PhysAddr(0)
    if not is_there(place, size):
        lacking = place
        return PhysAddr(0)
    allocated_bytes += size
    return place


@noinline
def find_below(size: u64, limit: PhysAddr) -> PhysAddr:
    """Highest free place for *size* bytes (whole pages) below *limit*; 0 when there is none."""
    at = u64(limit - size)
    while at >= PAGE_SIZE and at < limit:
        if find(size, PAGE_SIZE, PhysAddr(at), PhysAddr(at + size)) != 0:
            return PhysAddr(at)
        at -= PAGE_SIZE
    return PhysAddr(0)


@cold
def allocate_table() -> PhysAddr:
    """Take a page for a page table, cleared; 0 when there is none."""
    global table_pages
    table = PhysAddr(free_tables)
    if table != 0:
        take_free_table()
    else:
        table = take_pool_page()
        if table == 0:
            return table
    table_pages += 1
    clear_table(phys_to_virt(table))
    return table


def take_free_table() -> None:
    """Take the first page off the list of free tables, which is not empty."""
    global free_tables
    free_tables = load64(phys_to_virt(PhysAddr(free_tables)))


def take_pool_page() -> PhysAddr:
    """A page that was never a table; 0 when there is no memory."""
    global pool_next, pool_end
    if pool_next == pool_end:
        pool_next = allocate(POOL_PAGES * PAGE_SIZE, PAGE_SIZE)
        pool_end = pool_next + POOL_PAGES * PAGE_SIZE
        if pool_next == 0:
            pool_next = allocate(PAGE_SIZE, PAGE_SIZE)
            pool_end = pool_next + PAGE_SIZE
        if pool_next == 0:
            pool_end = 0
            return PhysAddr(0)
    page = PhysAddr(pool_next)
    pool_next += PAGE_SIZE
    return page


@noinline
def free_table(table: PhysAddr) -> None:
    """Take back a page that `allocate_table` gave.

    No entry leads to it any more, and no CPU has it in its paging-structure caches: the caller has seen to both.
    """
    global free_tables, table_pages
    store64(phys_to_virt(table), free_tables)
    free_tables = table
    table_pages -= 1


data_pages: u64 = 0
"""Pages handed out by `allocate_page`: the other half of the ledger."""


@noinline
def allocate_page() -> PhysAddr:
    """Take a page of memory for data, not cleared; 0 when there is none."""
    global data_pages
    page = PhysAddr(free_tables)
    if page != 0:
        take_free_table()
    else:
        page = take_pool_page()
    if page != 0:
        data_pages += 1
    return page


@noinline
def free_page(page: PhysAddr) -> None:
    """Take back a page that `allocate_page` gave."""
    global free_tables, data_pages
    store64(phys_to_virt(page), free_tables)
    free_tables = page
    data_pages -= 1

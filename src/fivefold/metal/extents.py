"""Physical memory for native code on the host: several extents, each bounds-checked.

A program reaches the memory of a guest through `phys_to_page` alone, so no hostile
image can make it touch anything else. The extents are records of four words in
ascending order; the one used last is tried first, since a walk stays in one for long.

A subset module, but for `attach`, which gives an instance its extents.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from fivefold.errors import MemoryReadError
from fivefold.metal.lang import buffer, cold, inline, load64, u64
from fivefold.metal.run.instance import Instance
from fivefold.units import PhysAddr, VirtAddr, hex64

_PAGE: Final = 4096
_RECORD: Final = 32
_CHUNKS: Final = 1024
_MIXED: Final = 0xFFFF_FFFF_FFFF_FFFF
"""Not in one extent; a delta that is the same by chance is searched for, and found."""
NO_FRAME: Final = 0xFFFF_FFFF_FFFF_FFFF
"""What `frame_index` returns outside all extents."""

table: u64 = 0
"""Native address of the records: start, limit (size - 4095), delta (native - physical), index base."""

count: u64 = 0
"""Number of records."""

base: u64 = 0
"""Physical start of the first extent."""

chunks: u64 = 0
"""Native address of the guide to the records: memory from `base` on is cut into chunks of equal size, each with two
words. One is how many extents start at or before its start, so that a search has next to nothing to do; the other the
delta of the extent that has all of it, or `_MIXED`. Behind the last chunk are the words of the end."""

chunk_count: u64 = 0
"""Number of chunks: 0 where there is no memory at all."""

chunk_shift: u64 = 12
"""Binary logarithm of a chunk's size."""

frames: u64 = 0
"""Pages in all extents together: one more than the highest `frame_index`."""

last_start: u64 = 0
last_limit: u64 = 0
last_delta: u64 = 0
last_index: u64 = 0

misses: u64 = 0
"""How often `phys_to_virt` was asked for an address outside all extents."""

first_miss: u64 = 0
"""The first such address."""

STRAY: Final = buffer(8192, align=4096)
"""What `phys_to_virt` points at for such an address: two pages, for accesses that cross into a second."""


@inline
def record_of(page: u64) -> u64:
    """Return the record of the extent that holds the page at physical *page*, or 0."""
    chunk = (page - base) >> chunk_shift
    if chunk >= chunk_count:
        return 0
    low = load64(chunks + 16 * chunk)
    high = load64(chunks + 16 * chunk + 16)
    while low < high:
        middle = (low + high) >> 1
        if load64(table + 32 * middle) <= page:
            low = middle + 1
        else:
            high = middle
    # The first extent starts at `base`, so there is one at or before this page.
    record = table + 32 * low - 32
    if page - load64(record) < load64(record + 8):
        return record
    return 0


@inline
def any_page(pa: PhysAddr) -> u64:
    """Like `phys_to_page`, for unrelated addresses: the extent that was used last is not tried first."""
    chunk = (pa - base) >> chunk_shift
    if chunk >= chunk_count:
        return 0
    delta = load64(chunks + 16 * chunk + 8)
    if delta != _MIXED:
        return pa + delta
    return searched_page(pa)


@cold
def searched_page(pa: PhysAddr) -> u64:
    """`any_page` in a chunk that no extent has alone."""
    record = record_of(pa - (pa & 4095))
    if record == 0:
        return 0
    return pa + load64(record + 16)


@cold
def select(page: u64) -> bool:
    """Make the extent that holds the page at physical *page* the last one; false if there is none."""
    global last_start, last_limit, last_delta, last_index
    record = record_of(page)
    if record == 0:
        return False
    last_start = load64(record)
    last_limit = load64(record + 8)
    last_delta = load64(record + 16)
    last_index = load64(record + 24)
    return True


@inline
def phys_to_page(pa: PhysAddr) -> u64:
    """Return the native address of *pa*, or 0 if the 4 KiB page that holds it is not readable.

    Valid up to the end of that page; neighbouring pages may lie elsewhere.
    """
    page = pa - (pa & 4095)
    if page - last_start < last_limit:
        return pa + last_delta
    if select(page):
        return pa + last_delta
    return 0


@inline
def frame_index(pa: PhysAddr) -> u64:
    """Return the number of the page that holds *pa* among all pages of all extents, or `NO_FRAME`."""
    page = pa - (pa & 4095)
    if page - last_start < last_limit or select(page):
        return last_index + ((page - last_start) >> 12)
    return NO_FRAME


@cold
def stray(pa: u64) -> u64:
    """Note an address outside all extents; return a harmless one with the same offset in its page."""
    global misses, first_miss
    if misses == 0:
        first_miss = pa
    misses += 1
    return STRAY + (pa & 4095)


@inline
def phys_to_virt(pa: PhysAddr) -> VirtAddr:
    """Return the native address of *pa*; outside all extents that of a stray page, counted in `misses`.

    It replaces the kernel's conversion on the host. The caller of a program looks at `misses`
    afterwards, or calls `check_misses`.
    """
    page = pa - (pa & 4095)
    # Not through `phys_to_page`: testing its result for 0 at every level slows down mapping page by page.
    if page - last_start < last_limit or select(page):
        return VirtAddr(pa + last_delta)
    return VirtAddr(stray(pa))


@dataclass(frozen=True)
class Attachment:
    """The memory that `attach` mapped."""

    instance: Instance
    addresses: tuple[int, ...]

    def close(self) -> None:
        """Give the buffers back; the program then sees no physical memory."""
        attach(self.instance, [])
        for address in self.addresses:
            self.instance.unmap(address)


def attach(instance: Instance, banks: Sequence[tuple[int, Any]]) -> Attachment:
    """Give *instance* the physical memory in *banks*: (physical start, buffer), in any order.

    Only whole pages are seen; what lies before the first or behind the last page boundary of a
    bank is not. `ValueError` if banks overlap. A program that uses none of this has no such memory.
    """
    records, addresses, index, seen = bytearray(), [], 0, 0
    for start, data in sorted(banks, key=lambda bank: bank[0]):
        view = memoryview(data).cast("B")
        first = -(-start // _PAGE) * _PAGE
        size = (start + len(view) - first) // _PAGE * _PAGE
        if start < seen:
            raise ValueError(f"banks overlap at {hex64(start)}")
        seen = start + len(view)
        if size > 0:
            address = instance.map(data)
            addresses.append(address)
            delta = (address - start) & (1 << 64) - 1
            records += struct.pack("<4Q", first, size - 4095, delta, index)
            index += size // _PAGE
    if records:
        addresses += [instance.map(_guide(instance, records, seen)), instance.map(records)]
    else:
        instance.set(f"{__name__}.chunk_count", 0)
    for name in ("last_start", "last_limit", "last_delta", "last_index", "misses", "first_miss"):
        instance.set(f"{__name__}.{name}", 0)
    instance.set(f"{__name__}.table", addresses[-1] if records else 0)
    instance.set(f"{__name__}.chunks", addresses[-2] if records else 0)
    instance.set(f"{__name__}.count", len(records) // _RECORD)
    instance.set(f"{__name__}.frames", index)
    return Attachment(instance, tuple(addresses))


def _guide(instance: Instance, records: bytes | bytearray, end: int) -> bytearray:
    """The words of the chunks, with `base`, `chunk_shift` and `chunk_count` set; *end* is that of all memory."""
    extents = list(struct.iter_unpack("<4Q", records))
    starts = [start for start, *_ in extents]
    base = starts[0]
    shift = max(12, ((end - base - 1) // _CHUNKS).bit_length())
    instance.set(f"{__name__}.base", base)
    instance.set(f"{__name__}.chunk_shift", shift)
    instance.set(f"{__name__}.chunk_count", _CHUNKS)
    guide = bytearray()
    for chunk in range(_CHUNKS + 1):
        first = base + (chunk << shift)
        low = bisect_right(starts, first)
        start, limit, delta, _ = extents[low - 1]
        whole = first + (1 << shift) <= start + limit + _PAGE - 1
        guide += struct.pack("<2Q", low, delta if whole else _MIXED)
    return guide


def check_misses(instance: Instance) -> None:
    """Raise `MemoryReadError` if the program touched physical memory that is not there."""
    if instance.get(f"{__name__}.misses"):
        raise MemoryReadError(instance.get(f"{__name__}.first_miss"), 1, "the attached memory")

"""What the scan finds: ranges of addresses, merged exactly, in memory that the caller gives.

A range is six words::

    start   first address, canonical            flags  the leaf entry's bits in the mask; of a malformed
    last    last address, inclusive                    entry also the reserved bits; of a repeat the number
    phys    the address that the first                 of the walk that it repeats
            entry holds                         info   kind, level and effective rights
                                                jump   where physical memory stops being contiguous, or 0

The last range stays open: ranges that continue it are merged into it, until one does not.
Ends are inclusive, so that nothing wraps at the top of the address space.
"""

from __future__ import annotations

from typing import Final

from fivefold.metal.lang import inline, load64, noinline, store64, u64
from fivefold.units import PhysAddr, VirtAddr

START: Final = 0
LAST: Final = 8
PHYS: Final = 16
FLAGS: Final = 24
INFO: Final = 32
JUMP: Final = 40
RANGE_SIZE: Final = 48

MAPPED: Final = 1
MALFORMED: Final = 2
"""A present entry with a reserved bit set; `phys` is what it holds as its address."""
UNREADABLE: Final = 3
"""The entry points to a table, at `phys`, that is not in memory. `level` is the missing table's."""
REPEAT: Final = 4
"""The table at `phys`, of this level, is mapped again, once or several times in a row."""

KIND_MASK: Final = 7
LEVEL_SHIFT: Final = 4
RIGHTS_SHIFT: Final = 8

WRITE: Final = 1
USER: Final = 2
EXECUTE: Final = 4
ALL_RIGHTS: Final = WRITE | USER | EXECUTE

IGNORE: Final = 0
NOTE: Final = 1
BREAK: Final = 2

contiguity: u64 = BREAK
"""Where physical addresses are not contiguous: `IGNORE` it, `NOTE` it in `jump`, or `BREAK` the range."""

records: u64 = 0
capacity: u64 = 0
count: u64 = 0
"""Ranges in `records`, the open one included."""
base: u64 = 0
"""Number of the first range in `records`: how many were taken out before it."""

next_start: u64 = 1
"""The address after the open range; 1, which nothing starts at, while there is none."""
next_phys: u64 = 0
"""The physical address that would continue the open range."""

UNKNOWN: Final = (1 << 64) - 1
"""In `next_phys`: no address continues the open range."""


def begin(buffer: u64, size: u64) -> None:
    """Write to *buffer*, which has room for *size* ranges (two or more)."""
    global records, capacity, count, base, next_start
    records = buffer
    capacity = size
    count = 0
    base = 0
    next_start = 1


def grow(buffer: u64, size: u64) -> None:
    """Go on in a larger buffer, to which the caller has copied all ranges."""
    global records, capacity
    records = buffer
    capacity = size


def drain() -> u64:
    """Take out all ranges but the open one, which becomes the first; return how many were taken.

    What is taken must have been read before. Tables whose ranges are gone are walked again when they are met again.
    """
    global count, base
    if count < 2:
        return 0
    taken = count - 1
    opened = records + RANGE_SIZE * taken
    for i in range(RANGE_SIZE // 8):
        store64(records + 8 * i, load64(opened + 8 * i))
    base += taken
    count = 1
    return taken


@inline
def room() -> u64:
    """Ranges that can still be written."""
    return capacity - count


@inline
def open_number() -> u64:
    """Number of the open range; of the first one while there is none."""
    return base + (count - 1 if count != 0 else 0)


@inline
def address_of_range(number: u64) -> u64:
    """Address of the range with this number; it is still there when that is `base` or more."""
    return records + RANGE_SIZE * (number - base)


@inline
def info_of(kind: u64, level: u64, rights: u64) -> u64:
    """The info word."""
    return kind | level << LEVEL_SHIFT | rights << RIGHTS_SHIFT


@inline
def is_contiguous(opened: u64, phys: PhysAddr, info: u64) -> bool:
    """Whether the open range may continue at *phys*: info and flags are the same already."""
    if info & KIND_MASK == MAPPED:
        return contiguity != BREAK or phys == next_phys
    return info & KIND_MASK != UNREADABLE or phys == load64(opened + PHYS)


@inline
def emit(start: VirtAddr, last: VirtAddr, phys: PhysAddr, flags: u64, info: u64, jump: u64) -> None:
    """Merge with the open range, or begin another one; the caller has made sure that there is room.

    *jump* is the last address inside at which physical addresses are not contiguous, or 0.
    """
    global next_start, next_phys
    opened = records + RANGE_SIZE * (count - 1)
    if (
        start == next_start
        and info == load64(opened + INFO)
        and flags == load64(opened + FLAGS)
        and is_contiguous(opened, phys, info)
    ):
        extend(opened, start, last, phys, info, jump)
    else:
        append(start, last, phys, flags, info, jump)
    next_start = last + 1
    next_phys = phys + (last - start + 1) if jump == 0 else UNKNOWN


@inline
def extend(opened: u64, start: VirtAddr, last: VirtAddr, phys: PhysAddr, info: u64, jump: u64) -> None:
    """Move the end of the open range."""
    store64(opened + LAST, last)
    if contiguity == NOTE and info & KIND_MASK == MAPPED:
        if jump != 0:
            store64(opened + JUMP, jump)
        elif phys != next_phys:
            store64(opened + JUMP, start)


@inline
def append(start: VirtAddr, last: VirtAddr, phys: PhysAddr, flags: u64, info: u64, jump: u64) -> None:
    """Close the open range and begin another."""
    global count
    at = records + RANGE_SIZE * count
    count += 1
    store64(at + START, start)
    store64(at + LAST, last)
    store64(at + PHYS, phys)
    store64(at + FLAGS, flags)
    store64(at + INFO, info)
    store64(at + JUMP, jump)


@noinline
def record(start: VirtAddr, last: VirtAddr, phys: PhysAddr, flags: u64, info: u64, jump: u64) -> None:
    """Like `emit`, but not inlined; for callers outside the inner loop."""
    emit(start, last, phys, flags, info, jump)


def append_moved(number: u64, end: u64, delta: u64) -> None:
    """Append copies of ranges *number* to *end* (exclusive), moved by *delta*; they merge neither there nor here."""
    global count, next_start
    at = address_of_range(number)
    to = records + RANGE_SIZE * count
    for _i in range(end - number):
        jump = load64(at + JUMP)
        store64(to + START, load64(at + START) + delta)
        store64(to + LAST, load64(at + LAST) + delta)
        store64(to + PHYS, load64(at + PHYS))
        store64(to + FLAGS, load64(at + FLAGS))
        store64(to + INFO, load64(at + INFO))
        store64(to + JUMP, jump + delta if jump != 0 else 0)
        at += RANGE_SIZE
        to += RANGE_SIZE
    count += end - number
    # Nor does the range that comes next merge with the last of these: it is recorded as a new one.
    next_start = 1

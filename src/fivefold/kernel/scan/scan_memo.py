"""Tables that were walked before: their ranges are copied instead of walking them again.

A walk is remembered by where the table lies, its level, and the rights on the way to it;
when these three are equal, the ranges are equal but for their addresses. Each frame has a
word in an index, and the walks of a frame form a chain from there. Nothing here compares
the contents of tables: equal contents prove nothing, equal addresses do.

Ranges merge across the ends of a table, so a walk knows more than the numbers of its first
and last range: `HEAD` is the physical address at its very start, wherever the range that
holds it begins, and `TAIL_JUMP` is `jump` of the last range when the walk was over. With
these, ranges are cut out of their surroundings and go through the same merging again.
"""

from __future__ import annotations

from typing import Final

from fivefold.kernel.paging.pgtable import level_shift
from fivefold.kernel.scan import scan_ranges
from fivefold.kernel.scan.scan_ranges import (
    FLAGS,
    INFO,
    JUMP,
    LAST,
    PHYS,
    START,
    address_of_range,
    append_moved,
    open_number,
    record,
)
from fivefold.metal.lang import inline, load32, load64, store32, store64, u64
from fivefold.units import PhysAddr, VirtAddr

KEY: Final = 0
"""Low half: level, rights, `PARTIAL`. High half: number of the next walk of this frame, plus 1."""
ORIGIN: Final = 8
"""The address that the walk began at."""
FIRST: Final = 16
END: Final = 24
"""Numbers of the range that was open at its start, and at its end."""
HEAD: Final = 32
TAIL_JUMP: Final = 40
MAPPED_BYTES: Final = 48
WX_BYTES: Final = 56
WALK_SIZE: Final = 64

PARTIAL: Final = 1 << 8
"""In a key: only a part of the table was walked, so the walk is not replayed anywhere else."""

index: u64 = 0
index_size: u64 = 0
walks: u64 = 0
walks_capacity: u64 = 0
walks_count: u64 = 0


def begin(index_words: u64, frames: u64, walk_records: u64, size: u64) -> None:
    """Remember up to *size* walks of frames with a number below *frames*; all of the index is zero.

    An index word has four bytes. Without any room the result is the same; shared tables are then walked each time.
    """
    global index, index_size, walks, walks_capacity, walks_count
    index = index_words
    index_size = frames
    walks = walk_records
    walks_capacity = min(size, (1 << 32) - 1)
    walks_count = 0


@inline
def chain(frame: u64) -> u64:
    """Number of the first walk of *frame*, plus 1; 0 if there was none."""
    return load32(index + 4 * frame) if frame < index_size else 0


@inline
def walk_at(link: u64) -> u64:
    """Address of the walk with number *link* - 1."""
    return walks + WALK_SIZE * (link - 1)


@inline
def walk_number(walk: u64) -> u64:
    """Number of the walk at *walk*."""
    return (walk - walks) // WALK_SIZE


@inline
def key_of(level: u64, rights: u64) -> u64:
    """Key of a walk of a whole table."""
    return level | rights << 4


def find(link: u64, key: u64) -> u64:
    """Address of the walk with this key in the chain from *link* on, or 0."""
    while link != 0:
        walk = walk_at(link)
        if load64(walk + KEY) & 0xFFFF_FFFF == key:
            return walk
        link = load64(walk + KEY) >> 32
    return 0


def met_at(link: u64, level: u64) -> bool:
    """Whether the chain from *link* on has a walk at this level."""
    while link != 0:
        key = load64(walk_at(link) + KEY)
        if key & 15 == level:
            return True
        link = key >> 32
    return False


def remember(frame: u64, key: u64) -> u64:
    """Address of a new walk of *frame*, or 0 when there is no room for it."""
    global walks_count
    if frame >= index_size or walks_count == walks_capacity:
        return 0
    walk = walks + WALK_SIZE * walks_count
    walks_count += 1
    store64(walk + KEY, key | load32(index + 4 * frame) << 32)
    store32(index + 4 * frame, walks_count)
    return walk


@inline
def open_walk(walk: u64, origin: VirtAddr) -> None:
    """Note where a walk begins."""
    store64(walk + ORIGIN, origin)
    store64(walk + FIRST, open_number())


@inline
def close_walk(walk: u64, head: PhysAddr, mapped: u64, writable_executable: u64) -> None:
    """Note what a walk found."""
    store64(walk + END, open_number())
    store64(walk + HEAD, head)
    store64(walk + TAIL_JUMP, load64(address_of_range(open_number()) + JUMP))
    store64(walk + MAPPED_BYTES, mapped)
    store64(walk + WX_BYTES, writable_executable)


@inline
def is_kept(walk: u64) -> bool:
    """Whether the ranges of this walk are still in the buffer."""
    return load64(walk + FIRST) >= scan_ranges.base


@inline
def ranges_of(walk: u64) -> u64:
    """Upper bound of the ranges that a replay of this walk writes."""
    return load64(walk + END) - load64(walk + FIRST) + 1


def replay(walk: u64, level: u64, start: VirtAddr) -> None:
    """Copy the ranges of *walk* for the same table at *start*; there is room for `ranges_of` it.

    The first and last ranges may reach beyond the table in the walk and are cut to it; they, and the second, go
    through `record`, which may merge them with the open range. The ranges between are copied as they are.
    """
    # Addresses wrap at 64 bits, so a table that is replayed below its first place needs no case of its own.
    delta = start - load64(walk + ORIGIN)
    number = load64(walk + FIRST)
    end = load64(walk + END)
    replay_outer(walk, level, number, delta)
    # `FIRST` was the open range when the walk began. It may have ended before the table: then nothing of it was
    # recorded just now, and the second range is the one that may merge.
    if number < end:
        replay_outer(walk, level, number + 1, delta)
    if number + 2 < end:
        append_moved(number + 2, end, delta)
    if number + 1 < end:
        replay_outer(walk, level, end, delta)


def replay_outer(walk: u64, level: u64, number: u64, delta: u64) -> None:
    """Write the part of range *number* that *walk* found, moved by *delta*."""
    at = address_of_range(number)
    origin = load64(walk + ORIGIN)
    low = max(load64(at + START), origin)
    high = min(load64(at + LAST), origin + (1 << level_shift(level + 1)) - 1)
    if low <= high:
        # The last range may have grown after the walk, and `jump` with it; `TAIL_JUMP` is as it was at the end.
        jump = load64(walk + TAIL_JUMP) if number == load64(walk + END) else load64(at + JUMP)
        # A range that begins before the table holds the physical address of its own start, not of the table's.
        phys = PhysAddr(load64(walk + HEAD) if load64(at + START) < origin else load64(at + PHYS))
        moved = jump + delta if jump > low else 0
        record(VirtAddr(low + delta), VirtAddr(high + delta), phys, load64(at + FLAGS), load64(at + INFO), moved)

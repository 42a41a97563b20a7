"""Tables met before: what was found under them is written again without walking them again.

A walk is remembered by where the table lies, its level, and the rights on the way to it;
with these three equal, what lies under it is equal. Each frame has a word in an index, and
the walks of a frame hang on it as a chain. Nothing here looks at what a table contains.

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
    tell,
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
"""In a key: only a part of the table was walked, so it answers for no other place."""

index: u64 = 0
index_size: u64 = 0
walks: u64 = 0
walks_capacity: u64 = 0
walks_count: u64 = 0


def begin(index_words: u64, frames: u64, walk_records: u64, size: u64) -> None:
    """Remember up to *size* walks of frames with a number below *frames*; all of the index is zero.

    An index word has four bytes. With no room at all the scan is right too, only slower where tables are shared.
    """
    global index, index_size, walks, walks_capacity, walks_count
    index = index_words
    index_size = frames
    walks = walk_records
    walks_capacity = min(size, (1 << 32) - 1)
    walks_count = 0


@inline
def chain(frame: u64) -> u64:
    """Number of the first walk of *frame*, plus 1; 0 when it was never met."""
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
    """Most ranges that a replay of this walk writes."""
    return load64(walk + END) - load64(walk + FIRST) + 1


def replay(walk: u64, level: u64, start: VirtAddr) -> None:
    """Write the ranges of *walk* again for the same table at *start*; there is room for `ranges_of` it.

    Only the outer ones can be cut, or merge: those between are copied. The first may lie before the table
    altogether, and then it is the second that meets what is open.
    """
    delta = start - load64(walk + ORIGIN)
    number = load64(walk + FIRST)
    end = load64(walk + END)
    replay_outer(walk, level, number, delta)
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
        jump = load64(walk + TAIL_JUMP) if number == load64(walk + END) else load64(at + JUMP)
        phys = PhysAddr(load64(walk + HEAD) if load64(at + START) < origin else load64(at + PHYS))
        moved = jump + delta if jump > low else 0
        tell(VirtAddr(low + delta), VirtAddr(high + delta), phys, load64(at + FLAGS), load64(at + INFO), moved)

"""Where a run of like entries ends in a table: the inner loops of the scan.

Most of a table is one run, or a few; some tables are scattered leaves. So the entry after
the first is tried alone, and then eight and after that sixteen entries are compared at once:
their differences are collected with `|`, and only a block that has one is looked at entry by
entry. Between scattered leaves, absent entries are looked at by eight. Rights, malformedness
and flags are constant within a run, so the caller judges them once for it.

All loops run to the end of the table. They return more than `start`, and no more than 512,
even if a live guest changes the table under them.
`ahead` is a table that will be read next, or the same one: each line of it is fetched while the
same line of this one is compared, which hides the latency of tables that are scattered over memory.
"""

from __future__ import annotations

from typing import Final

from fivefold.kernel.paging.pgtable import FRAME_MASK, PRESENT, PTRS_PER_TABLE, level_shift
from fivefold.kernel.paging.phys import PAGE_SIZE
from fivefold.kernel.scan import scan_ranges
from fivefold.kernel.scan.scan_ranges import IGNORE
from fivefold.metal.lang import ctz, inline, load64, noinline, prefetch, u64

BLOCK: Final = 8
LAST_PAIR: Final = PTRS_PER_TABLE - 2 * BLOCK


prefetching: bool = False
"""Whether to fetch the table ahead; a loss where memory is mapped only when it is touched. Bound in each build."""


@noinline
def first_difference(at: u64, entry: u64, step: u64, mask: u64) -> u64:
    """Which of eight entries from *at* on is the first to break the run; 8 if a live guest has changed it back."""
    low = u64((load64(at) ^ entry) & mask != 0)
    low |= u64((load64(at + 8) ^ (entry + step)) & mask != 0) << 1
    low |= u64((load64(at + 16) ^ (entry + 2 * step)) & mask != 0) << 2
    low |= u64((load64(at + 24) ^ (entry + 3 * step)) & mask != 0) << 3
    high = u64((load64(at + 32) ^ (entry + 4 * step)) & mask != 0) << 4
    high |= u64((load64(at + 40) ^ (entry + 5 * step)) & mask != 0) << 5
    high |= u64((load64(at + 48) ^ (entry + 6 * step)) & mask != 0) << 6
    high |= u64((load64(at + 56) ^ (entry + 7 * step)) & mask != 0) << 7
    return ctz(low | high | 1 << 8)


@noinline
def first_present(at: u64) -> u64:
    """Which of eight entries from *at* on is the first that is present; 8 if a live guest has cleared it again."""
    low = load64(at) & 1 | (load64(at + 8) & 1) << 1 | (load64(at + 16) & 1) << 2 | (load64(at + 24) & 1) << 3
    high = load64(at + 32) & 1 | (load64(at + 40) & 1) << 1 | (load64(at + 48) & 1) << 2 | (load64(at + 56) & 1) << 3
    return ctz(low | high << 4 | 1 << 8)


@inline
def absent_end(table: u64, start: u64, ahead: u64, near: bool) -> u64:
    """Index after *start*, which is absent, of the first entry that is present; 512 when there is none.

    *near*: a present entry is likely among the next eight, at any of them.
    """
    i = start + 1
    if near and start < LAST_PAIR:
        found = first_present(table + 8 * i)
        if found != BLOCK:
            return i + found
    elif i == PTRS_PER_TABLE or load64(table + 8 * i) & PRESENT != 0:
        return i
    if start >= LAST_PAIR:
        return short_end(table, i + 1, 0, 0, PRESENT)
    i = min(i + 1, LAST_PAIR)
    while True:
        at = table + 8 * i
        if prefetching:
            prefetch(ahead + 8 * i)
            prefetch(ahead + 8 * i + 64)
        low = load64(at) | load64(at + 8) | load64(at + 16) | load64(at + 24)
        low |= load64(at + 32) | load64(at + 40) | load64(at + 48) | load64(at + 56)
        high = load64(at + 64) | load64(at + 72) | load64(at + 80) | load64(at + 88)
        high |= load64(at + 96) | load64(at + 104) | load64(at + 112) | load64(at + 120)
        if (low | high) & PRESENT != 0:
            # Which half is not predictable, so it is computed: 0, or 8 when the first half has none.
            half = (low & PRESENT ^ PRESENT) * BLOCK
            return i + half + first_present(at + 8 * half)
        if i == LAST_PAIR:
            return PTRS_PER_TABLE
        i = min(i + 2 * BLOCK, LAST_PAIR)


@inline
def run_end(table: u64, start: u64, entry: u64, level: u64, mask: u64, ahead: u64) -> u64:
    """Index after the run of leaves at *level* that begins with *entry*, entry *start*."""
    if scan_ranges.contiguity == IGNORE:
        return same_end(table, start, entry, mask, ahead)
    span = 1 << level_shift(level)
    frame_bits = FRAME_MASK & ~(span - 1)
    # Scattered leaves are runs of one entry: find that out before computing what only longer runs need.
    if start + 1 == PTRS_PER_TABLE or (load64(table + 8 * start + 8) ^ (entry + span)) & (mask | frame_bits) != 0:
        return start + 1
    # The run ends where adding up frames would carry out of the frame field, which is where physical memory ends.
    fits = (FRAME_MASK + PAGE_SIZE - (entry & frame_bits)) >> level_shift(level)
    return min(following_end(table, start, entry, span, mask | frame_bits, ahead), start + fits)


@inline
def same_end(table: u64, start: u64, entry: u64, mask: u64, ahead: u64) -> u64:
    """Index after *start* of the first entry that differs from *entry* in *mask*; 512 when there is none."""
    return following_end(table, start, entry, 0, mask, ahead)


@inline
def following_end(table: u64, start: u64, entry: u64, step: u64, mask: u64, ahead: u64) -> u64:
    """Like `same_end`, where each entry must be *step* more than the one before (physically contiguous)."""
    i = start + 1
    entry += step
    if i == PTRS_PER_TABLE or (load64(table + 8 * i) ^ entry) & mask != 0:
        return i
    base = entry - i * step
    if start >= LAST_PAIR:
        return short_end(table, i + 1, base, step, mask)
    # Many runs end in the first block, so it is compared alone; longer ones are compared two blocks at a time.
    at = table + 8 * (i + 1)
    entry += step
    if block_difference(at, entry, step) & mask != 0:
        return i + 1 + first_difference(at, entry, step, mask)
    i = min(i + 1 + BLOCK, LAST_PAIR)
    while True:
        at = table + 8 * i
        if prefetching:
            prefetch(ahead + 8 * i)
            prefetch(ahead + 8 * i + 64)
        entry = base + i * step
        low = block_difference(at, entry, step) & mask
        high = block_difference(at + 8 * BLOCK, entry + BLOCK * step, step) & mask
        if low | high != 0:
            # Which block is not predictable, so it is computed: 0, or 8 when the first has none.
            half = BLOCK * u64(low == 0)
            return i + half + first_difference(at + 8 * half, entry + half * step, step, mask)
        if i == LAST_PAIR:
            return PTRS_PER_TABLE
        # The last pair may begin before `i` so as to end with the table; it repeats entries of this run only.
        i = min(i + 2 * BLOCK, LAST_PAIR)


@inline
def block_difference(at: u64, entry: u64, step: u64) -> u64:
    """The bits in which any of eight entries from *at* on differs from the run that has *entry* there."""
    low = load64(at) ^ entry | load64(at + 8) ^ (entry + step)
    low |= load64(at + 16) ^ (entry + 2 * step) | load64(at + 24) ^ (entry + 3 * step)
    high = load64(at + 32) ^ (entry + 4 * step) | load64(at + 40) ^ (entry + 5 * step)
    high |= load64(at + 48) ^ (entry + 6 * step) | load64(at + 56) ^ (entry + 7 * step)
    return low | high


@noinline
def short_end(table: u64, i: u64, base: u64, step: u64, mask: u64) -> u64:
    """The rest of a run that begins in the last block, where eight entries would reach back before it."""
    while i < PTRS_PER_TABLE and (load64(table + 8 * i) ^ (base + i * step)) & mask == 0:
        i += 1
    return i

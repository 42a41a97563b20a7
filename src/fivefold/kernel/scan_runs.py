"""Where a run of like entries ends in a table: the inner loops of the scan.

Most of a table is one run, or a few; some tables are scattered leaves. So the entry after
the first is tried alone, and then eight entries are compared at once: their differences
are collected with `|`, and only a block that has one is looked at entry by entry. Rights,
malformedness and flags are constant within a run, so the caller judges them once for it.

All loops run to the end of the table and are the same for absent entries (`entry` 0 and
`mask` P). They return more than `start` even if a live guest changes the table under them.
`ahead`, if not 0, is a table that will be read next: each line of it is fetched while the
same line of this one is compared, so that tables scattered over memory are not waited for.
"""

from __future__ import annotations

from typing import Final

from fivefold.kernel.pgtable import PTRS_PER_TABLE
from fivefold.metal.lang import ctz, inline, load64, prefetch, u64

BLOCK: Final = 8
LAST_BLOCK: Final = PTRS_PER_TABLE - BLOCK


@inline
def first_of(d0: u64, d1: u64, d2: u64, d3: u64, d4: u64, d5: u64, d6: u64, d7: u64) -> u64:
    """Index of the first of eight words that is not zero."""
    low = u64(d0 != 0) | u64(d1 != 0) << 1 | u64(d2 != 0) << 2 | u64(d3 != 0) << 3
    high = u64(d4 != 0) << 4 | u64(d5 != 0) << 5 | u64(d6 != 0) << 6 | u64(d7 != 0) << 7
    return ctz(low | high)


@inline
def next_block(i: u64, start: u64) -> u64:
    """Where to compare the next eight: at *i*, or at the last block when that reaches back over the run only."""
    return LAST_BLOCK if i > LAST_BLOCK and start < LAST_BLOCK else i


@inline
def same_end(table: u64, start: u64, entry: u64, mask: u64, ahead: u64) -> u64:
    """Index after *start* of the first entry that differs from *entry* in *mask*; 512 when there is none."""
    i = start + 1
    if i == PTRS_PER_TABLE or (load64(table + 8 * i) ^ entry) & mask != 0:
        return i
    i = next_block(i + 1, start)
    while i <= LAST_BLOCK:
        at = table + 8 * i
        if ahead != 0:
            prefetch(ahead + 8 * i)
        d0 = (load64(at) ^ entry) & mask
        d1 = (load64(at + 8) ^ entry) & mask
        d2 = (load64(at + 16) ^ entry) & mask
        d3 = (load64(at + 24) ^ entry) & mask
        d4 = (load64(at + 32) ^ entry) & mask
        d5 = (load64(at + 40) ^ entry) & mask
        d6 = (load64(at + 48) ^ entry) & mask
        d7 = (load64(at + 56) ^ entry) & mask
        if d0 | d1 | d2 | d3 | d4 | d5 | d6 | d7 != 0:
            return i + first_of(d0, d1, d2, d3, d4, d5, d6, d7)
        if i == LAST_BLOCK:
            return PTRS_PER_TABLE
        i = next_block(i + BLOCK, start)
    while i < PTRS_PER_TABLE and (load64(table + 8 * i) ^ entry) & mask == 0:
        i += 1
    return i


@inline
def following_end(table: u64, start: u64, entry: u64, step: u64, mask: u64, ahead: u64) -> u64:
    """As `same_end` where each entry is *step* more than the one before: physical memory follows on."""
    i = start + 1
    entry += step
    if i == PTRS_PER_TABLE or (load64(table + 8 * i) ^ entry) & mask != 0:
        return i
    base = entry - i * step
    i = next_block(i + 1, start)
    while i <= LAST_BLOCK:
        at = table + 8 * i
        if ahead != 0:
            prefetch(ahead + 8 * i)
        entry = base + i * step
        d0 = (load64(at) ^ entry) & mask
        d1 = (load64(at + 8) ^ (entry + step)) & mask
        d2 = (load64(at + 16) ^ (entry + 2 * step)) & mask
        d3 = (load64(at + 24) ^ (entry + 3 * step)) & mask
        d4 = (load64(at + 32) ^ (entry + 4 * step)) & mask
        d5 = (load64(at + 40) ^ (entry + 5 * step)) & mask
        d6 = (load64(at + 48) ^ (entry + 6 * step)) & mask
        d7 = (load64(at + 56) ^ (entry + 7 * step)) & mask
        if d0 | d1 | d2 | d3 | d4 | d5 | d6 | d7 != 0:
            return i + first_of(d0, d1, d2, d3, d4, d5, d6, d7)
        if i == LAST_BLOCK:
            return PTRS_PER_TABLE
        i = next_block(i + BLOCK, start)
    while i < PTRS_PER_TABLE and (load64(table + 8 * i) ^ (base + i * step)) & mask == 0:
        i += 1
    return i

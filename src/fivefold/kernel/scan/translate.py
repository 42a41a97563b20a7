"""Translate many addresses at once: the walk of the CPU, for a batch of addresses level by level.

A single walk waits for memory at every level. Here 64 walks take each step together: each
prefetches its next entry, and by the time the last has done so, the first entry has arrived.
Walks that end drop out of the batch.

Each answer is two words: where the address leads, and how, as in `scan_ranges.info_of`: kind, level and
rights. Depth is bounded by the levels; hostile tables can lead anywhere but out of memory.
"""

from __future__ import annotations

from typing import Final

from fivefold.kernel.paging.pgtable import (
    FRAME_MASK,
    NX,
    PRESENT,
    RW,
    USER,
    entry_frame,
    is_canonical,
    level_shift,
    levels,
)
from fivefold.kernel.scan.scan_entries import is_leaf, must_be_zero
from fivefold.kernel.scan.scan_ranges import EXECUTE, MALFORMED, MAPPED, UNREADABLE, info_of
from fivefold.kernel.scan.tables import phys_table
from fivefold.metal.lang import export, inline, load64, prefetch, store64, u64
from fivefold.units import PhysAddr, VirtAddr

ABSENT: Final = 5
"""An entry that is not present; the level is that entry's."""
NON_CANONICAL: Final = 6
"""The CPU refuses the address before any walk; the level is 0."""

BATCH: Final = 64
LEVELS: Final = (5, 4, 3, 2, 1)

GOING: Final = 1 << 62
"""Set in an answer's second word while its walk goes on; rights so far are there as in an entry, NX inverted."""
BEGIN: Final = GOING | NX | USER | RW


@export
def translate_all(root: PhysAddr, addresses: u64, answers: u64, count: u64) -> bool:
    """Answer *count* words at *addresses* by two words each at *answers*; false if the root cannot be read.

    While a walk goes on its answer holds where its next entry is, and the rights so far.
    """
    top = phys_table(PhysAddr(root & FRAME_MASK))
    if top == 0:
        return False
    for first in range(0, count, BATCH):
        translate_batch(top, addresses + 8 * first, answers + 16 * first, min(BATCH, count - first))
    return True


@inline
def translate_batch(top: u64, addresses: u64, answers: u64, count: u64) -> None:
    """Answer one batch, as `translate_all` does; *top* is where the top table can be read."""
    for i in range(count):
        begin(top, load64(addresses + 8 * i), answers + 16 * i)
    for level in LEVELS:
        if level <= levels():
            for i in range(count):
                if load64(answers + 16 * i + 8) & GOING != 0:
                    step(level, load64(addresses + 8 * i), answers + 16 * i)


@inline
def begin(top: u64, va: u64, to: u64) -> None:
    """Prefetch the top entry of *va*, or end its walk if it is not canonical."""
    at = top + entry_offset(levels(), va)
    if is_canonical(VirtAddr(va)):
        prefetch(at)
        answer(to, at, BEGIN)
    else:
        answer(to, 0, info_of(NON_CANONICAL, 0, 0))


@inline
def step(level: u64, va: u64, to: u64) -> None:
    """Read the entry of *level* that the walk of *va* is at; end the walk, or prefetch its next entry."""
    entry = load64(load64(to))
    rights = load64(to + 8) & ((entry ^ NX) | GOING)
    if entry & PRESENT == 0:
        answer(to, 0, info_of(ABSENT, level, 0))
    elif entry & must_be_zero(level, entry) != 0:
        answer(to, entry_frame(entry), info_of(MALFORMED, level, 0))
    elif is_leaf(level, entry):
        inside = (1 << level_shift(level)) - 1
        answer(to, entry & FRAME_MASK & ~inside | va & inside, info_of(MAPPED, level, info_rights(rights)))
    else:
        page = phys_table(PhysAddr(entry_frame(entry)))
        if page == 0:
            answer(to, entry_frame(entry), info_of(UNREADABLE, level - 1, info_rights(rights)))
        else:
            at = page + entry_offset(level - 1, va)
            prefetch(at)
            answer(to, at, rights)


@inline
def info_rights(rights: u64) -> u64:
    """The rights that a walk keeps, as `info_of` takes them."""
    return (rights >> 1 & 3) | (rights >> 61 & EXECUTE)


@inline
def answer(to: u64, phys: u64, info: u64) -> None:
    """Write the two words of an answer."""
    store64(to, phys)
    store64(to + 8, info)


@inline
def entry_offset(level: u64, va: u64) -> u64:
    """Where in its table the entry of *va* lies, in bytes."""
    return (va >> level_shift(level) & 511) << 3

"""The page-table dump [proposal: part 3, and the discussion of its walk through empty slots].

One source for both modes and both places: the booted kernel runs it over its own tables,
and a host over the memory of any guest. It returns ranges (`scan_ranges.py`): what is
mapped with which effective rights, which entries are malformed, and which tables cannot be
read. An absent entry makes no range. A table in a hole of memory makes one, because what it
maps is unknown, not absent.

::

    scan_init(...); set the settings below
    status = scan(root)         FULL: take ranges out (drain) or bring a larger buffer (grow),
    while status == FULL: ...         then scan_resume()
                                LIMIT: raise walk_limit and scan_resume(), or stop
                                AWAITED: bring the tables that scan_awaited.py lists, then scan_resume()
                                DONE

The walk is a loop over a small stack with a frame for each level, so that it can stop at
any entry and go on there. Cost follows the number of distinct tables: a table met again at
the same level under the same rights is not walked again (`scan_memo.py`). Depth is bounded
by the levels, and walks by tables x levels x 8 rights, so tables that point at themselves or
at each other need no special case; they are counted.
"""

from __future__ import annotations

from typing import Final

from fivefold.kernel.paging.pgtable import (
    FRAME_MASK,
    PMD_LEVEL,
    PRESENT,
    PSE,
    PTE_LEVEL,
    PTE_SHIFT,
    entry_frame,
    level_shift,
    levels,
)
from fivefold.kernel.paging.phys import PAGE_SIZE
from fivefold.kernel.scan import scan_counts, scan_entries, scan_memo, scan_ranges, scan_runs, scan_stack
from fivefold.kernel.scan.scan_entries import is_leaf, is_wx, leaf_flags, must_be_zero, narrowed, run_mask
from fivefold.kernel.scan.scan_memo import chain, find, is_kept, key_of, ranges_of, replay, walk_number
from fivefold.kernel.scan.scan_ranges import (
    ALL_RIGHTS,
    MALFORMED,
    MAPPED,
    REPEAT,
    UNREADABLE,
    emit,
    info_of,
    record,
    room,
)
from fivefold.kernel.scan.scan_runs import BLOCK, absent_end, run_end
from fivefold.kernel.scan.scan_stack import (
    END,
    HEAD,
    INDEX,
    NEVER,
    RIGHTS,
    TABLE,
    VA,
    begin_walk,
    clip,
    enter,
    entry_address,
    frame_at,
    is_above,
    is_known_frame,
    is_whole,
    leave,
    narrow_to_canonical,
)
from fivefold.kernel.scan.tables import frame_index, is_awaited, phys_table
from fivefold.metal.lang import export, inline, load64, noinline, store64, u64
from fivefold.units import PhysAddr, VirtAddr

DONE: Final = 1
FULL: Final = 2
"""The buffer may lack room for the ranges of the next entry."""
LIMIT: Final = 3
"""`walk_limit` tables were walked."""
NOT_READABLE: Final = 4
"""The root itself cannot be read."""
AWAITED: Final = 7
"""A table has to be brought first; only where tables are brought one by one."""

WALKED: Final = 0
DESCENDED: Final = 5
NEXT: Final = 6
"""Between the functions of this file: table done, child entered, go on with the next entry."""

repeat_above: u64 = NEVER
"""A shared table with more ranges than this becomes one `REPEAT` range when it is reached again."""
walk_limit: u64 = NEVER
"""The scan stops after this many walks: without room to remember tables, hostile ones unfold into 512^5 entries."""

ahead_pa: u64 = NEVER
ahead_page: u64 = 0
"""The last table that was prefetched: its physical address, and where it can be read."""


@export
def scan_init(records: u64, capacity: u64, index: u64, index_size: u64, walks: u64, walks_capacity: u64) -> None:
    """Give the scan its memory, and set all counters to zero; the settings stay as they are.

    *records*: room for *capacity* ranges of 48 bytes, two or more. *index*: *index_size* words of 32 bits, all zero,
    one for each frame number. *walks*: room for *walks_capacity* records of 64 bytes. The last two may be empty.
    """
    global ahead_pa
    scan_ranges.begin(records, capacity)
    scan_memo.begin(index, index_size, walks, walks_capacity)
    scan_counts.clear()
    ahead_pa = NEVER


@export
def scan(root: PhysAddr) -> u64:
    """Walk the tables under *root* in the mode that is set; return a status: see above."""
    narrow_to_canonical()
    scan_stack.depth = levels() + 1
    table = PhysAddr(root & FRAME_MASK)
    page = phys_table(table)
    if page == 0:
        return NOT_READABLE
    if scan_stack.first > scan_stack.last:
        return DONE
    number = frame_index(table)
    scan_counts.walked(chain(number), levels(), VirtAddr(0))
    frame = enter(levels(), table, page, VirtAddr(0), ALL_RIGHTS)
    begin_walk(frame, levels(), number, 0, clip(frame, levels()))
    return scan_resume()


@export
def scan_resume() -> u64:
    """Go on where the last call stopped; returns as `scan` does."""
    while scan_stack.depth <= levels():
        level = scan_stack.depth
        status = walk_leaves() if level == PTE_LEVEL else walk_table(level)
        if status == WALKED:
            leave()
        elif status != DESCENDED:
            return status
    return DONE


@export
def grow(records: u64, capacity: u64) -> None:
    """After `FULL`: go on in a larger buffer, to which all ranges were copied."""
    scan_ranges.grow(records, capacity)


@export
def drain() -> u64:
    """After `FULL`: drop all ranges but the last, which may still grow; return how many were dropped."""
    return scan_ranges.drain()


def walk_table(level: u64) -> u64:
    """Go on in the table at *level* (above the PTE) to its end, or to the first child that must be walked."""
    frame = frame_at(level)
    table = load64(frame + TABLE)
    end = load64(frame + END)
    i = load64(frame + INDEX)
    ahead = look_ahead(level, table)
    while i < end:
        entry = load64(table + 8 * i)
        store64(frame + INDEX, i)
        if entry & PRESENT == 0:
            i = absent_end(table, i, ahead, False)
        elif room() == 0:
            return FULL
        elif entry & must_be_zero(level, entry) != 0:
            record_malformed(frame, level, i, i + 1, entry)
            i += 1
        elif is_leaf(level, entry):
            i = record_large(frame, level, i, entry)
        else:
            status = descend(frame, level, i, entry)
            if status != NEXT:
                return status
            i += 1
    return WALKED


@noinline
def walk_leaves() -> u64:
    """Record the rest of the PTE table on the stack; return `WALKED` or `FULL`."""
    frame = frame_at(PTE_LEVEL)
    table = load64(frame + TABLE)
    end = load64(frame + END)
    i = load64(frame + INDEX)
    mask = run_mask(PTE_LEVEL)
    flags = leaf_flags(PTE_LEVEL)
    ahead = look_ahead(PTE_LEVEL, table)
    first_va = load64(frame + VA)
    path = load64(frame + RIGHTS)
    reserved = scan_entries.reserved
    pages = 0
    wx_pages = 0
    # After a short gap the next entries are probably scattered leaves again: `absent_end` then looks at eight at once.
    near = False
    store64(frame + HEAD, load64(table) & FRAME_MASK)
    while i < end and room() != 0:
        entry = load64(table + 8 * i)
        if entry & PRESENT == 0:
            gap = i
            i = absent_end(table, i, ahead, near)
            near = i - gap <= BLOCK
            continue
        # All entries of a run agree in `mask`, so rights and malformedness are decided once for the whole run.
        stop = min(run_end(table, i, entry, PTE_LEVEL, mask, ahead), end)
        if entry & reserved != 0:
            record_malformed(frame, PTE_LEVEL, i, stop, entry)
        else:
            rights = narrowed(path, entry)
            pages += stop - i
            wx_pages += stop - i if is_wx(rights) else 0
            va = VirtAddr(first_va + (i << PTE_SHIFT))
            last_va = VirtAddr(va + ((stop - i) << PTE_SHIFT) - 1)
            emit(va, last_va, entry_frame(entry), entry & flags, info_of(MAPPED, PTE_LEVEL, rights), 0)
        i = stop
    scan_counts.mapped(PTE_LEVEL, pages, wx_pages)
    store64(frame + INDEX, i)
    return WALKED if i >= end else FULL


@inline
def look_ahead(level: u64, table: u64) -> u64:
    """The table to prefetch while this one is read; *table* itself if the next one is adjacent or unknown."""
    global ahead_pa, ahead_page
    if not scan_runs.prefetching or level == levels():
        return table
    above = frame_at(level + 1)
    i = load64(above + INDEX)
    if i >= load64(above + END):
        return table
    entry = load64(load64(above + TABLE) + 8 * i)
    if entry & (PRESENT | PSE) != PRESENT:
        return table
    # The lookup is kept for `page_of`: over several extents it is the dearer half of a descent.
    ahead_pa = entry_frame(entry)
    ahead_page = phys_table(PhysAddr(ahead_pa))
    return ahead_page if ahead_page != 0 and ahead_page != table + PAGE_SIZE else table


@inline
def page_of(pa: PhysAddr) -> u64:
    """`phys_table`, reusing the lookup that `look_ahead` made."""
    if scan_runs.prefetching and pa == ahead_pa:
        return ahead_page
    return phys_table(pa)


@noinline
def record_large(frame: u64, level: u64, i: u64, entry: u64) -> u64:
    """Record the run of large leaves that begins with *entry*, entry *i*; return the index after it."""
    table = load64(frame + TABLE)
    stop = min(run_end(table, i, entry, level, run_mask(level), table), load64(frame + END))
    phys = PhysAddr(entry & FRAME_MASK & ~((1 << level_shift(level)) - 1))
    rights = narrowed(load64(frame + RIGHTS), entry)
    scan_counts.mapped(level, stop - i, stop - i if is_wx(rights) else 0)
    if i == 0:
        store64(frame + HEAD, phys)
    va = entry_address(frame, level, i)
    last_va = VirtAddr(va + ((stop - i) << level_shift(level)) - 1)
    record(va, last_va, phys, entry & leaf_flags(level), info_of(MAPPED, level, rights), 0)
    return stop


@noinline
def record_malformed(frame: u64, level: u64, i: u64, end: u64, entry: u64) -> None:
    """Record entries *i* to *end* (exclusive), which are present and malformed in the same way."""
    scan_counts.malformed(end - i)
    phys = entry_frame(entry)
    if i == 0:
        store64(frame + HEAD, phys)
    va = entry_address(frame, level, i)
    last_va = VirtAddr(va + ((end - i) << level_shift(level)) - 1)
    flags = entry & (leaf_flags(level) | must_be_zero(level, entry))
    record(va, last_va, phys, flags, info_of(MALFORMED, level, 0), 0)


@inline
def descend(frame: u64, level: u64, i: u64, entry: u64) -> u64:
    """Replay the table behind entry *i*, or walk it; return `NEXT`, `DESCENDED`, `FULL`, `LIMIT` or `AWAITED`."""
    pa = entry_frame(entry)
    page = page_of(pa)
    rights = narrowed(load64(frame + RIGHTS), entry)
    va = entry_address(frame, level, i)
    last_va = VirtAddr(va + (1 << level_shift(level)) - 1)
    if page == 0:
        if is_awaited(pa):
            return AWAITED
        record_unreadable(frame, i, va, last_va, pa, info_of(UNREADABLE, level - 1, rights))
        return NEXT
    number = frame_index(pa)
    link = chain(number)
    walk = find(link, key_of(level - 1, rights)) if link != 0 and is_whole(va, last_va) else 0
    if walk != 0 and is_kept(walk):
        return answer(frame, walk, level - 1, i, pa, va)
    if scan_counts.tables_walked >= walk_limit:
        return LIMIT
    # Before the child is entered: when its walk stops at `FULL`, the scan resumes in the child and then goes on here.
    store64(frame + INDEX, i + 1)
    if is_known_frame(number, link) and is_above(level - 1, pa):
        scan_counts.cycle(va)
    scan_counts.walked(link, level - 1, va)
    child = enter(level - 1, pa, page, va, rights)
    begin_walk(child, level - 1, number, walk, 0 if is_whole(va, last_va) else clip(child, level - 1))
    # A PTE table, the common case, is walked at once instead of through the loop of `scan_resume`.
    if level != PMD_LEVEL:
        return DESCENDED
    if walk_leaves() != WALKED:
        return FULL
    leave()
    return NEXT


@noinline
def record_unreadable(frame: u64, i: u64, va: VirtAddr, last_va: VirtAddr, pa: PhysAddr, info: u64) -> None:
    """Record that the table behind entry *i* is not in memory."""
    scan_counts.unreadable()
    if i == 0:
        store64(frame + HEAD, pa)
    record(va, last_va, pa, 0, info, 0)


@noinline
def answer(frame: u64, walk: u64, level: u64, i: u64, pa: PhysAddr, va: VirtAddr) -> u64:
    """Record the table at *va* from its earlier walk, as `REPEAT` if it is long; `FULL` if there is no room."""
    head = load64(walk + scan_memo.HEAD)
    if ranges_of(walk) > repeat_above:
        info = info_of(REPEAT, level, load64(walk + scan_memo.KEY) >> 4 & ALL_RIGHTS)
        record(va, VirtAddr(va + (1 << level_shift(level + 1)) - 1), pa, walk_number(walk), info, 0)
        head = pa
    elif ranges_of(walk) > room():
        return FULL
    else:
        replay(walk, level, va)
    if i == 0:
        store64(frame + HEAD, head)
    scan_counts.replayed(walk)
    if is_above(level, pa):
        scan_counts.cycle(va)
    return NEXT

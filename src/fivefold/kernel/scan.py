"""The page-table dump [proposal: part 3, and the discussion of its walk through empty slots].

One source for both modes and both places: the booted kernel runs it over its own tables,
and a host over the memory of any guest. It answers with ranges (`scan_ranges.py`): what is
mapped with which effective rights, what is malformed, and which tables cannot be read.
An absent entry is no range; a hole in memory is one, since nobody can say what it hides.

::

    scan_init(...); set what is wanted below
    status = scan(root)         FULL: take ranges out (drain) or bring a larger buffer (grow),
    while status == FULL: ...         then scan_resume()
                                LIMIT: raise walk_limit and scan_resume(), or stop
                                DONE

The walk is a loop over a small stack with a frame for each level, so that it can stop at
any entry and go on there. Cost follows the number of distinct tables: a table met again at
the same level under the same rights is not walked again (`scan_memo.py`). Depth is bounded
by the levels and walks by tables x levels x 8 rights, so tables that point at themselves or
at each other need no rule of their own; they are counted.
"""

from __future__ import annotations

from typing import Final

from fivefold.kernel import scan_memo, scan_ranges, scan_runs
from fivefold.kernel.pgtable import (
    FRAME_MASK,
    NX,
    PRESENT,
    PSE,
    PTE_LEVEL,
    PTE_SHIFT,
    PTRS_PER_TABLE,
    PUD_LEVEL,
    RW,
    USER,
    entry_frame,
    level_shift,
    levels,
    va_bits,
)
from fivefold.kernel.phys import PAGE_SIZE
from fivefold.kernel.scan_memo import (
    HEAD,
    MAPPED_BYTES,
    PARTIAL,
    WX_BYTES,
    chain,
    close_walk,
    find,
    is_kept,
    key_of,
    met_at,
    open_walk,
    ranges_of,
    remember,
    replay,
    walk_number,
)
from fivefold.kernel.scan_ranges import (
    ALL_RIGHTS,
    EXECUTE,
    IGNORE,
    MALFORMED,
    MAPPED,
    REPEAT,
    UNREADABLE,
    WRITE,
    emit,
    info_of,
    room,
    tell,
)
from fivefold.kernel.scan_runs import following_end, same_end
from fivefold.kernel.tables import frame_index, phys_table
from fivefold.metal.lang import buffer, export, inline, load64, store64, u64
from fivefold.units import PhysAddr, VirtAddr

DONE: Final = 1
FULL: Final = 2
"""The next thing found may need more ranges than there is room for."""
LIMIT: Final = 3
"""`walk_limit` tables were walked."""
NOT_READABLE: Final = 4
"""The root itself cannot be read."""

WALKED: Final = 0
DESCENDED: Final = 5
NEXT: Final = 6
"""Between the functions of this file: table done, child entered, go on with the next entry."""

NEVER: Final = (1 << 64) - 1

flags_mask: u64 = 0x8000_0000_0000_119F
"""Bits of a leaf that are told, and break a range where they change: by default all but A, D, software bits and key.

Bit 12 counts for large leaves only, where it is PAT, as bit 7 is for 4 KiB leaves.
"""
reserved: u64 = 0
"""Bits that must be zero at every level: those above MAXPHYADDR; bit 63 where EFER.NXE=0."""
reserved_top: u64 = PSE
"""Further bits that must be zero at the P4D level and above."""
gib_pages: bool = True
"""Whether PS is allowed in a PUD entry."""
first: u64 = 0
last: u64 = NEVER
"""Only what touches these addresses is told, both inclusive; large leaves are told whole."""
repeat_above: u64 = NEVER
"""A shared table with more ranges than this is told as one `REPEAT` range when it is met again."""
walk_limit: u64 = NEVER

mapped_bytes: u64 = 0
wx_bytes: u64 = 0
"""Bytes of address space mapped, and mapped writable and executable in effect; shared tables count each time."""
tables_met: u64 = 0
"""Distinct tables read, the root included."""
tables_walked: u64 = 0
"""Walks: more than `tables_met` where one is met at several levels or under several rights."""
replays: u64 = 0
"""Times that a table was answered from an earlier walk."""
malformed_entries: u64 = 0
unreadable_tables: u64 = 0
"""Entries found so in walks; they are not counted again when a shared table is."""
cycles: u64 = 0
first_cycle: u64 = 0
"""Entries that point to a table above them, and the address behind the first such entry."""
mixed_levels: u64 = 0
first_mixed: u64 = 0
"""Tables met at one more level, and the address where that happened first."""

ahead_pa: u64 = NEVER
ahead_page: u64 = 0
"""The last table that was fetched ahead."""

depth: u64 = 0
"""Level of the table that the walk is in; above the root's when all is done."""

TABLE: Final = 0
INDEX: Final = 8
END: Final = 16
VA: Final = 24
RIGHTS: Final = 32
WALK: Final = 40
PHYS: Final = 48
HEAD_PHYS: Final = 56
MAPPED_BEFORE: Final = 64
WX_BEFORE: Final = 72
FRAME_SIZE: Final = 80
stack: Final = buffer(6 * FRAME_SIZE)
"""A frame for each level, found by its number."""


@export
def scan_init(records: u64, capacity: u64, index: u64, index_size: u64, walks: u64, walks_capacity: u64) -> None:
    """Give the scan its memory, and set all counters to zero; the settings stay as they are.

    *records*: room for *capacity* ranges of 48 bytes, two or more. *index*: *index_size* words of 32 bits, all zero,
    one for each frame number. *walks*: room for *walks_capacity* records of 64 bytes. The last two may be empty.
    """
    global mapped_bytes, wx_bytes, tables_met, tables_walked, replays, malformed_entries, unreadable_tables
    global cycles, first_cycle, mixed_levels, first_mixed, ahead_pa
    scan_ranges.begin(records, capacity)
    scan_memo.begin(index, index_size, walks, walks_capacity)
    ahead_pa = NEVER
    mapped_bytes = 0
    wx_bytes = 0
    tables_met = 0
    tables_walked = 0
    replays = 0
    malformed_entries = 0
    unreadable_tables = 0
    cycles = 0
    first_cycle = 0
    mixed_levels = 0
    first_mixed = 0


@export
def scan(root: PhysAddr) -> u64:
    """Walk the tables under *root* in the mode that is set; return `DONE`, `FULL`, `LIMIT` or `NOT_READABLE`."""
    global depth, first, last
    half = 1 << (va_bits() - 1)
    first = max(first, -half) if first >= half else first
    last = min(last, half - 1) if last < -half else last
    page = phys_table(PhysAddr(root & FRAME_MASK))
    depth = levels() + 1
    if page == 0:
        return NOT_READABLE
    if first > last:
        return DONE
    enter(levels(), PhysAddr(root & FRAME_MASK), page, VirtAddr(0), ALL_RIGHTS, 0)
    return scan_resume()


@export
def scan_resume() -> u64:
    """Go on where the last call stopped; returns as `scan` does."""
    while depth <= levels():
        status = walk_leaves() if depth == PTE_LEVEL else walk_table(depth)
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
    """After `FULL`: forget all ranges but the last, which may still grow; return how many those were."""
    return scan_ranges.drain()


@inline
def frame_at(level: u64) -> u64:
    """The stack frame of *level*."""
    return stack + FRAME_SIZE * level


@inline
def entry_address(frame: u64, level: u64, i: u64) -> VirtAddr:
    """The canonical address behind entry *i*: the upper half of the root is moved to the top."""
    va = load64(frame + VA) + (i << level_shift(level))
    if level == levels():
        va -= (i >> 8) << va_bits()
    return VirtAddr(va)


@inline
def is_leaf(level: u64, entry: u64) -> bool:
    """Whether a present entry maps a page; PS higher up is no leaf but malformed."""
    return level == PTE_LEVEL or (entry & PSE != 0 and level <= PUD_LEVEL)


@inline
def must_be_zero(level: u64, entry: u64) -> u64:
    """Reserved bits of a present entry at *level*: those of every level, and by its kind those below a large frame."""
    if level > PUD_LEVEL:
        return reserved | reserved_top
    if level == PTE_LEVEL or entry & PSE == 0:
        return reserved
    if level == PUD_LEVEL and not gib_pages:
        return reserved | PSE
    return reserved | large_low_bits(level)


@inline
def large_low_bits(level: u64) -> u64:
    """Reserved bits of a large leaf between PAT, bit 12, and its frame."""
    return (1 << level_shift(level)) - 1 & ~0x1FFF


@inline
def told_flags(level: u64) -> u64:
    """`flags_mask` without what is the frame at this level."""
    return flags_mask & ~(FRAME_MASK if level == PTE_LEVEL else FRAME_MASK & ~0x1000)


@inline
def run_mask(level: u64) -> u64:
    """Bits that are equal in all entries of a run: then kind and rights are, too."""
    mask = told_flags(level) | PRESENT | RW | USER | NX | reserved
    return mask if level == PTE_LEVEL else mask | PSE | large_low_bits(level)


@inline
def narrowed(rights: u64, entry: u64) -> u64:
    """Rights after one more entry: W and U need every level, X needs no NX at any."""
    return rights & ((entry >> 1 & 3) | (~entry >> 61 & EXECUTE))


def walk_leaves() -> u64:
    """Tell the rest of the PTE table on the stack; returns `WALKED` or `FULL`."""
    global mapped_bytes, wx_bytes
    frame = frame_at(PTE_LEVEL)
    table = load64(frame + TABLE)
    end = load64(frame + END)
    i = load64(frame + INDEX)
    mask = run_mask(PTE_LEVEL)
    told = told_flags(PTE_LEVEL)
    ahead = look_ahead(table)
    pages = 0
    wx_pages = 0
    store64(frame + HEAD_PHYS, load64(table) & FRAME_MASK)
    while i < end and room() != 0:
        entry = load64(table + 8 * i)
        if entry & PRESENT == 0:
            i = same_end(table, i, 0, PRESENT, ahead)
            continue
        stop = min(run_end(table, i, entry, PTE_LEVEL, mask, ahead), end)
        if entry & reserved != 0:
            tell_malformed(frame, PTE_LEVEL, i, stop, entry)
        else:
            rights = narrowed(load64(frame + RIGHTS), entry)
            pages += stop - i
            wx_pages += stop - i if rights & (WRITE | EXECUTE) == WRITE | EXECUTE else 0
            va = VirtAddr(load64(frame + VA) + (i << PTE_SHIFT))
            last_va = VirtAddr(va + ((stop - i) << PTE_SHIFT) - 1)
            emit(va, last_va, entry_frame(entry), entry & told, info_of(MAPPED, PTE_LEVEL, rights), 0)
        i = stop
    mapped_bytes += pages << PTE_SHIFT
    wx_bytes += wx_pages << PTE_SHIFT
    store64(frame + INDEX, i)
    return WALKED if i >= end else FULL


def walk_table(level: u64) -> u64:
    """Go on in the table at *level* (above the PTE) to its end, or to the first child that must be walked."""
    frame = frame_at(level)
    table = load64(frame + TABLE)
    end = load64(frame + END)
    i = load64(frame + INDEX)
    while i < end:
        entry = load64(table + 8 * i)
        store64(frame + INDEX, i)
        if entry & PRESENT == 0:
            i = same_end(table, i, 0, PRESENT, table)
        elif room() == 0:
            return FULL
        elif entry & must_be_zero(level, entry) != 0:
            tell_malformed(frame, level, i, i + 1, entry)
            i += 1
        elif is_leaf(level, entry):
            i = tell_large(frame, level, i, entry)
        else:
            status = descend(frame, level, i, entry)
            if status != NEXT:
                return status
            i += 1
    return WALKED


@inline
def look_ahead(table: u64) -> u64:
    """Address of the next PTE table, to be fetched while *table* is read; *table* if it is the page after it, or unknown."""
    global ahead_pa, ahead_page
    if not scan_runs.prefetching:
        return table
    above = frame_at(PTE_LEVEL + 1)
    i = load64(above + INDEX)
    if i >= load64(above + END):
        return table
    entry = load64(load64(above + TABLE) + 8 * i)
    if entry & (PRESENT | PSE) != PRESENT:
        return table
    ahead_pa = entry_frame(entry)
    ahead_page = phys_table(PhysAddr(ahead_pa))
    return ahead_page if ahead_page != 0 and ahead_page != table + PAGE_SIZE else table


@inline
def page_of(pa: PhysAddr) -> u64:
    """As `phys_table`, which has answered already where `look_ahead` asked."""
    if scan_runs.prefetching and pa == ahead_pa:
        return ahead_page
    return phys_table(pa)


@inline
def run_end(table: u64, i: u64, entry: u64, level: u64, mask: u64, ahead: u64) -> u64:
    """Index after the run of leaves that begins with *entry*, entry *i*."""
    if scan_ranges.contiguity == IGNORE:
        return same_end(table, i, entry, mask, ahead)
    span = 1 << level_shift(level)
    frame_bits = FRAME_MASK & ~(span - 1)
    # Where adding up would leave the frame field, the run ends; physical memory does, too.
    fits = (FRAME_MASK + PAGE_SIZE - (entry & frame_bits)) >> level_shift(level)
    return min(following_end(table, i, entry, span, mask | frame_bits, ahead), i + fits)


def tell_large(frame: u64, level: u64, i: u64, entry: u64) -> u64:
    """Tell the run of large leaves that begins with *entry*, entry *i*; return the index after it."""
    global mapped_bytes, wx_bytes
    stop = min(run_end(load64(frame + TABLE), i, entry, level, run_mask(level), load64(frame + TABLE)), load64(frame + END))
    size = (stop - i) << level_shift(level)
    phys = PhysAddr(entry & FRAME_MASK & ~((1 << level_shift(level)) - 1))
    rights = narrowed(load64(frame + RIGHTS), entry)
    mapped_bytes += size
    if rights & (WRITE | EXECUTE) == WRITE | EXECUTE:
        wx_bytes += size
    if i == 0:
        store64(frame + HEAD_PHYS, phys)
    va = entry_address(frame, level, i)
    tell(va, VirtAddr(va + size - 1), phys, entry & told_flags(level), info_of(MAPPED, level, rights), 0)
    return stop


def tell_malformed(frame: u64, level: u64, i: u64, end: u64, entry: u64) -> None:
    """Tell entries *i* to *end* (exclusive), present and malformed in the same way."""
    global malformed_entries
    malformed_entries += end - i
    va = entry_address(frame, level, i)
    last_va = VirtAddr(va + ((end - i) << level_shift(level)) - 1)
    if i == 0:
        store64(frame + HEAD_PHYS, entry & FRAME_MASK)
    flags = entry & (told_flags(level) | must_be_zero(level, entry))
    tell(va, last_va, PhysAddr(entry & FRAME_MASK), flags, info_of(MALFORMED, level, 0), 0)


def descend(frame: u64, level: u64, i: u64, entry: u64) -> u64:
    """Answer for the table behind entry *i*, or enter it: `NEXT`, `DESCENDED`, `FULL` or `LIMIT`."""
    pa = entry_frame(entry)
    page = page_of(pa)
    rights = narrowed(load64(frame + RIGHTS), entry)
    va = entry_address(frame, level, i)
    if page == 0:
        tell_unreadable(frame, level, i, pa, rights)
        return NEXT
    walk = find(chain(frame_index(pa)), key_of(level - 1, rights))
    whole = first <= va and last >= va + (1 << level_shift(level)) - 1
    if walk != 0 and whole and is_kept(walk):
        return answer(frame, walk, level - 1, i, pa, va)
    if tables_walked >= walk_limit:
        return LIMIT
    store64(frame + INDEX, i + 1)
    enter(level - 1, pa, page, va, rights, walk if whole else 0)
    return DESCENDED


def tell_unreadable(frame: u64, level: u64, i: u64, pa: PhysAddr, rights: u64) -> None:
    """Tell that the table behind entry *i* is not in memory."""
    global unreadable_tables
    unreadable_tables += 1
    va = entry_address(frame, level, i)
    last_va = VirtAddr(va + (1 << level_shift(level)) - 1)
    if i == 0:
        store64(frame + HEAD_PHYS, pa)
    tell(va, last_va, pa, 0, info_of(UNREADABLE, level - 1, rights), 0)


def answer(frame: u64, walk: u64, level: u64, i: u64, pa: PhysAddr, va: VirtAddr) -> u64:
    """Tell the table at *va* from its earlier walk, as `REPEAT` if it is long; `FULL` if there is no room."""
    global replays, mapped_bytes, wx_bytes
    if ranges_of(walk) > repeat_above:
        rights = load64(walk) >> 4 & ALL_RIGHTS
        last_va = VirtAddr(va + (1 << level_shift(level + 1)) - 1)
        tell(va, last_va, pa, walk_number(walk), info_of(REPEAT, level, rights), 0)
        head = u64(pa)
    elif ranges_of(walk) > room():
        return FULL
    else:
        replay(walk, level, va)
        head = load64(walk + HEAD)
    if i == 0:
        store64(frame + HEAD_PHYS, head)
    replays += 1
    mapped_bytes += load64(walk + MAPPED_BYTES)
    wx_bytes += load64(walk + WX_BYTES)
    count_cycle(level, pa, va)
    return NEXT


def enter(level: u64, pa: PhysAddr, page: u64, va: VirtAddr, rights: u64, walk: u64) -> None:
    """Begin to walk a table; *walk* is an earlier walk to overwrite, or 0."""
    global depth, tables_walked
    frame = frame_at(level)
    depth = level
    tables_walked += 1
    store64(frame + TABLE, page)
    store64(frame + VA, va)
    store64(frame + RIGHTS, rights)
    store64(frame + PHYS, pa)
    store64(frame + HEAD_PHYS, 0)
    store64(frame + MAPPED_BEFORE, mapped_bytes)
    store64(frame + WX_BEFORE, wx_bytes)
    count_table(level, pa, va)
    part = clip(frame, level, va)
    if walk == 0:
        walk = remember(frame_index(pa), key_of(level, rights) | part)
    store64(frame + WALK, walk)
    if walk != 0:
        open_walk(walk, va)


def clip(frame: u64, level: u64, va: VirtAddr) -> u64:
    """Set which entries of the entered table touch *first* to *last*; return `PARTIAL` unless all of it does."""
    shift = level_shift(level)
    low = u64(va)
    high = va + (PTRS_PER_TABLE << shift) - 1
    if level == levels():
        low = 0
        high = NEVER
    store64(frame + INDEX, first >> shift & (PTRS_PER_TABLE - 1) if first > low else 0)
    store64(frame + END, (last >> shift & (PTRS_PER_TABLE - 1)) + 1 if last < high else PTRS_PER_TABLE)
    return PARTIAL if first > low or last < high else 0


def count_table(level: u64, pa: PhysAddr, va: VirtAddr) -> None:
    """Count a table that is about to be walked, and what is odd about meeting it here."""
    global tables_met, mixed_levels, first_mixed
    link = chain(frame_index(pa))
    if link == 0:
        tables_met += 1
    elif not met_at(link, level):
        mixed_levels += 1
        if mixed_levels == 1:
            first_mixed = va
    count_cycle(level, pa, va)


@inline
def count_cycle(level: u64, pa: PhysAddr, va: VirtAddr) -> None:
    """Count an entry that leads from below the table at *pa* to that table again."""
    global cycles, first_cycle
    for above in range(level + 1, levels() + 1):
        if load64(frame_at(above) + PHYS) == pa:
            cycles += 1
            if cycles == 1:
                first_cycle = va


def leave() -> None:
    """End the walk of the current table, and go on in the one above it."""
    global depth
    frame = frame_at(depth)
    walk = load64(frame + WALK)
    if walk != 0:
        mapped = mapped_bytes - load64(frame + MAPPED_BEFORE)
        close_walk(walk, PhysAddr(load64(frame + HEAD_PHYS)), mapped, wx_bytes - load64(frame + WX_BEFORE))
    depth += 1
    if depth <= levels() and load64(frame + VA) == load64(frame_at(depth) + VA):
        store64(frame_at(depth) + HEAD_PHYS, load64(frame + HEAD_PHYS))

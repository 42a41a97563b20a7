"""Where the scan is: a frame for each level from the root's down to that of the table in work.

All that a walk must know to go on lies here and not on the machine's stack, so the scan can
return to its caller at any entry.
"""

from __future__ import annotations

from typing import Final

from fivefold.kernel.paging.pgtable import PTRS_PER_TABLE, level_shift, levels, va_bits
from fivefold.kernel.scan import scan_counts, scan_memo
from fivefold.kernel.scan.scan_memo import PARTIAL, close_walk, key_of, open_walk, remember
from fivefold.metal.lang import buffer, inline, load64, store64, u64
from fivefold.units import PhysAddr, VirtAddr

NEVER: Final = (1 << 64) - 1

first: u64 = 0
last: u64 = NEVER
"""Only entries that touch these addresses, both inclusive, are recorded; large leaves are recorded whole."""

depth: u64 = 0
"""Level of the table in work; above the root's when all is done."""

TABLE: Final = 0
INDEX: Final = 8
"""The next entry to look at."""
END: Final = 16
VA: Final = 24
RIGHTS: Final = 32
"""What the entries above allow."""
WALK: Final = 40
"""The walk in the memo, or 0."""
PHYS: Final = 48
HEAD: Final = 56
"""The physical address that the first entry recorded."""
MAPPED_BEFORE: Final = 64
WX_BEFORE: Final = 72
FRAME_SIZE: Final = 80
stack: Final = buffer(6 * FRAME_SIZE)


@inline
def frame_at(level: u64) -> u64:
    """The frame of *level*."""
    return stack + FRAME_SIZE * level


@inline
def entry_address(frame: u64, level: u64, i: u64) -> VirtAddr:
    """The canonical address behind entry *i*: the upper half of the root is moved to the top."""
    va = load64(frame + VA) + (i << level_shift(level))
    if level == levels():
        # Slots 256 to 511 are the upper half: sign extension subtracts 2^va_bits, which wraps to the top.
        va -= (i >> 8) << va_bits()
    return VirtAddr(va)


def narrow_to_canonical() -> None:
    """Move `first` and `last` out of the non-canonical gap, towards each other."""
    global first, last
    half = 1 << (va_bits() - 1)
    if first >= half and first < -half:
        first = -half
    if last >= half and last < -half:
        last = half - 1


@inline
def is_whole(va: VirtAddr, last_va: VirtAddr) -> bool:
    """Whether all addresses from *va* to *last_va* are to be recorded."""
    return first <= va and last >= last_va


@inline
def enter(level: u64, pa: PhysAddr, page: u64, va: VirtAddr, rights: u64) -> u64:
    """Begin a table, of which every entry is to be looked at; return its frame."""
    global depth
    depth = level
    frame = frame_at(level)
    store64(frame + TABLE, page)
    store64(frame + INDEX, 0)
    store64(frame + END, PTRS_PER_TABLE)
    store64(frame + VA, va)
    store64(frame + RIGHTS, rights)
    store64(frame + PHYS, pa)
    store64(frame + HEAD, 0)
    store64(frame + MAPPED_BEFORE, scan_counts.mapped_bytes)
    store64(frame + WX_BEFORE, scan_counts.wx_bytes)
    return frame


def clip(frame: u64, level: u64) -> u64:
    """Leave out the entries that do not touch `first` to `last`; return `PARTIAL` if that cuts anything off."""
    shift = level_shift(level)
    low = load64(frame + VA)
    high = low + (PTRS_PER_TABLE << shift) - 1
    if level == levels():
        low = 0
        high = NEVER
    if first > low:
        store64(frame + INDEX, first >> shift & (PTRS_PER_TABLE - 1))
    if last < high:
        store64(frame + END, (last >> shift & (PTRS_PER_TABLE - 1)) + 1)
    return PARTIAL if first > low or last < high else 0


@inline
def begin_walk(frame: u64, level: u64, number: u64, walk: u64, part: u64) -> None:
    """Note the walk in the memo, in place of *walk* if that is not 0; *number* is that of the table's frame."""
    if walk == 0:
        walk = remember(number, key_of(level, load64(frame + RIGHTS)) | part)
    store64(frame + WALK, walk)
    if walk != 0:
        open_walk(walk, VirtAddr(load64(frame + VA)))


@inline
def leave() -> None:
    """End the table in work, and go on in the one above it."""
    global depth
    frame = frame_at(depth)
    walk = load64(frame + WALK)
    if walk != 0:
        mapped = scan_counts.mapped_bytes - load64(frame + MAPPED_BEFORE)
        close_walk(walk, PhysAddr(load64(frame + HEAD)), mapped, scan_counts.wx_bytes - load64(frame + WX_BEFORE))
    depth += 1
    above = frame_at(depth)
    # The first child begins where its parent does, so what it recorded first is the parent's first address as well.
    if depth <= levels() and load64(frame + VA) == load64(above + VA):
        store64(above + HEAD, load64(frame + HEAD))


@inline
def is_above(level: u64, pa: PhysAddr) -> bool:
    """Whether the table at *pa* is one that the walk is in, above *level*."""
    found = False
    for above in range(level + 1, levels() + 1):
        if load64(frame_at(above) + PHYS) == pa:
            found = True
    return found


@inline
def is_known_frame(number: u64, link: u64) -> bool:
    """Whether the table may have been walked before: the memo says so, or has no word for its frame."""
    return link != 0 or number >= scan_memo.index_size

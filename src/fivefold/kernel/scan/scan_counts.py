"""What the scan counts. All of it is set to zero by `scan_init`.

Bytes count each place that something is mapped at. Entries and tables count once for each
walk: not again when a shared table is replayed from an earlier walk.
"""

from __future__ import annotations

from fivefold.kernel.paging.pgtable import level_shift
from fivefold.kernel.scan.scan_memo import MAPPED_BYTES, WX_BYTES, met_at
from fivefold.metal.lang import inline, load64, u64
from fivefold.units import VirtAddr

mapped_bytes: u64 = 0
wx_bytes: u64 = 0
"""Bytes of address space mapped; mapped writable and executable in effect."""
tables_met: u64 = 0
"""Distinct tables read, the root included. A frame that the memo's index has no word for counts each time."""
tables_walked: u64 = 0
"""Walks: more than `tables_met` where one is met at several levels or under several rights."""
replays: u64 = 0
"""How often a table was replayed from an earlier walk."""
malformed_entries: u64 = 0
unreadable_tables: u64 = 0
cycles: u64 = 0
first_cycle: u64 = 0
"""Entries that point to a table above them, and the address behind the first such entry."""
mixed_levels: u64 = 0
first_mixed: u64 = 0
"""How often a table was reached at another level than before, and the address where that happened first."""


def clear() -> None:
    """Start again from zero."""
    global mapped_bytes, wx_bytes, tables_met, tables_walked, replays, malformed_entries, unreadable_tables
    global cycles, first_cycle, mixed_levels, first_mixed
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


@inline
def mapped(level: u64, pages: u64, wx_pages: u64) -> None:
    """Count *pages* leaves at *level*, *wx_pages* of them writable and executable in effect."""
    global mapped_bytes, wx_bytes
    mapped_bytes += pages << level_shift(level)
    wx_bytes += wx_pages << level_shift(level)


def replayed(walk: u64) -> None:
    """Count a table that was replayed from *walk*."""
    global replays, mapped_bytes, wx_bytes
    replays += 1
    mapped_bytes += load64(walk + MAPPED_BYTES)
    wx_bytes += load64(walk + WX_BYTES)


def malformed(entries: u64) -> None:
    """Count entries with reserved bits set."""
    global malformed_entries
    malformed_entries += entries


def unreadable() -> None:
    """Count an entry whose table is not in memory."""
    global unreadable_tables
    unreadable_tables += 1


@inline
def walked(link: u64, level: u64, va: VirtAddr) -> None:
    """Count a table that is about to be walked; *link* leads to its earlier walks."""
    global tables_walked, tables_met, mixed_levels, first_mixed
    tables_walked += 1
    if link == 0:
        tables_met += 1
    elif not met_at(link, level):
        if mixed_levels == 0:
            first_mixed = va
        mixed_levels += 1


def cycle(va: VirtAddr) -> None:
    """Count an entry that leads back to a table above it."""
    global cycles, first_cycle
    if cycles == 0:
        first_cycle = va
    cycles += 1

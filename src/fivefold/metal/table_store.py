"""Page tables that are brought one by one, for native code on the host: a hash from a frame to its copy.

Memory behind a dump, a socket or another process is not there to be read in place. A program finds here the tables
that its caller brought so far; one that was not asked for yet is awaited, one that memory lacks is known to be missing.
"""

from __future__ import annotations

from typing import Final

from fivefold.metal.lang import export, inline, load64, store64, u64
from fivefold.units import PhysAddr

RECORD: Final = 24
"""Bytes of a record: the frame's address plus 1 (0 where the record is free), where its copy is (0 where memory lacks
it), its number."""
_SPREAD: Final = 0x9E37_79B9_7F4A_7C15
"""2**64 over the golden ratio: the high bits of its multiples are spread evenly."""

records: u64 = 0
"""Native address of the records, of which some are free."""
shift: u64 = 63
"""64 less the binary logarithm of how many records there are."""


@inline
def record_of(page: u64) -> u64:
    """Address of the record of the frame at *page*, or of the free one that it would get."""
    at = page * _SPREAD >> shift
    key = load64(records + RECORD * at)
    while key != 0 and key != page + 1:
        at = (at + 1) & ((1 << (64 - shift)) - 1)
        key = load64(records + RECORD * at)
    return records + RECORD * at


@inline
def phys_to_page(pa: PhysAddr) -> u64:
    """Return the native address of *pa*, or 0 if no table that holds it was brought."""
    record = record_of(pa - (pa & 4095))
    copy = load64(record + 8)
    if copy == 0:
        return 0
    return copy + (pa & 4095)


@inline
def frame_index(pa: PhysAddr) -> u64:
    """Return the number of the table that holds *pa*, one that was brought."""
    return load64(record_of(pa - (pa & 4095)) + 16)


@inline
def is_awaited(pa: PhysAddr) -> bool:
    """Whether nothing is known of the frame of *pa* yet."""
    return load64(record_of(pa - (pa & 4095))) == 0


@export
def is_known(page: u64) -> bool:
    """Whether the frame at *page* was brought, or is known to be missing."""
    return load64(record_of(page)) != 0


@export
def put_all(entries: u64, count: u64) -> None:
    """Enter *count* records at *entries*, of frames that are not known yet; their keys are addresses, not plus 1."""
    for i in range(count):
        entry = entries + RECORD * i
        record = record_of(load64(entry))
        store64(record, load64(entry) + 1)
        store64(record + 8, load64(entry + 8))
        store64(record + 16, load64(entry + 16))

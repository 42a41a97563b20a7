"""Which tables a stopped scan waits for: those behind the rest of the table in which it stands.

Only a host that brings tables one by one has this; see `scan.AWAITED`. Asking for all of a table's children together
takes few round trips, and none of them lies outside the window that is scanned.
"""

from __future__ import annotations

from fivefold.kernel.paging.pgtable import PRESENT, entry_frame
from fivefold.kernel.scan import scan_stack
from fivefold.kernel.scan.scan_entries import is_leaf, must_be_zero
from fivefold.kernel.scan.scan_stack import END, INDEX, TABLE, frame_at
from fivefold.kernel.scan.tables import is_awaited
from fivefold.metal.lang import export, load64, store64, u64
from fivefold.units import PhysAddr


@export
def list_awaited(to: u64) -> u64:
    """Write the frames of awaited tables to *to*, with room for 512 words, in the order of their entries.

    Return how many: 1 or more after `scan.AWAITED`. One that several entries link is there several times.
    """
    level = scan_stack.depth
    frame = frame_at(level)
    table = load64(frame + TABLE)
    count = 0
    for i in range(load64(frame + INDEX), load64(frame + END)):
        entry = load64(table + 8 * i)
        if entry & PRESENT != 0 and entry & must_be_zero(level, entry) == 0 and not is_leaf(level, entry):
            if is_awaited(PhysAddr(entry_frame(entry))):
                store64(to + 8 * count, entry_frame(entry))
                count += 1
    return count

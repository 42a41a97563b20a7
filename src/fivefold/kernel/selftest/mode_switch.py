"""What a 64-bit entry must have come to: the mode that was decided, by a change of mode or without one.

The change itself is in `startup.py`, `entry.S` and `window.S`.
"""

from __future__ import annotations

from fivefold.kernel import report
from fivefold.kernel.boot.detect import wants_five_levels
from fivefold.kernel.boot.in_use import TRAMPOLINE_LIMIT
from fivefold.kernel.paging.cpu import CR4_LA57
from fivefold.kernel.paging.pgtable import levels
from fivefold.kernel.paging.phys import PAGE_SIZE, phys_to_virt
from fivefold.kernel.report import equals
from fivefold.metal.lang import load64, noinline, read_cr4, u64
from fivefold.units import PhysAddr


@noinline
def check_switch() -> None:
    """Only for an entry with paging on: the mode is the one that was decided, and memory is as the loader left it."""
    entered = report.get_word(report.W_ENTERED_LEVELS)
    if entered == 0:
        return
    wanted = u64(4) + u64(wants_five_levels(report.get_word(report.W_REASON)))
    place = report.get_word(report.W_TRAMPOLINE)
    equals("mode_switch_as_decided", levels(), wanted)
    equals("mode_switch_cr4", read_cr4() & CR4_LA57, CR4_LA57 * (wanted - 4))
    equals("mode_switch_only_if_needed", u64(place != 0), u64(entered != wanted))
    if place != 0:
        equals("mode_switch_below_limit", u64(place + 2 * PAGE_SIZE <= TRAMPOLINE_LIMIT), 1)
        equals("mode_switch_pages_given_back", differing_words(place), 0)


@noinline
def differing_words(place: u64) -> u64:
    """How many words of the two borrowed pages are not what they were."""
    differing = u64(0)
    saved = report.get_word(report.W_BORROWED)
    for at in range(0, 2 * PAGE_SIZE, 8):
        now = load64(phys_to_virt(PhysAddr(place + at)))
        differing += u64(now != load64(phys_to_virt(PhysAddr(saved + at))))
    return differing

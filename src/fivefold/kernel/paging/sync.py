"""Every address space has the kernel's half; when that gets a new top entry, all of them must [proposal: part 6].

With five levels a top entry is a PGD entry and leads to a P4D table; with four it is a P4D entry and leads to a PUD
table. To copy it the difference is a number, the bytes behind it. What hangs below is shared and needs no copy. Linux
once copied such entries when a fault asked for them; what was missed was fatal years later. Here the code that makes
one reports it (`mapping.top_changed`).
"""

from __future__ import annotations

from typing import Final

from fivefold.kernel import report
from fivefold.kernel.paging import layout, mapping
from fivefold.kernel.paging.layout import GUARD_HOLE_END_SLOT, GUARD_HOLE_FIRST_SLOT, LDT_BASE
from fivefold.kernel.paging.mapping import map_range
from fivefold.kernel.paging.pgtable import KERNEL_SLOT, entry_frame, pgd_index, top_none
from fivefold.kernel.paging.phys import phys_to_virt
from fivefold.metal.lang import buffer, load64, noinline, store64, u64
from fivefold.units import PhysAddr, VirtAddr

MAX_SPACES: Final = 32
roots: Final = buffer(8 * MAX_SPACES)
"""Physical addresses of the top tables of all address spaces; 0 is a free place."""
copies: u64 = 0
"""Entries that were copied into spaces that lacked them."""

END_SLOT: Final = 512


def add_space(root: PhysAddr) -> bool:
    """Keep the kernel half of *root* current from now on; False when there are too many."""
    for i in range(MAX_SPACES):
        if load64(roots + 8 * i) == 0:
            store64(roots + 8 * i, root)
            return True
    return False


def remove_space(root: PhysAddr) -> None:
    """Forget *root*."""
    for i in range(MAX_SPACES):
        if load64(roots + 8 * i) == root:
            store64(roots + 8 * i, 0)


def is_private(slot: u64) -> bool:
    """Whether a kernel slot is not shared: the hole that is never filled, and the LDT of each process."""
    if slot >= GUARD_HOLE_FIRST_SLOT and slot < GUARD_HOLE_END_SLOT:
        return True
    ldt = LDT_BASE[layout.column()]
    return ldt != 0 and slot == pgd_index(VirtAddr(ldt))


@noinline
def sync_slot(reference: VirtAddr, slot: u64) -> None:
    """Copy a top entry of *reference* to every space; two that are there must lead to the same table."""
    global copies
    entry = load64(reference + 8 * slot)
    if top_none(entry) or is_private(slot):
        return
    for i in range(MAX_SPACES):
        root = load64(roots + 8 * i)
        if root != 0:
            place = phys_to_virt(PhysAddr(root)) + 8 * slot
            theirs = load64(place)
            if top_none(theirs):
                store64(place, entry)
                copies += 1
            elif entry_frame(theirs) != entry_frame(entry):
                report.panic("an address space has a kernel table of its own")


@noinline
def sync_kernel(reference: VirtAddr) -> None:
    """Bring every space up to date with *reference*."""
    for slot in range(KERNEL_SLOT, END_SLOT):
        sync_slot(reference, slot)
    mapping.top_changed = False


@noinline
def map_kernel(top: VirtAddr, va: VirtAddr, pa: PhysAddr, size: u64, protection: u64, largest: u64) -> u64:
    """`map_range` in the kernel's half of a running system: other spaces see it too when it returns."""
    left = map_range(top, va, pa, size, protection, largest)
    if mapping.top_changed:
        sync_kernel(top)
    return left

"""The address space in which the firmware's runtime services are called [proposal: parts 3 and 7].

Its top page is its own. Kernel entries are the kernel's: whole top entries where a slot is shared whole, and in
the last slot, where the firmware's window lies between areas of the kernel, table by table down to the window:
P4D entries below the window's, PUD entries outside it. Folded, the P4D step is the top's.
Source: Linux Documentation, x86_64 memory map.
"""

from __future__ import annotations

from typing import Final

from fivefold.kernel import report
from fivefold.kernel.efi import efi_map
from fivefold.kernel.efi.efi_map import DESCRIPTOR_VIRTUAL, EFI_VA_START, RUNTIME_CODE
from fivefold.kernel.paging import free, memblock, sync
from fivefold.kernel.paging.cpu import write_cr3
from fivefold.kernel.paging.layout import EFI_VA_END
from fivefold.kernel.paging.mapping import map_range, pte_of
from fivefold.kernel.paging.pgtable import (
    ACCESSED,
    DIRTY,
    FRAME_MASK,
    KERNEL_SLOT,
    LAST_SLOT,
    NX,
    PRESENT,
    PTE_LEVEL,
    PTRS_PER_TABLE,
    RW,
    p4d_folded,
    p4d_offset,
    p4d_populate,
    pgd_none,
    pgd_offset,
    pgd_populate,
    pud_index,
    table_at,
)
from fivefold.kernel.paging.phys import PAGE_SIZE, phys_to_virt
from fivefold.metal.lang import copy64, load64, noinline, read_cr3, store64, u64
from fivefold.units import PhysAddr, VirtAddr

CODE: Final = PRESENT | RW | ACCESSED | DIRTY
"""A region of code has its data among it, and the firmware writes to both in `SetVirtualAddressMap`; what is
not needed afterwards is taken away then (`efi_attributes.py`). In this space only, and not global."""
DATA: Final = CODE | NX

root: u64 = 0
"""Physical address of the top page."""


def top_page() -> VirtAddr:
    """The top page, as the direct map has it."""
    return phys_to_virt(PhysAddr(root))


@noinline
def create(top: VirtAddr) -> bool:
    """Build the top page, and tables of its own on the window's path; False without memory."""
    global root
    root = memblock.allocate_table()
    if root == 0:
        return False
    pgd = pgd_offset(top_page(), VirtAddr(EFI_VA_END))
    if pgd_none(load64(pgd)):
        table = memblock.allocate_table()
        if table == 0:
            return False
        pgd_populate(pgd, table)
    pud = memblock.allocate_table()
    if pud == 0:
        return False
    p4d_populate(p4d_offset(pgd, VirtAddr(EFI_VA_END)), pud)
    keep_in_step(top)
    return True


@noinline
def keep_in_step(top: VirtAddr) -> None:
    """Copy the shared kernel entries again; called before every firmware call because the kernel may have new ones.

    There is no fault handler to copy an entry late, as Linux once had: the firmware runs with interrupts off on a
    stack of the kernel's, and a fault on a missing top entry would be a double fault.
    """
    mine = top_page()
    for slot in range(KERNEL_SLOT, LAST_SLOT):
        if not sync.is_private(slot):
            store64(mine + 8 * slot, load64(top + 8 * slot))
    ours = p4d_offset(pgd_offset(mine, VirtAddr(EFI_VA_END)), VirtAddr(EFI_VA_END))
    theirs = p4d_offset(pgd_offset(top, VirtAddr(EFI_VA_END)), VirtAddr(EFI_VA_END))
    # The window shares its P4D table with other areas of the kernel, so that table is a copy too, entry by entry.
    # Folded there is no such table: the entry lies in the top, and none is left to copy below it.
    below = (ours & PAGE_SIZE - 1) // 8 if not p4d_folded() else u64(0)
    for i in range(1, below + 1):
        store64(ours - 8 * i, load64(theirs - 8 * i))
    copy_outside_window(table_at(load64(ours)), table_at(load64(theirs)))


def copy_outside_window(ours: VirtAddr, theirs: VirtAddr) -> None:
    """PUD entries of the last P4D entry, but those of the firmware's window."""
    first = pud_index(VirtAddr(EFI_VA_END))
    end = pud_index(VirtAddr(EFI_VA_START))
    copy64(ours, theirs, first)
    copy64(ours + 8 * end, theirs + 8 * end, PTRS_PER_TABLE - end)


@noinline
def map_regions() -> u64:
    """Identity-map every runtime region, map it in the window, and write that into the map; return their number."""
    count = u64(0)
    va = u64(EFI_VA_START)
    for i in range(efi_map.descriptors()):
        entry = efi_map.descriptor(i)
        if efi_map.is_runtime(entry):
            pa = PhysAddr(efi_map.physical(entry))
            size = efi_map.size(entry)
            va -= size
            protection = CODE if efi_map.kind(entry) == RUNTIME_CODE else DATA
            left = map_range(top_page(), VirtAddr(pa), pa, size, protection, PTE_LEVEL)
            left += map_range(top_page(), VirtAddr(va), pa, size, protection, PTE_LEVEL)
            if left != 0:
                report.panic("no memory to map the firmware's runtime regions")
            store64(entry + DESCRIPTOR_VIRTUAL, va)
            count += 1
    return count


@noinline
def drop_identity() -> u64:
    """Remove the firmware from the lower half, and its tables there; return how many top entries are left."""
    for i in range(efi_map.descriptors()):
        entry = efi_map.descriptor(i)
        if efi_map.is_runtime(entry):
            for page in range(efi_map.size(entry) // PAGE_SIZE):
                store64(pte_of(top_page(), VirtAddr(efi_map.physical(entry) + PAGE_SIZE * page)), 0)
    for i in range(efi_map.descriptors()):
        entry = efi_map.descriptor(i)
        if efi_map.is_runtime(entry):
            free.free_range(top_page(), VirtAddr(efi_map.physical(entry)), efi_map.size(entry))
    used = u64(0)
    for slot in range(KERNEL_SLOT):
        used += u64(load64(top_page() + 8 * slot) != 0)
    return used


def enter(top: VirtAddr) -> u64:
    """Load the firmware's space, brought up to date; return the root that was loaded."""
    before = read_cr3() & FRAME_MASK
    keep_in_step(top)
    write_cr3(PhysAddr(root))
    return before

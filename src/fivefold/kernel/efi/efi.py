"""The firmware's runtime services: its space is built, it is moved there and called there [proposal: parts 3 and 7].

First it is mapped at itself too and told where it will be; then what it needs no more is taken away: the mapping at
itself, and the rights that its table of memory attributes gives up.
"""

from __future__ import annotations

from typing import Final

from fivefold.kernel import report
from fivefold.kernel.efi import efi_attributes, efi_calls, efi_map, efi_space
from fivefold.kernel.efi.efi_map import EFI_VA_START
from fivefold.kernel.paging import layout, memblock, sync
from fivefold.kernel.paging.mapping import lookup, map_page
from fivefold.kernel.paging.pgtable import KERNEL_RW, entry_frame, pgd_size
from fivefold.kernel.paging.phys import PAGE_SIZE
from fivefold.kernel.selftest.checks import equals
from fivefold.metal.lang import noinline, u64
from fivefold.units import PhysAddr, VirtAddr

GROWTH_SLOT: Final = 9
"""Top entries above vmalloc's first, where nothing is yet."""

grown: u64 = 0
"""Tables that the check of sharing added to the kernel's own."""


@noinline
def check_runtime(top: VirtAddr, info: PhysAddr) -> None:
    """Only if the firmware started us: build its space and call it there."""
    if not efi_map.find_handoff(info):
        return
    report.check("efi_handoff", True, efi_map.handoff, 0)
    efi_map.check_map()
    before = memblock.table_pages
    if not efi_space.create(top):
        report.panic("no memory for the firmware's address space")
    regions = efi_space.map_regions()
    report.check("efi_runtime_regions", regions != 0, regions, 0)
    equals("efi_set_virtual_address_map", efi_calls.move_firmware(top), 0)
    equals("efi_identity_gone", efi_space.drop_identity(), 0)
    efi_attributes.divide(efi_space.top_page())
    check_sharing(top)
    efi_calls.check_time(top)
    efi_calls.check_variables(top)
    equals("efi_window_not_in_kernel", lookup(top, VirtAddr(EFI_VA_START - PAGE_SIZE)), 0)
    report.set_word(report.W_EFI_ROOT, efi_space.root)
    report.set_word(report.W_EFI_TABLES, memblock.table_pages - before - grown)


@noinline
def check_sharing(top: VirtAddr) -> None:
    """The kernel grows by a top entry; the firmware's space has it when it is next entered, and not before."""
    global grown
    va = VirtAddr((layout.vmalloc_base & ~(pgd_size() - 1)) + GROWTH_SLOT * pgd_size())
    before = memblock.table_pages
    page = memblock.allocate(PAGE_SIZE, PAGE_SIZE)
    if page == 0 or not map_page(top, va, page, KERNEL_RW):
        report.panic("no memory for a page of vmalloc")
    sync.sync_kernel(top)
    grown = memblock.table_pages - before
    equals("efi_own_top_page", u64(lookup(efi_space.top_page(), va) == 0), 1)
    efi_space.keep_in_step(top)
    equals("efi_shared_in_step", entry_frame(lookup(efi_space.top_page(), va)), page)

"""Checks of the firmware's address space: shared with the kernel's, and its services answer there."""

from __future__ import annotations

from typing import Final

from fivefold.kernel import report
from fivefold.kernel.efi import efi_calls, efi_space
from fivefold.kernel.efi.efi_map import EFI_VA_START
from fivefold.kernel.efi.efi_stub import BUFFER_TOO_SMALL, ERROR
from fivefold.kernel.paging import layout, memblock, sync
from fivefold.kernel.paging.mapping import lookup, map_page
from fivefold.kernel.paging.pgtable import KERNEL_RW, entry_frame, pgd_size
from fivefold.kernel.paging.phys import PAGE_SIZE
from fivefold.kernel.report import equals
from fivefold.metal.lang import buffer, fill64, load8, load16, load32, load64, noinline, store16, store64, u64
from fivefold.units import VirtAddr

GROWTH_SLOT: Final = 9
"""Top entries above vmalloc's first, where nothing is yet."""
NOT_FOUND: Final = ERROR | 14
RUNTIME_ACCESS: Final = 4
"""EFI_VARIABLE_RUNTIME_ACCESS: without it a variable is gone when boot services are."""
NAME_SIZE: Final = 1024
VALUE_SIZE: Final = 4096

time: Final = buffer(16)
name: Final = buffer(NAME_SIZE)
vendor: Final = buffer(16)
attributes: Final = buffer(8)
value: Final = buffer(VALUE_SIZE)
length: Final = buffer(8)


@noinline
def check_runtime(top: VirtAddr) -> None:
    """Check the firmware's space beside the kernel's at *top*, and call the firmware in it."""
    check_sharing(top)
    check_time(top)
    check_variables(top)
    equals("efi_window_not_in_kernel", lookup(top, VirtAddr(EFI_VA_START - PAGE_SIZE)), 0)


@noinline
def check_sharing(top: VirtAddr) -> None:
    """The kernel grows by a top entry; the firmware's space has it when it is next entered, and not before."""
    va = VirtAddr((layout.vmalloc_base & ~(pgd_size() - 1)) + GROWTH_SLOT * pgd_size())
    page = memblock.allocate(PAGE_SIZE, PAGE_SIZE)
    if page == 0 or not map_page(top, va, page, KERNEL_RW):
        report.panic("no memory for a page of vmalloc")
    sync.sync_kernel(top)
    equals("efi_own_top_page", u64(lookup(efi_space.top_page(), va) == 0), 1)
    efi_space.keep_in_step(top)
    equals("efi_shared_in_step", entry_frame(lookup(efi_space.top_page(), va)), page)


@noinline
def check_time(top: VirtAddr) -> None:
    """The clock can be read, and shows a date."""
    equals("efi_get_time", efi_calls.call_runtime(top, efi_calls.GET_TIME, time, 0, 0, 0, 0), 0)
    report.check("efi_get_time_plausible", is_date(), load32(time), 0)


def is_date() -> bool:
    """Whether the time that was read has a year of this century, a month and a day."""
    month = load8(time + 2)
    day = load8(time + 3)
    return load16(time) >= 2000 and load16(time) < 2100 and month >= 1 and month <= 12 and day >= 1 and day <= 31


@noinline
def check_variables(top: VirtAddr) -> None:
    """The first variable that the firmware names can be read, in two steps as for any size; an unknown one cannot.

    Which variables there are is the firmware's affair; that it finds what it named is not.
    """
    fill64(name, 0, NAME_SIZE // 8)
    store64(length, NAME_SIZE)
    equals("efi_next_variable", efi_calls.call_runtime(top, efi_calls.NEXT_VARIABLE, length, name, vendor, 0, 0), 0)
    store64(length, 0)
    equals("efi_get_variable_size", read_variable(top), BUFFER_TOO_SMALL)
    size = load64(length)
    if size > VALUE_SIZE:
        report.skip("efi_get_variable", "the firmware's first variable is larger than the room for it")
    else:
        equals("efi_get_variable", read_variable(top), 0)
        equals("efi_get_variable_length", load64(length), size)
        equals("efi_get_variable_attributes", load32(attributes) & RUNTIME_ACCESS, RUNTIME_ACCESS)
    store64(length, VALUE_SIZE)
    store16(name, load16(name) ^ 0x4000)
    equals("efi_get_variable_not_found", read_variable(top), NOT_FOUND)


def read_variable(top: VirtAddr) -> u64:
    """Ask for the variable that is named; the firmware's status."""
    return efi_calls.call_runtime(top, efi_calls.GET_VARIABLE, name, vendor, attributes, length, value)

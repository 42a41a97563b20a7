"""Calls of the firmware's runtime services, in its address space, and what is asked of it.

It is told where it will be (`SetVirtualAddressMap`) while it is still mapped at itself; from then on it is called where
the window shows it. Source: UEFI Specification 2.10, "Services - Runtime Services".
"""

from __future__ import annotations

from typing import Final

from fivefold.kernel import report
from fivefold.kernel.efi import efi_map, efi_space
from fivefold.kernel.efi.efi_stub import (
    BUFFER_TOO_SMALL,
    EFI_DESCRIPTOR_SIZE,
    EFI_DESCRIPTOR_VERSION,
    EFI_MAP_SIZE,
    EFI_SYSTEM_TABLE,
    ERROR,
    SYSTEM_RUNTIME,
    efi_call,
)
from fivefold.kernel.paging.cpu import write_cr3, write_cr4
from fivefold.kernel.selftest.checks import equals
from fivefold.metal.lang import (
    buffer,
    fill64,
    load8,
    load16,
    load32,
    load64,
    noinline,
    read_cr4,
    store16,
    store64,
    u64,
)
from fivefold.units import PhysAddr, VirtAddr

GET_TIME: Final = 24
SET_VIRTUAL_ADDRESS_MAP: Final = 56
GET_VARIABLE: Final = 72
NEXT_VARIABLE: Final = 80
"""Offsets in the table of runtime services."""
NOT_FOUND: Final = ERROR | 14
CR4_SSE: Final = 3 << 9
"""OSFXSR and OSXMMEXCPT: the firmware may use SSE."""
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
def move_firmware(top: VirtAddr) -> u64:
    """Tell the firmware where it will be; it is still called at its physical address. Returns its status."""
    handoff = efi_map.handoff
    system = load64(handoff + EFI_SYSTEM_TABLE)
    kernel_root = efi_space.enter(top)
    control = read_cr4()
    write_cr4(control | CR4_SSE)
    service = load64(load64(system + SYSTEM_RUNTIME) + SET_VIRTUAL_ADDRESS_MAP)
    size = load64(handoff + EFI_MAP_SIZE)
    each = load64(handoff + EFI_DESCRIPTOR_SIZE)
    version = load32(handoff + EFI_DESCRIPTOR_VERSION)
    status = efi_call(service, size, each, version, handoff + efi_map.MAP_OFFSET, 0)
    write_cr4(control)
    write_cr3(PhysAddr(kernel_root))
    return status


@noinline
def call_runtime(top: VirtAddr, offset: u64, a: u64, b: u64, c: u64, d: u64, e: u64) -> u64:
    """Call the runtime service at *offset* of its table, at its virtual address; return its status."""
    system = efi_map.virtual_of(load64(efi_map.handoff + EFI_SYSTEM_TABLE))
    if system == 0:
        return ERROR
    kernel_root = efi_space.enter(top)
    control = read_cr4()
    write_cr4(control | CR4_SSE)
    status = efi_call(load64(load64(system + SYSTEM_RUNTIME) + offset), a, b, c, d, e)
    write_cr4(control)
    write_cr3(PhysAddr(kernel_root))
    return status


# -- what is asked ----------------------------------------------------------------------------


@noinline
def check_time(top: VirtAddr) -> None:
    """The clock can be read, and shows a date."""
    equals("efi_get_time", call_runtime(top, GET_TIME, time, 0, 0, 0, 0), 0)
    report.check("efi_get_time_plausible", is_date(), load32(time), 0)


def is_date() -> bool:
    """Whether the time that was read has a year of this century, a month and a day."""
    month = load8(time + 2)
    day = load8(time + 3)
    return load16(time) >= 2000 and load16(time) < 2100 and month >= 1 and month <= 12 and day >= 1 and day <= 31


@noinline
def check_variables(top: VirtAddr) -> None:
    """The first variable that the firmware names can be read, in two steps as for any size; one that nobody has cannot.

    Which variables there are is the firmware's affair; that it finds what it named is not.
    """
    fill64(name, 0, NAME_SIZE // 8)
    store64(length, NAME_SIZE)
    equals("efi_next_variable", call_runtime(top, NEXT_VARIABLE, length, name, vendor, 0, 0), 0)
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
    return call_runtime(top, GET_VARIABLE, name, vendor, attributes, length, value)

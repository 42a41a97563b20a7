"""Calls of the firmware's runtime services, in its address space.

It gets its new addresses (`SetVirtualAddressMap`) while it is still mapped at its physical address; from then on it
is called where the window shows it. Source: UEFI Specification 2.10, "Services - Runtime Services".
"""

from __future__ import annotations

from typing import Final

from fivefold.kernel.efi import efi_map, efi_space
from fivefold.kernel.efi.efi_stub import (
    EFI_DESCRIPTOR_SIZE,
    EFI_DESCRIPTOR_VERSION,
    EFI_MAP_SIZE,
    EFI_SYSTEM_TABLE,
    ERROR,
    SYSTEM_RUNTIME,
    efi_call,
)
from fivefold.kernel.paging.cpu import write_cr3, write_cr4
from fivefold.metal.lang import load32, load64, noinline, read_cr4, u64
from fivefold.units import PhysAddr, VirtAddr

GET_TIME: Final = 24
SET_VIRTUAL_ADDRESS_MAP: Final = 56
GET_VARIABLE: Final = 72
NEXT_VARIABLE: Final = 80
"""Offsets in the table of runtime services."""
CR4_SSE: Final = 3 << 9
"""OSFXSR and OSXMMEXCPT: the firmware may use SSE."""


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
    write_cr3(PhysAddr(kernel_root))  # TLB: the firmware's leaves are not global, so its identity map can go now
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

"""The firmware's own memory map, as the EFI application handed it over, believed where it can be true.

A descriptor may be larger than we know it; how large the map says. Source: UEFI Specification 2.10, "GetMemoryMap".
"""

from __future__ import annotations

from typing import Final

from fivefold.kernel import report
from fivefold.kernel.boot import start_info
from fivefold.kernel.efi.efi_stub import (
    EFI_DESCRIPTOR_SIZE,
    EFI_MAGIC,
    EFI_MAP_SIZE,
    HANDOFF_EFI,
    HANDOFF_MAP,
    is_map_sound,
)
from fivefold.kernel.paging import memblock
from fivefold.kernel.paging.layout import EFI_VA_END
from fivefold.kernel.paging.pgtable import va_bits
from fivefold.kernel.paging.phys import PAGE_SIZE, phys_to_virt
from fivefold.metal.lang import load32, load64, noinline, u64
from fivefold.units import PhysAddr

EFI_VA_START: Final = 0xFFFF_FFFF_0000_0000
"""Exclusive end of the firmware's window; regions are placed from here downwards, to `EFI_VA_END`."""
WINDOW_PAGES: Final = (EFI_VA_START - EFI_VA_END) // PAGE_SIZE
RUNTIME: Final = 1 << 63
"""EFI_MEMORY_RUNTIME in a descriptor's attributes."""
RUNTIME_CODE: Final = 5
RUNTIME_DATA: Final = 6
DESCRIPTOR_PHYSICAL: Final = 8
DESCRIPTOR_VIRTUAL: Final = 16
DESCRIPTOR_PAGES: Final = 24
DESCRIPTOR_ATTRIBUTES: Final = 32
MAP_OFFSET: Final = HANDOFF_MAP - HANDOFF_EFI

handoff: u64 = 0
"""Where the module with the firmware's own lies, as the direct map has it; 0 if no firmware started us."""


def find_handoff(info: PhysAddr) -> bool:
    """Look for what the EFI application left, among the modules."""
    global handoff
    for i in range(min(start_info.field32(info, start_info.OFFSET_MODULES), start_info.MAX_MODULES)):
        module = start_info.field64(info, start_info.OFFSET_MODULE_LIST) + start_info.MODULE_ENTRY_SIZE * i
        at = PhysAddr(start_info.field64(PhysAddr(module), 0))
        size = start_info.field64(PhysAddr(module), 8)
        # A loader's module may lie in a ROM, or end within a word: the direct map has memory only.
        if size >= MAP_OFFSET and memblock.is_memory(at, size) and load64(phys_to_virt(at)) == EFI_MAGIC:
            handoff = phys_to_virt(at)
    return handoff != 0


def descriptors() -> u64:
    """Entries of the map."""
    return load64(handoff + EFI_MAP_SIZE) // load64(handoff + EFI_DESCRIPTOR_SIZE)


def descriptor(i: u64) -> u64:
    """Address of entry *i* of the map."""
    return handoff + MAP_OFFSET + i * load64(handoff + EFI_DESCRIPTOR_SIZE)


def kind(entry: u64) -> u64:
    """The firmware's type of an entry."""
    return load32(entry)


def physical(entry: u64) -> u64:
    """Where the region of an entry begins."""
    return load64(entry + DESCRIPTOR_PHYSICAL)


def size(entry: u64) -> u64:
    """Bytes of the region of an entry."""
    return load64(entry + DESCRIPTOR_PAGES) * PAGE_SIZE


def is_runtime(entry: u64) -> bool:
    """Whether the firmware needs the region while it is called; an empty one is none."""
    return load64(entry + DESCRIPTOR_ATTRIBUTES) & RUNTIME != 0 and load64(entry + DESCRIPTOR_PAGES) != 0


def virtual_of(pa: u64) -> u64:
    """Where the window shows physical *pa* of a runtime region; 0 if it is none."""
    for i in range(descriptors()):
        entry = descriptor(i)
        if is_runtime(entry) and pa >= physical(entry) and pa - physical(entry) < size(entry):
            return load64(entry + DESCRIPTOR_VIRTUAL) + pa - physical(entry)
    return 0


# -- what cannot be true ----------------------------------------------------------------------


@noinline
def check_map() -> None:
    """Refuse a map whose runtime regions cannot all be mapped: nothing has been written yet."""
    if not is_map_sound(handoff):
        report.panic("the firmware's memory map has descriptors of a size that cannot be")
    left = u64(WINDOW_PAGES)
    for i in range(descriptors()):
        entry = descriptor(i)
        if is_runtime(entry):
            pages = load64(entry + DESCRIPTOR_PAGES)
            if pages > left:
                report.panic("the firmware's runtime regions do not fit")
            left -= pages
            if not can_be(physical(entry), size(entry)):
                report.panic("the firmware has a runtime region where no memory can be")
            if meets_earlier(i):
                report.panic("two runtime regions of the firmware overlap")


def can_be(start: u64, length: u64) -> bool:
    """Whether whole pages at *start* fit into an identity map, in the lower half."""
    return start & (PAGE_SIZE - 1) == 0 and start < 1 << (va_bits() - 1) and start + length <= 1 << (va_bits() - 1)


def meets_earlier(i: u64) -> bool:
    """Whether runtime region *i* overlaps one before it in the map."""
    start = physical(descriptor(i))
    end = start + size(descriptor(i))
    for k in range(i):
        other = descriptor(k)
        if is_runtime(other) and physical(other) < end and start < physical(other) + size(other):
            return True
    return False

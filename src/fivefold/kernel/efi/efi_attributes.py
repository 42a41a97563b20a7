"""Which of the firmware's runtime pages are code and which are data, where the firmware says so.

Its memory map has regions that hold drivers whole, so each would have to be writable and executable. The table of
memory attributes divides them: rows of pages that need not be written, or not be executed. It is used whole or not at
all: rows that do not lie within the map's regions, are not in order, or overlap, are a table of something else.
Source: UEFI Specification 2.10, "EFI_MEMORY_ATTRIBUTES_TABLE".
"""

from __future__ import annotations

from typing import Final

from fivefold.kernel import report
from fivefold.kernel.efi import efi_map
from fivefold.kernel.efi.efi_map import (
    DESCRIPTOR_ATTRIBUTES,
    DESCRIPTOR_PAGES,
    DESCRIPTOR_VIRTUAL,
    RUNTIME_CODE,
    RUNTIME_DATA,
)
from fivefold.kernel.efi.efi_stub import ATTRIBUTES_HEAD, EFI_ATTRIBUTES_SIZE, HANDOFF_ATTRIBUTES, HANDOFF_EFI
from fivefold.kernel.paging.mapping import lookup, pte_of
from fivefold.kernel.paging.pgtable import DIRTY, NX, RW
from fivefold.kernel.paging.phys import PAGE_SIZE
from fivefold.kernel.report import equals
from fivefold.metal.lang import load32, load64, noinline, store64, u64
from fivefold.units import VirtAddr

EXECUTE_PROTECT: Final = 1 << 14
READ_ONLY: Final = 1 << 17
"""EFI_MEMORY_XP and EFI_MEMORY_RO."""
TABLE: Final = HANDOFF_ATTRIBUTES - HANDOFF_EFI


@noinline
def divide(mine: VirtAddr) -> None:
    """Take from the window's pages below top table *mine* the rights that the table says are not needed; check it."""
    if load64(efi_map.handoff + EFI_ATTRIBUTES_SIZE) == 0:
        report.skip("efi_write_or_execute", "the firmware has no table of memory attributes that can be used")
        return
    if not is_sound():
        report.skip("efi_write_or_execute", "the firmware's table of memory attributes contradicts its memory map")
        return
    for i in range(rows()):
        protect(mine, row(i))
    if leaves_any():
        report.skip("efi_write_or_execute", "the firmware's table of memory attributes leaves pages that are both")
    else:
        report.set_word(report.W_EFI_ATTRIBUTES, rows())
        equals("efi_write_or_execute", writable_executable(mine), 0)


def rows() -> u64:
    """Rows of the table."""
    return load32(efi_map.handoff + TABLE + 4)


def row(i: u64) -> u64:
    """Address of row *i*, which is a memory descriptor."""
    return efi_map.handoff + TABLE + ATTRIBUTES_HEAD + i * load32(efi_map.handoff + TABLE + 8)


@noinline
def is_sound() -> bool:
    """Whether every row lies within a runtime region of its own type, behind the row before it."""
    end = u64(0)
    for i in range(rows()):
        start = efi_map.physical(row(i))
        known = efi_map.kind(row(i)) == RUNTIME_CODE or efi_map.kind(row(i)) == RUNTIME_DATA
        if not known or start < end or region_of(row(i)) == 0:
            return False
        end = start + efi_map.size(row(i))
    return rows() != 0


def region_of(entry: u64) -> u64:
    """The runtime region of the map that all of a row lies in, and that has its type; 0 if none has."""
    start = efi_map.physical(entry)
    pages = load64(entry + DESCRIPTOR_PAGES)
    for i in range(efi_map.descriptors()):
        region = efi_map.descriptor(i)
        if efi_map.is_runtime(region) and efi_map.kind(region) == efi_map.kind(entry):
            before = start - efi_map.physical(region)  # wraps to more than any size where the row is below
            inside = before < efi_map.size(region)
            room = (efi_map.size(region) - before) // PAGE_SIZE
            if inside and before & PAGE_SIZE - 1 == 0 and pages != 0 and pages <= room:
                return region
    return 0


@noinline
def protect(mine: VirtAddr, entry: u64) -> None:
    """Take away what one row says."""
    region = region_of(entry)
    va = load64(region + DESCRIPTOR_VIRTUAL) + efi_map.physical(entry) - efi_map.physical(region)
    attributes = load64(entry + DESCRIPTOR_ATTRIBUTES)
    for page in range(load64(entry + DESCRIPTOR_PAGES)):
        pte = pte_of(mine, VirtAddr(va + PAGE_SIZE * page))
        value = load64(pte)
        # Not writable but dirty would mean a shadow stack.
        # TLB: rights are narrowed while this root is not loaded, and the next call loads CR3.
        value = value & ~(RW | DIRTY) if attributes & READ_ONLY != 0 else value
        store64(pte, value | NX if attributes & EXECUTE_PROTECT != 0 else value)


def leaves_any() -> bool:
    """Whether code pages of the map are in no row, or in one that takes nothing away."""
    left = u64(0)
    for i in range(efi_map.descriptors()):
        entry = efi_map.descriptor(i)
        if efi_map.is_runtime(entry) and efi_map.kind(entry) == RUNTIME_CODE:
            left += load64(entry + DESCRIPTOR_PAGES)
    for i in range(rows()):
        if efi_map.kind(row(i)) == RUNTIME_CODE:
            if load64(row(i) + DESCRIPTOR_ATTRIBUTES) & (READ_ONLY | EXECUTE_PROTECT) != 0:
                left -= load64(row(i) + DESCRIPTOR_PAGES)
    return left != 0


@noinline
def writable_executable(mine: VirtAddr) -> u64:
    """Pages of the window that are both, by the entries."""
    count = u64(0)
    for i in range(efi_map.descriptors()):
        entry = efi_map.descriptor(i)
        if efi_map.is_runtime(entry):
            for page in range(load64(entry + DESCRIPTOR_PAGES)):
                leaf = lookup(mine, VirtAddr(load64(entry + DESCRIPTOR_VIRTUAL) + PAGE_SIZE * page))
                count += u64(leaf & RW != 0 and leaf & NX == 0)
    return count

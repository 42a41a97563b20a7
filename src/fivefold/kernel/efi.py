"""The firmware's runtime services, in an address space of their own [proposal: parts 3 and 7].

Its top page is its own. Kernel entries are the kernel's: whole top entries where a slot is shared whole, and in
the last slot, where the firmware's window lies between areas of the kernel, table by table down to the window:
P4D entries below the window's, PUD entries outside it. Folded, the P4D step is the top's. The firmware is first
mapped at itself, told where it will be (`SetVirtualAddressMap`), and then only there.
Source: UEFI Specification 2.10, "Services - Runtime Services"; Linux Documentation, x86_64 memory map.
"""

from __future__ import annotations

from typing import Final

from fivefold.kernel import free, layout, memblock, report, start_info, sync
from fivefold.kernel.checks import equals
from fivefold.kernel.cpu import write_cr3, write_cr4
from fivefold.kernel.efi_stub import (
    EFI_DESCRIPTOR_SIZE,
    EFI_DESCRIPTOR_VERSION,
    EFI_MAGIC,
    EFI_MAP_SIZE,
    EFI_SYSTEM_TABLE,
    ERROR,
    HANDOFF_EFI,
    HANDOFF_MAP,
    PAGE_SIZE,
    SYSTEM_RUNTIME,
    efi_call,
)
from fivefold.kernel.layout import EFI_VA_END
from fivefold.kernel.mapping import lookup, map_page, map_range
from fivefold.kernel.pgtable import (
    ACCESSED,
    DIRTY,
    FRAME_MASK,
    KERNEL_RW,
    NX,
    P4D_SIZE,
    PRESENT,
    PTE_LEVEL,
    PTRS_PER_TABLE,
    RW,
    entry_frame,
    p4d_offset,
    p4d_populate,
    pgd_none,
    pgd_offset,
    pgd_populate,
    pgd_size,
    pmd_offset,
    pte_offset,
    pud_index,
    pud_offset,
    table_at,
)
from fivefold.kernel.phys import phys_to_virt
from fivefold.metal.lang import (
    buffer,
    copy64,
    load8,
    load16,
    load32,
    load64,
    noinline,
    read_cr3,
    read_cr4,
    store64,
    u64,
)
from fivefold.units import PhysAddr, VirtAddr

EFI_VA_START: Final = 0xFFFF_FFFF_0000_0000
"""Exclusive end of the window; regions are placed from here downwards, to `EFI_VA_END`."""
RUNTIME: Final = 1 << 63
"""EFI_MEMORY_RUNTIME in a descriptor's attributes."""
RUNTIME_CODE: Final = 5
DESCRIPTOR_PHYSICAL: Final = 8
DESCRIPTOR_VIRTUAL: Final = 16
DESCRIPTOR_PAGES: Final = 24
DESCRIPTOR_ATTRIBUTES: Final = 32

MAP_OFFSET: Final = HANDOFF_MAP - HANDOFF_EFI
GET_TIME: Final = 24
SET_VIRTUAL_ADDRESS_MAP: Final = 56
CR4_SSE: Final = 3 << 9
"""OSFXSR and OSXMMEXCPT: the firmware may use SSE."""

CODE: Final = PRESENT | RW | ACCESSED | DIRTY
"""Firmware keeps code and data in one region, so it is writable and executable, in this space only. Not global."""
DATA: Final = CODE | NX
LAST_SLOT: Final = 511
GROWTH_SLOT: Final = 9
"""Top entries above vmalloc's first, where nothing is yet."""

time: Final = buffer(16)

root: u64 = 0
handoff: u64 = 0


@noinline
def check_runtime(top: VirtAddr, info: PhysAddr) -> None:
    """Only if the firmware started us: build its space and call it there."""
    if not find_handoff(info):
        return
    report.check("efi_handoff", True, handoff, 0)
    before = memblock.table_pages
    if not create(top):
        report.panic("no memory for the firmware's address space")
    regions = map_regions()
    report.check("efi_runtime_regions", regions != 0, regions, 0)
    equals("efi_set_virtual_address_map", move_firmware(top), 0)
    equals("efi_identity_gone", drop_identity(), 0)
    check_sharing(top)
    equals("efi_get_time", call_runtime(top, GET_TIME, time, 0, 0, 0), 0)
    report.check("efi_get_time_plausible", is_date(), load32(time), 0)
    equals("efi_window_not_in_kernel", lookup(top, VirtAddr(EFI_VA_START - PAGE_SIZE)), 0)
    report.set_word(report.W_EFI_ROOT, root)
    report.set_word(report.W_EFI_TABLES, memblock.table_pages - before - grown)


grown: u64 = 0
"""Tables that the check of sharing added to the kernel's own."""


def find_handoff(info: PhysAddr) -> bool:
    """Look for what the EFI application left, among the modules."""
    global handoff
    for i in range(min(start_info.field32(info, start_info.OFFSET_MODULES), start_info.MAX_MODULES)):
        module = start_info.field64(info, start_info.OFFSET_MODULE_LIST) + start_info.MODULE_ENTRY_SIZE * i
        content = phys_to_virt(PhysAddr(start_info.field64(PhysAddr(module), 0)))
        if load64(content) == EFI_MAGIC:
            handoff = content
    return handoff != 0


# -- the space --------------------------------------------------------------------------------


@noinline
def create(top: VirtAddr) -> bool:
    """Build the top page, and tables of its own on the window's path; False without memory."""
    global root
    root = memblock.allocate_table()
    if root == 0:
        return False
    mine = phys_to_virt(PhysAddr(root))
    pgd = pgd_offset(mine, VirtAddr(EFI_VA_END))
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
    """Copy what is shared, as it is in the kernel's tables now: before every call, since the kernel may have grown."""
    mine = phys_to_virt(PhysAddr(root))
    for slot in range(sync.KERNEL_SLOT, LAST_SLOT):
        if not sync.is_private(slot):
            store64(mine + 8 * slot, load64(top + 8 * slot))
    ours = p4d_offset(pgd_offset(mine, VirtAddr(EFI_VA_END)), VirtAddr(EFI_VA_END))
    theirs = p4d_offset(pgd_offset(top, VirtAddr(EFI_VA_END)), VirtAddr(EFI_VA_END))
    # Below the window's P4D entry lie the rest of its table: none of it when it is folded into the top.
    below = (ours & PAGE_SIZE - 1) // 8 if pgd_size() != P4D_SIZE else u64(0)
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
    """Map every runtime region at itself and in the window, and write that into the map; return how many there are."""
    mine = phys_to_virt(PhysAddr(root))
    count = u64(0)
    va = u64(EFI_VA_START)
    for i in range(descriptors()):
        entry = descriptor(i)
        if load64(entry + DESCRIPTOR_ATTRIBUTES) & RUNTIME != 0:
            pa = PhysAddr(load64(entry + DESCRIPTOR_PHYSICAL))
            size = load64(entry + DESCRIPTOR_PAGES) * PAGE_SIZE
            va -= size
            protection = CODE if load32(entry) == RUNTIME_CODE else DATA
            left = map_range(mine, VirtAddr(pa), pa, size, protection, PTE_LEVEL)
            left += map_range(mine, VirtAddr(va), pa, size, protection, PTE_LEVEL)
            if left != 0 or va < EFI_VA_END:
                report.panic("the firmware's runtime regions do not fit")
            store64(entry + DESCRIPTOR_VIRTUAL, va)
            count += 1
    return count


def descriptors() -> u64:
    """Entries of the firmware's map."""
    return load64(handoff + EFI_MAP_SIZE) // load64(handoff + EFI_DESCRIPTOR_SIZE)


def descriptor(i: u64) -> u64:
    """Entry *i* of the firmware's map."""
    return handoff + MAP_OFFSET + i * load64(handoff + EFI_DESCRIPTOR_SIZE)


@noinline
def drop_identity() -> u64:
    """Remove the firmware from the lower half, and its tables there; return how many top entries are left."""
    mine = phys_to_virt(PhysAddr(root))
    for i in range(descriptors()):
        entry = descriptor(i)
        if load64(entry + DESCRIPTOR_ATTRIBUTES) & RUNTIME != 0:
            at = load64(entry + DESCRIPTOR_PHYSICAL)
            for page in range(load64(entry + DESCRIPTOR_PAGES)):
                va = VirtAddr(at + PAGE_SIZE * page)
                store64(pte_offset(pmd_offset(pud_offset(p4d_offset(pgd_offset(mine, va), va), va), va), va), 0)
    for i in range(descriptors()):
        entry = descriptor(i)
        if load64(entry + DESCRIPTOR_ATTRIBUTES) & RUNTIME != 0:
            start = VirtAddr(load64(entry + DESCRIPTOR_PHYSICAL))
            free.free_range(mine, start, load64(entry + DESCRIPTOR_PAGES) * PAGE_SIZE)
    used = u64(0)
    for slot in range(sync.KERNEL_SLOT):
        used += u64(load64(mine + 8 * slot) != 0)
    return used


# -- calls ----------------------------------------------------------------------------------------


@noinline
def move_firmware(top: VirtAddr) -> u64:
    """Tell the firmware where it will be; it is still called at its physical address. Returns its status."""
    system = load64(handoff + EFI_SYSTEM_TABLE)
    kernel_root = enter(top)
    control = read_cr4()
    write_cr4(control | CR4_SSE)
    service = load64(load64(system + SYSTEM_RUNTIME) + SET_VIRTUAL_ADDRESS_MAP)
    size = load64(handoff + EFI_MAP_SIZE)
    each = load64(handoff + EFI_DESCRIPTOR_SIZE)
    status = efi_call(service, size, each, load32(handoff + EFI_DESCRIPTOR_VERSION), handoff + MAP_OFFSET, 0)
    write_cr4(control)
    write_cr3(PhysAddr(kernel_root))
    return status


@noinline
def call_runtime(top: VirtAddr, offset: u64, a: u64, b: u64, c: u64, d: u64) -> u64:
    """Call the runtime service at *offset* of its table, at its virtual address; return its status."""
    system = virtual_of(load64(handoff + EFI_SYSTEM_TABLE))
    if system == 0:
        return ERROR
    kernel_root = enter(top)
    control = read_cr4()
    write_cr4(control | CR4_SSE)
    status = efi_call(load64(load64(system + SYSTEM_RUNTIME) + offset), a, b, c, d, 0)
    write_cr4(control)
    write_cr3(PhysAddr(kernel_root))
    return status


def enter(top: VirtAddr) -> u64:
    """Load the firmware's space, brought up to date; return the root that was loaded."""
    before = read_cr3() & FRAME_MASK
    keep_in_step(top)
    write_cr3(PhysAddr(root))
    return before


def virtual_of(pa: u64) -> u64:
    """Where the window shows physical *pa* of a runtime region; 0 if it is none."""
    for i in range(descriptors()):
        entry = descriptor(i)
        start = load64(entry + DESCRIPTOR_PHYSICAL)
        inside = pa >= start and pa < start + load64(entry + DESCRIPTOR_PAGES) * PAGE_SIZE
        if inside and load64(entry + DESCRIPTOR_ATTRIBUTES) & RUNTIME != 0:
            return load64(entry + DESCRIPTOR_VIRTUAL) + pa - start
    return 0


def is_date() -> bool:
    """Whether the time that was read has a year of this century, a month and a day."""
    month = load8(time + 2)
    day = load8(time + 3)
    return load16(time) >= 2000 and load16(time) < 2100 and month >= 1 and month <= 12 and day >= 1 and day <= 31


@noinline
def check_sharing(top: VirtAddr) -> None:
    """The kernel grows by a top entry; the firmware's space has it when it is next entered, and not before."""
    global grown
    mine = phys_to_virt(PhysAddr(root))
    va = VirtAddr((layout.vmalloc_base & ~(pgd_size() - 1)) + GROWTH_SLOT * pgd_size())
    before = memblock.table_pages
    page = memblock.allocate(PAGE_SIZE, PAGE_SIZE)
    if page == 0 or not map_page(top, va, page, KERNEL_RW):
        report.panic("no memory for a page of vmalloc")
    sync.sync_kernel(top)
    grown = memblock.table_pages - before
    equals("efi_own_top_page", u64(lookup(mine, va) == 0), 1)
    keep_in_step(top)
    equals("efi_shared_in_step", entry_frame(lookup(mine, va)), page)

"""The kernel checks itself: what every area must allow, and what everything else must refuse.

A check asks the CPU, by a probe that may fault, and compares the answer with the layout; it
is named after what it guards. What is found is recorded in the table of `report.py`, where
the host reads it beside the checks made from outside.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from fivefold.kernel import report
from fivefold.kernel.areas import kasan, kaslr, kernel_map
from fivefold.kernel.areas.vmemmap import descriptor_of
from fivefold.kernel.boot.detect import cpu_has_nx
from fivefold.kernel.paging import layout, memblock, pgtable, phys
from fivefold.kernel.paging.cpu import CR0_PG, CR0_WP, CR4_LA57, EFER_LMA, EFER_NXE, MSR_EFER
from fivefold.kernel.paging.layout import (
    AREAS,
    ESPFIX_BASE,
    FIXADDR_TOP,
    GUARD_HOLE_END_SLOT,
    GUARD_HOLE_FIRST_SLOT,
    LDT_BASE,
    MODULES_VADDR,
)
from fivefold.kernel.paging.mapping import lookup, p4d_free
from fivefold.kernel.paging.pgtable import (
    TABLE,
    entry_frame,
    levels,
    p4d_clear,
    p4d_folded,
    p4d_index,
    p4d_none,
    p4d_offset,
    pgd_bad,
    pgd_clear,
    pgd_index,
    pgd_leaf,
    pgd_none,
    pgd_populate,
    pgd_present,
    pgd_size,
    set_pgd,
    va_bits,
)
from fivefold.kernel.paging.phys import PAGE_SHIFT, PAGE_SIZE, kernel_to_phys, phys_to_virt
from fivefold.kernel.process import traps
from fivefold.kernel.report import equals
from fivefold.metal.lang import buffer, load64, noinline, rdmsr, read_cr0, read_cr3, read_cr4, store64, symbol, u64
from fivefold.units import PhysAddr, VirtAddr

ABSENT_READ: Final = traps.PROBE_FAULTED | traps.PAGE_FAULT << 32
"""A read of what is not mapped: #PF with error code 0."""
WRITE_REFUSED: Final = traps.PROBE_FAULTED | traps.PAGE_FAULT << 32 | 3
"""A write to what is mapped without that right: P and W."""
FETCH_REFUSED: Final = traps.PROBE_FAULTED | traps.PAGE_FAULT << 32 | 0x11
"""An instruction fetch from what is mapped with NX: P and I."""
NOT_CANONICAL: Final = traps.PROBE_FAULTED | traps.GENERAL_PROTECTION << 32
"""An access to an address that is not canonical: #GP(0)."""


@dataclass(frozen=True)
class ShadowCheck:
    """The names of two checks, and the area that they are for."""

    load: str
    store: str
    start: tuple[int, int, int, int]
    movable: int


SHADOW_CHECKS: Final = tuple(
    ShadowCheck(f"kasan_load_{row.name}", f"kasan_store_{row.name}", row.start, row.movable)
    for row in AREAS
    if row.movable < layout.SHADOW
)

MARK: Final = 0x5A5A_0057_0048_A5A5
scratch: Final = buffer(PAGE_SIZE, PAGE_SIZE)
seen: Final = buffer(8)


@noinline
def reads(name: str, va: VirtAddr) -> None:
    """Check that *va* can be read."""
    equals(name, traps.probe_read(va, VirtAddr(seen)), traps.PROBE_OK)


@noinline
def refuses(name: str, va: VirtAddr) -> None:
    """Check that nothing is mapped at *va*."""
    equals(name, traps.probe_read(va, VirtAddr(seen)), ABSENT_READ)


@noinline
def refuses_write(name: str, va: VirtAddr) -> None:
    """Check that *va* is mapped and cannot be written."""
    if traps.probe_read(va, VirtAddr(seen)) != traps.PROBE_OK:
        reads(name, va)
    else:
        equals(name, traps.probe_write(va), WRITE_REFUSED)


@noinline
def refuses_execute(name: str, va: VirtAddr) -> None:
    """Check that *va* cannot be executed."""
    if cpu_has_nx():
        equals(name, traps.probe_execute(va), FETCH_REFUSED)
    else:
        report.skip(name, "the CPU has no NX")


@noinline
def is_same_page(va: VirtAddr, other: VirtAddr) -> bool:
    """Whether what is written at *va* is read at *other*."""
    before = load64(va)
    store64(va, MARK)
    same = load64(other) == MARK
    store64(va, before)
    return same and load64(other) == before


@noinline
def check_mode(top: VirtAddr) -> None:
    """The mode is one decision: three numbers, CR4, and what the boot code passed on."""
    five = u64(read_cr4() & CR4_LA57 != 0)
    ok = pgtable.l5_enabled == five and pgtable.pgdir_shift == 39 + 9 * five
    ok = ok and pgtable.ptrs_per_p4d == (512 if five != 0 else 1)
    report.check("mode_triple", ok, pgtable.pgdir_shift, 39 + 9 * five)
    equals("mode_follows_cr4", levels(), 4 + five)
    control = read_cr0() & (CR0_PG | CR0_WP)
    equals("control_registers", control, CR0_PG | CR0_WP)
    efer = rdmsr(MSR_EFER) & (EFER_LMA | EFER_NXE)
    equals("efer", efer, EFER_LMA | (EFER_NXE if cpu_has_nx() else 0))
    equals("root_is_final", entry_frame(read_cr3()), top - phys.phys_window)


@noinline
def check_fold() -> None:
    """The law of folding, on a table that nothing uses."""
    store64(scratch, 0)
    slot = VirtAddr(scratch)
    folded = p4d_folded()
    equals("fold_none", u64(pgd_none(0)), u64(not folded))
    equals("fold_present", u64(pgd_present(0)), u64(folded))
    equals("fold_bad", u64(pgd_bad(0xFFF)), u64(not folded))
    equals("fold_leaf", u64(pgd_leaf(0x80)), 0)
    pgd_populate(slot, PhysAddr(0x1000))
    equals("fold_populate", load64(slot), 0 if folded else 0x1000 | TABLE)
    set_pgd(slot, 0x2000 | TABLE)
    pgd_clear(slot)
    equals("fold_clear", load64(slot), 0x2000 | TABLE if folded else 0)
    p4d_clear(slot)
    equals("fold_p4d_clear", load64(slot), 0)
    set_pgd(slot, kernel_to_phys(slot) | TABLE)
    below = VirtAddr(phys_to_virt(kernel_to_phys(slot)) + 8 * 3)
    equals("fold_p4d_offset", p4d_offset(slot, VirtAddr(3 << 39)), slot if folded else below)
    p4d_clear(slot)
    check_p4d_free(folded)
    equals("fold_p4d_index", p4d_index(VirtAddr(5 << 39)), 0 if folded else 5)
    equals("fold_sizes", pgd_size(), 1 << (39 if folded else 48))


@noinline
def check_p4d_free(folded: bool) -> None:
    """A P4D table goes back once; folded, nothing does, since the PUD table that is met there is freed as one."""
    table = memblock.allocate_table()
    counted = memblock.table_pages
    p4d_free(table)
    equals("fold_p4d_free", counted - memblock.table_pages, u64(not folded))
    if folded:
        memblock.free_table(table)


@noinline
def check_direct_map() -> None:
    """Both ends of every range of memory, and the image through it."""
    ok = True
    at = u64(0)
    for i in range(memblock.memory_count):
        for end in range(2):
            pa = memblock.range_start(memblock.memory, i)
            if end == 1:
                pa = memblock.range_end(memblock.memory, i) - 8
            if traps.probe_read(phys_to_virt(PhysAddr(pa)), VirtAddr(seen)) != traps.PROBE_OK:
                ok = False
                at = pa
    report.check("direct_map", ok, at, 0)
    alias = phys_to_virt(kernel_to_phys(VirtAddr(scratch)))
    report.check("direct_map_is_image", is_same_page(VirtAddr(scratch), alias), load64(alias), load64(scratch))
    end = memblock.end_of_memory()
    refuses("direct_map_end", phys_to_virt(PhysAddr(end)))
    text = phys_to_virt(kernel_map.image_text_phys())
    refuses_write("direct_map_text_read_only", text)
    refuses_execute("direct_map_not_executable", phys_to_virt(kernel_to_phys(VirtAddr(scratch))))


@noinline
def check_vmemmap() -> None:
    """The descriptors of the first and the last page of every range."""
    ok = True
    for i in range(memblock.memory_count):
        first = memblock.range_start(memblock.memory, i)
        last = memblock.range_end(memblock.memory, i) - PAGE_SIZE
        ok = ok and load64(descriptor_of(PhysAddr(first))) == first >> PAGE_SHIFT
        ok = ok and load64(descriptor_of(PhysAddr(last))) == last >> PAGE_SHIFT
    report.check("vmemmap", ok, u64(ok), 1)


@noinline
def check_vmalloc(top: VirtAddr) -> None:
    """Pages at both ends of the area; each has a guard, and each is memory that the direct map sees too."""
    ok = True
    for i in range(kernel_map.VMALLOC_PAGES):
        ok = ok and is_same_page(kernel_map.vmalloc_page(i), through_direct_map(top, kernel_map.vmalloc_page(i)))
    last = kernel_map.last_vmalloc_page()
    ok = ok and is_same_page(last, through_direct_map(top, last))
    report.check("vmalloc", ok, u64(ok), 1)
    refuses("vmalloc_guard", VirtAddr(kernel_map.vmalloc_page(0) + PAGE_SIZE))
    refuses("vmalloc_last_guard", VirtAddr(last + PAGE_SIZE))
    refuses_execute("vmalloc_not_executable", last)


@noinline
def through_direct_map(top: VirtAddr, va: VirtAddr) -> VirtAddr:
    """Where the direct map shows the page that is mapped at *va*."""
    return phys_to_virt(entry_frame(lookup(top, va)))


@noinline
def check_image() -> None:
    """Rights of the image's parts, and the hole below the stack."""
    refuses_write("kernel_text_read_only", VirtAddr(symbol("_text")))
    refuses_write("kernel_rodata_read_only", VirtAddr(symbol("_rodata")))
    refuses_execute("kernel_rodata_not_executable", VirtAddr(symbol("_rodata")))
    equals("kernel_data_writable", traps.probe_write(VirtAddr(scratch)), traps.PROBE_OK)
    refuses_execute("kernel_data_not_executable", VirtAddr(scratch))
    refuses("stack_guard", VirtAddr(symbol("stack_guard")))
    refuses("below_image", VirtAddr(symbol("_text") - PAGE_SIZE))
    refuses("above_image", VirtAddr((symbol("_end") + PAGE_SIZE - 1) & ~(PAGE_SIZE - 1)))


@noinline
def check_small_areas() -> None:
    """The areas that hold a page or a few."""
    equals("modules_execute", traps.probe_execute(module_address()), traps.PROBE_OK)
    refuses_write("modules_read_only", module_address())
    refuses("modules_guard", VirtAddr(MODULES_VADDR + PAGE_SIZE))
    refuses_write("espfix_read_only", VirtAddr(ESPFIX_BASE))
    refuses_execute("espfix_not_executable", VirtAddr(ESPFIX_BASE))
    equals("fixmap", traps.probe_write(VirtAddr(FIXADDR_TOP - PAGE_SIZE)), traps.PROBE_OK)
    if LDT_BASE[layout.column()] != 0:
        equals("ldt_remap", traps.probe_write(VirtAddr(LDT_BASE[layout.column()])), traps.PROBE_OK)
        refuses("ldt_remap_guard", VirtAddr(LDT_BASE[layout.column()] + PAGE_SIZE))
    if kernel_map.has_entry_area():
        refuses_write("cpu_entry_area_idt_read_only", kernel_map.entry_area(kernel_map.ENTRY_IDT))
        stack = kernel_map.entry_area(kernel_map.ENTRY_DOUBLE_FAULT_STACK)
        equals("cpu_entry_area_stack", traps.probe_write(stack), traps.PROBE_OK)
        refuses("cpu_entry_area_guard_low", kernel_map.entry_area(kernel_map.ENTRY_GUARD_LOW))
        refuses("cpu_entry_area_guard_middle", kernel_map.entry_area(kernel_map.ENTRY_GUARD_MIDDLE))
        refuses("cpu_entry_area_guard_high", kernel_map.entry_area(kernel_map.ENTRY_GUARD_HIGH))


def module_address() -> VirtAddr:
    """Where the modules area shows `module_stub`."""
    return VirtAddr(MODULES_VADDR + (symbol("module_stub") & (PAGE_SIZE - 1)))


@noinline
def check_holes() -> None:
    """Nothing is mapped between the areas, at either end of a hole, nor in the areas that are empty here."""
    end_of_last = u64(0)
    ok = True
    at = u64(0)
    for row in AREAS:
        start = layout.area_start(row.movable, row.start[layout.column()])
        if start != 0:
            if end_of_last != 0 and start != end_of_last:
                if not is_absent(VirtAddr(end_of_last)) or not is_absent(VirtAddr(start - 8)):
                    ok = False
                    at = end_of_last
            end_of_last = layout.area_end(row.movable, row.end[layout.column()])
    report.check("holes", ok, at, 0)


@noinline
def is_absent(va: VirtAddr) -> bool:
    """Whether a read of *va* finds nothing mapped."""
    return traps.probe_read(va, VirtAddr(seen)) == ABSENT_READ


@noinline
def check_guards(top: VirtAddr) -> None:
    """What no kernel may map, and what no address may be."""
    hole = AREAS[0].start[layout.column()]
    refuses("guard_hole_start", VirtAddr(hole))
    refuses("guard_hole_end", VirtAddr(AREAS[0].end[layout.column()] - 8))
    empty = True
    for slot in range(GUARD_HOLE_FIRST_SLOT, GUARD_HOLE_END_SLOT):
        empty = empty and kernel_map.is_top_slot_empty(top, slot)
    report.check("guard_hole_slots_empty", empty, u64(empty), 1)
    empty = True
    for slot in range(GUARD_HOLE_FIRST_SLOT):
        empty = empty and kernel_map.is_top_slot_empty(top, slot)
    report.check("user_half_empty", empty, u64(empty), 1)
    refuses("null_page", VirtAddr(0))
    refuses("identity_map_gone", VirtAddr(kernel_map.image_text_phys()))
    half = 1 << (va_bits() - 1)
    refuses("user_end", VirtAddr(half - 8))
    equals("non_canonical_low", traps.probe_read(VirtAddr(half), VirtAddr(seen)), NOT_CANONICAL)
    equals("non_canonical_high", traps.probe_read(VirtAddr(0 - half - 8), VirtAddr(seen)), NOT_CANONICAL)
    refuses("vsyscall", VirtAddr(layout.VSYSCALL))
    refuses("efi_runtime", VirtAddr(layout.EFI_VA_END))
    refuses("last_page", VirtAddr(0 - PAGE_SIZE))


@noinline
def check_kaslr() -> None:
    """Random bases: in order, apart, aligned, inside their window, and large enough for the memory that there is."""
    if not layout.randomised:
        return
    low = layout.page_offset_base & layout.vmalloc_base & layout.vmemmap_base
    bits = (layout.page_offset_base | layout.vmalloc_base | layout.vmemmap_base) & (kaslr.step() - 1)
    report.check("kaslr_aligned", bits == 0 and low != 0, bits, 0)
    in_order = layout.page_offset_base + layout.direct_map_size < layout.vmalloc_base
    in_order = in_order and layout.vmalloc_end() < layout.vmemmap_base
    report.check("kaslr_in_order", in_order, layout.vmalloc_base, layout.page_offset_base + layout.direct_map_size)
    last = layout.vmemmap_base + layout.vmemmap_size
    inside = layout.page_offset_base >= kaslr.window_start and last <= kaslr.window_end
    report.check("kaslr_inside_window", inside, last, kaslr.window_end)
    room = layout.direct_map_size >= memblock.end_of_memory()
    report.check("kaslr_room_for_memory", room, layout.direct_map_size, memblock.end_of_memory())


def check_kasan(top: VirtAddr) -> None:
    """The shadow: every area's byte can be read, of what is in use also written; the rest is one page of zeros."""
    if not layout.has_shadow:
        return
    equals("kasan_early_shadow_is_zero", kasan.early_read, 0)
    equals("kasan_end", kasan.shadow_of(VirtAddr(0 - 8)), kasan.shadow_end() - 1)
    for row in SHADOW_CHECKS:
        start = layout.area_start(row.movable, row.start[layout.column()])
        if start != 0:
            shadow = kasan.shadow_of(VirtAddr(start))
            equals(row.load, traps.probe_read(VirtAddr(shadow & ~7), VirtAddr(seen)), traps.PROBE_OK)
            equals(row.store, traps.probe_write(shadow), traps.PROBE_OK)
    last = phys_to_virt(PhysAddr(memblock.end_of_memory() - 8))
    first = VirtAddr(symbol("_text"))
    equals("kasan_store_last_memory", traps.probe_write(kasan.shadow_of(last)), traps.PROBE_OK)
    same = is_same_page(VirtAddr(kasan.shadow_of(first) & ~7), VirtAddr(kasan.shadow_of(last) & ~7))
    report.check("kasan_memory_of_its_own", not same, u64(same), 0)
    unused = VirtAddr(layout.vmalloc_base + (1 << 40))
    refuses_write("kasan_zero_shadow_read_only", kasan.shadow_of(unused))
    refuses_execute("kasan_not_executable", kasan.shadow_of(unused))
    zero = lookup(top, kasan.shadow_of(unused))
    equals("kasan_one_zero_page", entry_frame(zero), kasan.image_phys(kasan.zero_page))
    equals("kasan_whole_start", traps.probe_read(kasan.shadow_start(), VirtAddr(seen)), traps.PROBE_OK)
    equals("kasan_whole_end", traps.probe_read(VirtAddr(kasan.shadow_end() - 8), VirtAddr(seen)), traps.PROBE_OK)
    refuses("kasan_guard_above", kasan.shadow_end())


def check_slots(top: VirtAddr) -> None:
    """The designers kept one slot for an area in both modes; the image's is the last."""
    equals("slot_kernel", pgd_index(VirtAddr(symbol("_text"))), 511)
    equals("slot_guard_hole", pgd_index(VirtAddr(AREAS[0].start[layout.column()])), GUARD_HOLE_FIRST_SLOT)
    report.check("slot_vmemmap_in_use", not p4d_none(load64(top + 8 * pgd_index(VirtAddr(layout.vmemmap_base)))), 0, 1)


def check_all(top: VirtAddr) -> None:
    """Every check that needs only the tables themselves."""
    check_mode(top)
    check_fold()
    check_direct_map()
    check_vmemmap()
    check_vmalloc(top)
    check_image()
    check_small_areas()
    check_holes()
    check_guards(top)
    check_slots(top)
    check_kaslr()
    check_kasan(top)

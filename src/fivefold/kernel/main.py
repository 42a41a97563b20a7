"""The kernel proper, compiled once for each mode with the mode as a constant: from the early tables to the report.

The decision is behind it. Here the kernel maps, switches to its own tables, checks itself, dumps
its tables with the scan, reports, and stops the machine.
"""

from __future__ import annotations

from fivefold.kernel import params, report
from fivefold.kernel.areas import kasan, kaslr, kernel_map
from fivefold.kernel.areas.direct_map import cut_memory, direct_map_init
from fivefold.kernel.areas.vmemmap import number_descriptors, vmemmap_init
from fivefold.kernel.boot import acpi, early, in_use, start_info
from fivefold.kernel.boot.detect import cpu_has_gib_pages, cpu_phys_bits
from fivefold.kernel.efi import efi
from fivefold.kernel.handover import hibernate, ident_map, kexec
from fivefold.kernel.paging import layout, mapping, memblock, pgtable, phys
from fivefold.kernel.paging.cpu import CR4_LA57, CR4_SMAP, MSR_EFER, cr4_in_use, write_cr3, write_cr4
from fivefold.kernel.paging.layout import AREAS
from fivefold.kernel.paging.pgtable import PMD_LEVEL, PTE_LEVEL, PUD_LEVEL, levels
from fivefold.kernel.paging.phys import START_KERNEL_MAP, phys_to_virt
from fivefold.kernel.process import program, syscall, traps
from fivefold.kernel.report import equals
from fivefold.kernel.selftest import (
    checks,
    efi_checks,
    faults,
    handover_checks,
    mode_switch,
    process_checks,
    ring3_checks,
    smp_checks,
)
from fivefold.kernel.selftest.self_scan import dump_own_tables
from fivefold.kernel.smp import smp
from fivefold.metal.lang import copy64, export, rdmsr, read_cr0, read_cr3, read_cr4, store64, symbol, text_address, u64
from fivefold.units import PhysAddr, VirtAddr

info: u64 = 0
"""Physical address of the start information: the loader's, later the kernel's own copy."""


@export
def start_kernel(table: VirtAddr) -> None:
    """Run the kernel; *table* is the report that the boot code began. Does not return."""
    begin(table)
    choose_layout()
    take_memory()
    randomise()
    top = build_tables(cmdline())
    switch_to(top)
    checks.check_all(top)
    program.start_first(top)
    process_checks.check_processes(top)
    ring3_checks.check_ring_3(top)
    if efi.start_runtime(top, PhysAddr(info)):
        efi_checks.check_runtime(top)
    ident_map.prepare_root(top, largest_page(cmdline()))
    handover_checks.check_handover(largest_page(cmdline()))
    mode_switch.check_switch()
    smp.start_cpus(top)
    smp_checks.check_cpus(top)
    smp.stop_cpus()
    faults.commit(top, cmdline())
    sleep_or_wake(top)
    dump_own_tables(top)
    report_result()
    if params.has_word(cmdline(), "kexec"):
        hand_over(top)
    report.conclude()
    report.wait_until_sent()
    acpi.power_off(top)
    report.stop(report.EXIT_PASSED if report.get_word(report.W_FAILED) == 0 else report.EXIT_FAILED)


def sleep_or_wake(top: VirtAddr) -> None:
    """Save this kernel, or go back to one that was saved, if the command line says so."""
    outcome = u64(hibernate.OK)
    if params.has_value(cmdline(), "hibernate=", "save"):
        outcome = hibernate.save()
        if outcome == hibernate.OK:
            smp.start_cpus(top)
            smp_checks.check_return()
            smp.stop_cpus()
    elif params.has_value(cmdline(), "hibernate=", "resume"):
        outcome = hibernate.resume(PhysAddr(info), largest_page(cmdline()))
    else:
        return
    if outcome != hibernate.OK:
        hibernate.explain(outcome)
    equals("hibernate_resumed", outcome, hibernate.OK)


def hand_over(top: VirtAddr) -> None:
    """Start the next kernel; if that cannot be, say why and end as after a failed check."""
    outcome = kexec.start(PhysAddr(info), top, cmdline(), largest_page(cmdline()))
    report.set_word(report.W_KEXEC_OUTCOME, outcome)
    if outcome == kexec.CANNOT_FIVE_LEVELS:
        report.put("# kexec: the image cannot be entered with five levels; kexec_down goes down to four first\n")
    elif outcome == kexec.NO_MODULE:
        report.put("# kexec: the loader gave no module to start\n")
    elif outcome == kexec.MAP_TOO_LONG:
        report.put("# kexec: the memory map has too many rows to hand on\n")
    elif outcome == kexec.NOT_IN_MEMORY:
        report.put("# kexec: the module lies where the map has no memory\n")
    elif outcome == kexec.CMDLINE_TOO_LONG:
        report.put("# kexec: the next kernel's command line would be cut short\n")
    elif outcome == kexec.NO_MEMORY:
        report.put("# kexec: no memory for the next kernel\n")
    else:
        report.put("# kexec: the module is not a kernel image, or it is cut short\n")
    report.check("kexec_started", False, outcome, kexec.OK)


def begin(table: VirtAddr) -> None:
    """Take over from the boot code: its report, its early tables, and faults that extend them."""
    global info
    report.table = table
    info = report.get_word(report.W_START_INFO)
    phys.phys_base = report.get_word(report.W_PHYS_BASE)
    early.begin(
        PhysAddr(report.get_word(report.W_EARLY_TOP)),
        PhysAddr(report.get_word(report.W_EARLY_POOL)),
        report.get_word(report.W_EARLY_USED),
        START_KERNEL_MAP - phys.phys_base,
    )
    early.kernel_tables = report.get_word(report.W_EARLY_KERNEL_TABLES)
    layout.layout_init(layout.LINUX)
    phys.phys_window = layout.page_offset_base
    traps.traps_init()
    if (read_cr4() & CR4_LA57 == 0) != pgtable.p4d_folded():
        report.panic("the kernel for one mode was entered in the other")
    give_back_borrowed()


def give_back_borrowed() -> None:
    """Put back what was in the two pages that the change of mode used."""
    place = report.get_word(report.W_TRAMPOLINE)
    if place != 0:
        saved = phys_to_virt(PhysAddr(report.get_word(report.W_BORROWED)))
        copy64(phys_to_virt(PhysAddr(place)), saved, 1024)


def cmdline() -> VirtAddr:
    """Address of the command line where the direct map has it now, 0 without one."""
    at = start_info.field64(PhysAddr(info), start_info.OFFSET_CMDLINE)
    return VirtAddr(0) if at == 0 else phys_to_virt(PhysAddr(at))


def choose_layout() -> None:
    """Choose the map of areas before anything is put into one, and refuse words that cannot be meant."""
    params.check_words(cmdline())
    smp.read_option(cmdline())
    if params.has_value(cmdline(), "layout=", "proposal"):
        layout.layout_init(layout.PROPOSAL)
        phys.phys_window = layout.page_offset_base
    layout.has_shadow = params.has_word(cmdline(), "kasan")
    if layout.has_shadow:
        kasan.early_init()


def randomise() -> None:
    """Move the bases if the command line asks for it; the direct map goes on to appear at the new one."""
    seed = params.find_option(cmdline(), "kaslr=")
    if seed == params.ABSENT and not params.has_word(cmdline(), "kaslr"):
        return
    kaslr.seed(kaslr.entropy() if seed == params.ABSENT else params.number_at(seed))
    kaslr.choose_bases(memblock.end_of_memory())
    phys.phys_window = layout.page_offset_base


def take_memory() -> None:
    """Read the memory map, refuse what the mode has no room for, reserve what is in use."""
    global info
    given = PhysAddr(info)
    if start_info.field32(given, start_info.OFFSET_MEMORY_COUNT) > start_info.MAX_MAP_ENTRIES:
        report.panic("the memory map has more than 512 rows: what the rest takes back would be used")
    kexec.has_whole_map = start_info.map_count(given) <= start_info.COPY_ROWS
    load = PhysAddr(report.get_word(report.W_LOAD_ADDRESS))
    in_use.note(given, load, PhysAddr(report.get_word(report.W_IMAGE_END)), cmdline())
    cut = cut_memory(cpu_phys_bits())
    if cut != 0:
        report.put_line("# fivefold: memory beyond the direct map of this mode is not used, bytes", cut)
    if params.has_word(cmdline(), "poweroff"):
        acpi.find_power_off(given)
    smp.choose_place()
    memblock.reserve(PhysAddr(0), memblock.LOW_MEMORY)
    info = start_info.keep(given)
    note_previous()
    if memblock.overflowed:
        report.panic("the memory map has too many ranges")
    if memblock.memory_count == 0:
        report.panic("the memory map has no usable memory")
    if not memblock.is_memory(load, report.get_word(report.W_IMAGE_END) - load):
        report.panic("the image lies where the memory map has no memory")
    report.set_word(report.W_CUT_BYTES, cut)
    report.set_word(report.W_RAM_BYTES, memblock.total())
    report.set_word(report.W_RAM_END, memblock.end_of_memory())
    report.set_word(report.W_PHYS_BITS, cpu_phys_bits())


def note_previous() -> None:
    """Tell a reader of the report where the kernel lies that started this one; `in_use.py` has reserved it."""
    at = params.find_option(cmdline(), "previous=")
    if at != params.ABSENT and params.is_number_at(at):
        report.set_word(report.W_PREVIOUS, params.number_at(at))


def largest_page(cmdline: VirtAddr) -> u64:
    """Level of the largest pages for the direct map: what the CPU has, or less where ``pages=`` says so."""
    if params.has_value(cmdline, "pages=", "4k"):
        return PTE_LEVEL
    if params.has_value(cmdline, "pages=", "2m") or not cpu_has_gib_pages():
        return PMD_LEVEL
    return PUD_LEVEL


def give_up(text: str) -> None:
    """Panic for want of memory; if the map listed what is not there, say that before."""
    if memblock.lacking != 0:
        report.put_line("# fivefold: the memory map lists memory that is not there, at", memblock.lacking)
    report.panic(text)


def build_tables(cmdline: VirtAddr) -> VirtAddr:
    """Build the final tables beside the early ones; return the top, as the direct map shows it."""
    root = memblock.allocate_table()
    if root == 0:
        give_up("no memory for the top page table")
    top = phys_to_virt(root)
    largest = largest_page(cmdline)
    left = direct_map_init(top, largest, kernel_map.image_text_phys(), kernel_map.image_read_only_end())
    if left != 0:
        give_up("no memory for the direct map's page tables")
    report.set_word(report.W_DIRECT_4K, mapping.mapped_4k)
    report.set_word(report.W_DIRECT_2M, mapping.mapped_2m)
    report.set_word(report.W_DIRECT_1G, mapping.mapped_1g)
    if not kernel_map.map_image(top):
        give_up("no memory for the image's page tables")
    if not vmemmap_init(top, largest):
        give_up("no memory for the page descriptors")
    if not kernel_map.map_areas(top):
        give_up("no memory for the areas")
    if layout.has_shadow and not kasan.init(top, largest):
        give_up("no memory for the KASAN shadow")
    return top


def switch_to(top: VirtAddr) -> None:
    """Load the final tables. From here on nothing is mapped because it is touched."""
    report.set_word(report.W_EARLY_FAULTS, early.faults)
    report.set_word(report.W_EARLY_WIPES, early.wipes)
    early.top = 0
    write_cr3(PhysAddr(top - phys.phys_window))  # TLB: PGE is off since startup_64, so nothing early survives this
    write_cr4(cr4_in_use())
    store64(symbol("smap_on"), u64(read_cr4() & CR4_SMAP != 0))
    kernel_map.load_task_state()
    kernel_map.use_exception_stacks()
    syscall.syscall_init()
    number_descriptors()
    if layout.has_shadow:
        kasan.finish()


def report_result() -> None:
    """Fill the words of the report that a reader outside asks for."""
    report.set_word(report.W_LEVELS, levels())
    report.set_word(report.W_L5_ENABLED, pgtable.l5_enabled)
    report.set_word(report.W_PGDIR_SHIFT, pgtable.pgdir_shift)
    report.set_word(report.W_PTRS_PER_P4D, pgtable.ptrs_per_p4d)
    report.set_word(report.W_PAGE_OFFSET_BASE, layout.page_offset_base)
    report.set_word(report.W_VMALLOC_BASE, layout.vmalloc_base)
    report.set_word(report.W_VMEMMAP_BASE, layout.vmemmap_base)
    report.set_word(report.W_LAYOUT, layout.choice)
    report.set_word(report.W_CR0, read_cr0())
    report.set_word(report.W_CR3, read_cr3())
    report.set_word(report.W_CR4, read_cr4())
    report.set_word(report.W_EFER, rdmsr(MSR_EFER))
    for row in AREAS:
        start = layout.area_start(row.movable, row.start[layout.column()])
        if start != 0:
            end = layout.area_end(row.movable, row.end[layout.column()])
            report.area(text_address(row.name), VirtAddr(start), VirtAddr(end), report.AREA_MAPPED)
    report.set_word(report.W_FAST_RETURNS, syscall.fast_returns)
    report.set_word(report.W_SAFE_RETURNS, syscall.safe_returns)
    report.set_word(report.W_NMIS, traps.nmis())
    report.set_word(report.W_STATE, report.STATE_DONE)

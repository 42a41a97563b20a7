"""Secondary CPUs come up in the mode of the first, see its mappings, and forget what it removes [proposal: part 4].

CR4.LA57 is copied, never decided again: the trampoline (`smp.S`) loads the first CPU's CR4 before paging is
turned on, and a CPU that lacks LA57 where the first uses it is refused, since all CPUs share one root. The
trampoline runs on a root of its own, below 4 GiB because 32-bit code loads it: the kernel's half is the
kernel's, whole; below, nothing but the trampoline's page at itself.

The first CPU waits for each answer, so allocators and tables are never used by two CPUs at a time.
"""

from __future__ import annotations

from typing import Final

from fivefold.kernel import cpu, free, kernel_map, memblock, params, report, traps
from fivefold.kernel.checks import equals
from fivefold.kernel.layout import FIXADDR_TOP
from fivefold.kernel.mapping import map_page
from fivefold.kernel.pgtable import (
    KERNEL_RW,
    KERNEL_RX,
    entry_frame,
    p4d_offset,
    pgd_offset,
    pmd_offset,
    pte_offset,
    pud_offset,
)
from fivefold.kernel.phys import PAGE_SIZE, phys_to_virt
from fivefold.metal.lang import (
    address_of,
    atomic_add64,
    buffer,
    copy64,
    cpuid,
    extern,
    fill64,
    invlpg,
    load32,
    load64,
    noinline,
    pause,
    rdmsr,
    rdtsc,
    read_cr0,
    read_cr3,
    read_cr4,
    sti,
    store32,
    store64,
    symbol,
    u64,
)
from fivefold.units import PhysAddr, VirtAddr

MAX_CPUS: Final = 64
LOW_LIMIT: Final = 0x9F000
"""Below the BIOS' extended data area on every PC, as for the change of mode."""
LOW_PAGES: Final = 2
"""The trampoline's code, and its root."""

APIC: Final = FIXADDR_TOP - 3 * PAGE_SIZE
"""Where the fixmap shows the local APIC (Intel SDM volume 3, "Local APIC Registers")."""
APIC_UNCACHED: Final = 0x18
"""PWT and PCD: device registers are not cached."""
APIC_EOI: Final = 0xB0
APIC_SPURIOUS: Final = 0xF0
APIC_COMMAND: Final = 0x300
APIC_COMMAND_HIGH: Final = 0x310
APIC_ENABLED: Final = 0x100
APIC_SENDING: Final = 1 << 12
ALL_OTHERS: Final = 0xC_4000
"""Destination shorthand "all excluding self", level assert, edge triggered."""
INIT: Final = 0x500
STARTUP: Final = 0x600
SHOOT_DOWN_VECTOR: Final = 0xF0
SPURIOUS_VECTOR: Final = 0xFF

MSR_APIC_BASE: Final = 0x1B
X2APIC: Final = 1 << 10
CPUID_APIC: Final = 1 << 9

AFTER_INIT: Final = 1 << 25
BETWEEN_STARTUPS: Final = 1 << 21
PATIENCE: Final = 1 << 34
"""Ticks of the time-stamp counter: some 10 ms, some 1 ms, and several seconds."""

AREA_SIZE: Final = 0x8000
AREA_TSS: Final = 0x80
AREA_COMMAND: Final = 0x100
AREA_ARGUMENT: Final = 0x108
AREA_FRAME: Final = 0x110
AREA_ANSWER: Final = 0x118
AREA_VALUE: Final = 0x120
AREA_CR3: Final = 0x128
AREA_CR4: Final = 0x130
AREA_EFER: Final = 0x138
AREA_NMI_STACK: Final = 0x2000
AREA_DOUBLE_FAULT_STACK: Final = 0x3000
"""What a CPU has to itself: GDT, TSS, a letter box, stacks by their ends; its main stack ends with the area."""

IDLE: Final = 0
READ: Final = 1
MAP: Final = 2
STOP: Final = 3

MARK: Final = 0x5A5A_534D_5000_A5A5
OTHER_MARK: Final = 0x5A5A_534D_5001_A5A5
ABSENT: Final = traps.PROBE_FAULTED | traps.PAGE_FAULT << 32

place: u64 = 0
"""Physical address of the two low pages; 0 when there are none."""
wanted: u64 = 1
areas: u64 = 0
kernel_root: u64 = 0
shared: Final = buffer(24)
"""Words that several CPUs change: how many are there, how many have forgotten, and what they are to forget."""
ARRIVED: Final = 0
FORGOTTEN: Final = 8
ADDRESS: Final = 16
seen: Final = buffer(8)


def choose_place() -> None:
    """Take the highest two free pages below `LOW_LIMIT`; call it before low memory is reserved as a whole."""
    global place
    at = u64(LOW_LIMIT - LOW_PAGES * PAGE_SIZE)
    while at >= PAGE_SIZE and place == 0:
        place = memblock.find(LOW_PAGES * PAGE_SIZE, PAGE_SIZE, PhysAddr(at), PhysAddr(at + LOW_PAGES * PAGE_SIZE))
        at -= PAGE_SIZE


def read_option(cmdline: VirtAddr) -> None:
    """Take the number of CPUs from ``smp=``; refuse what is none."""
    global wanted
    at = params.find_option(cmdline, "smp=")
    if at != params.ABSENT:
        wanted = params.number_at(at) if params.is_number_at(at) else u64(0)
    if wanted == 0 or wanted > MAX_CPUS:
        report.panic("smp= on the command line needs a number of CPUs from 1 to 64")


def check_cpus(top: VirtAddr) -> None:
    """Start the other CPUs and check that they live in the same address space; they are halted at the end."""
    if wanted == 1:
        return
    start_cpus(top)
    check_arrival()
    if online() != 0:
        check_mappings(top)
        check_shoot_down(top)
    for i in range(online()):
        send(i, STOP, VirtAddr(0), PhysAddr(0))


# -- starting ------------------------------------------------------------------------------


@noinline
def start_cpus(top: VirtAddr) -> None:
    """Bring up all other CPUs, and wait for as many as are expected."""
    global kernel_root
    map_apic(top)
    others = wanted - 1
    memory = memblock.allocate(others * AREA_SIZE, PAGE_SIZE)
    if memory == 0 or place == 0:
        report.panic("no memory for the other CPUs")
    take_areas(phys_to_virt(memory), others)
    put_trampoline(top)
    store64(symbol("ap_expected"), others)
    kernel_root = entry_frame(read_cr3())
    store64(symbol("ap_handler"), address_of(secondary_main))
    store64(symbol("ipi_handler"), address_of(interrupt))
    traps.set_gate(SHOOT_DOWN_VECTOR, VirtAddr(symbol("ipi_shoot_down")), 0)
    traps.set_gate(SPURIOUS_VECTOR, VirtAddr(symbol("ipi_spurious")), 0)
    tell_others(INIT)
    wait_ticks(AFTER_INIT)
    tell_others(STARTUP | place >> 12)
    wait_ticks(BETWEEN_STARTUPS)
    tell_others(STARTUP | place >> 12)
    began = rdtsc()
    while online() + refused() < others and rdtsc() - began < PATIENCE:
        pause()
    drop_trampoline()


@noinline
def map_apic(top: VirtAddr) -> None:
    """Show the local APIC in the fixmap, and turn it on."""
    if cpuid(1, 0, cpu.EDX) & CPUID_APIC == 0:
        report.panic("smp= on the command line, but this CPU has no local APIC")
    base = rdmsr(MSR_APIC_BASE)
    if base & X2APIC != 0:
        report.panic("the local APIC is in x2APIC mode, which is not driven here")
    if not map_page(top, VirtAddr(APIC), entry_frame(base), KERNEL_RW | APIC_UNCACHED):
        report.panic("no memory to map the local APIC")
    store32(APIC + APIC_SPURIOUS, APIC_ENABLED | SPURIOUS_VECTOR)


def take_areas(start: VirtAddr, count: u64) -> None:
    """Give *count* CPUs their areas from *start* on."""
    global areas
    areas = start
    fill64(areas, 0, count * AREA_SIZE // 8)
    store64(symbol("ap_areas"), areas)
    store64(symbol("ap_area_size"), AREA_SIZE)


@noinline
def put_trampoline(top: VirtAddr) -> None:
    """Copy the trampoline to its page, fill in its words, and build its root in the page after it."""
    code = phys_to_virt(PhysAddr(place))
    copy64(code, symbol("ap_trampoline"), (symbol("ap_trampoline_end") - symbol("ap_trampoline") + 7) // 8)
    words = code + symbol("ap_words") - symbol("ap_trampoline")
    store64(words, read_cr4())
    store64(words + 8, place + PAGE_SIZE)
    store64(words + 16, rdmsr(cpu.MSR_EFER) & ~cpu.EFER_LMA)
    store64(words + 24, read_cr0())
    store64(words + 32, symbol("ap_start"))
    store64(words + 40, 0)
    for offset in WORDS_OF_PLACE:
        store32(words + offset, load32(words + offset) + place)
    root = phys_to_virt(PhysAddr(place + PAGE_SIZE))
    fill64(root, 0, 256)
    copy64(root + 8 * 256, top + 8 * 256, 256)
    if not map_page(root, VirtAddr(place), PhysAddr(place), KERNEL_RX):
        report.panic("no memory for the page tables of the other CPUs' start")


WORD_REFUSED: Final = 40
WORDS_OF_PLACE: Final = (50, 56, 64)
"""Offsets from `ap_words`: a count, and three addresses that depend on where the page is (GDT, two far jumps)."""


@noinline
def drop_trampoline() -> None:
    """Give the tables of the trampoline's lower half back; all CPUs have left it."""
    root = phys_to_virt(PhysAddr(place + PAGE_SIZE))
    store64(pte_of(root, VirtAddr(place)), 0)
    free.free_range(root, VirtAddr(place), PAGE_SIZE)


def pte_of(top: VirtAddr, va: VirtAddr) -> VirtAddr:
    """The PTE of *va*, whose tables are there."""
    return pte_offset(pmd_offset(pud_offset(p4d_offset(pgd_offset(top, va), va), va), va), va)


def refused() -> u64:
    """How many CPUs lack the mode of the first."""
    return load64(phys_to_virt(PhysAddr(place)) + symbol("ap_words") - symbol("ap_trampoline") + WORD_REFUSED)


def online() -> u64:
    """How many other CPUs have arrived."""
    return load64(shared + ARRIVED)


@noinline
def wait_ticks(ticks: u64) -> None:
    """Do nothing for a while."""
    began = rdtsc()
    while rdtsc() - began < ticks:
        pause()


@noinline
def tell_others(what: u64) -> None:
    """Send an interprocessor interrupt to all other CPUs, once the one before has left."""
    while load32(APIC + APIC_COMMAND) & APIC_SENDING != 0:
        pause()
    store32(APIC + APIC_COMMAND, ALL_OTHERS | what)


# -- on the other CPUs -----------------------------------------------------------------------


def secondary_main(number: u64) -> None:
    """What another CPU does: take its place, then answer until it is told to stop. Does not return.

    It comes on the trampoline's root, with its stack in the direct map: that root has the kernel's whole half.
    """
    area = areas + AREA_SIZE * number
    cpu.write_cr3(PhysAddr(kernel_root))
    load_own_tables(VirtAddr(area))
    store64(area + AREA_CR3, read_cr3())
    store64(area + AREA_CR4, read_cr4())
    store64(area + AREA_EFER, rdmsr(cpu.MSR_EFER))
    store32(APIC + APIC_SPURIOUS, APIC_ENABLED | SPURIOUS_VECTOR)
    atomic_add64(shared + ARRIVED, 1)
    sti()
    while answer(area):
        pause()
    store64(area + AREA_COMMAND, IDLE)
    ap_park()


@noinline
def load_own_tables(area: VirtAddr) -> None:
    """GDT and TSS of this CPU: a TSS serves one CPU only. The IDT is everybody's."""
    tss = area + AREA_TSS
    copy64(area, symbol("kernel_gdt"), kernel_map.GDT_SIZE // 8)
    store64(tss + kernel_map.TSS_IST, area + AREA_DOUBLE_FAULT_STACK)
    store64(tss + kernel_map.TSS_IST + 8, area + AREA_NMI_STACK)
    kernel_map.set_tss_descriptor(area, tss)
    cpu.load_gdt(area, kernel_map.GDT_SIZE)
    cpu.load_task_register(kernel_map.TSS_SELECTOR)
    kernel_map.load_idt_in_use()


@noinline
def answer(area: u64) -> bool:
    """Do what the first CPU asked for, if it did; False when that was to stop."""
    command = load64(area + AREA_COMMAND)
    if command == READ:
        found = traps.probe_read(VirtAddr(load64(area + AREA_ARGUMENT)), VirtAddr(area + AREA_VALUE))
        store64(area + AREA_ANSWER, found)
    elif command == MAP:
        va = VirtAddr(load64(area + AREA_ARGUMENT))
        top = phys_to_virt(entry_frame(read_cr3()))
        store64(area + AREA_ANSWER, u64(map_page(top, va, PhysAddr(load64(area + AREA_FRAME)), KERNEL_RW)))
    if command == STOP:
        return False
    if command != IDLE:
        store64(area + AREA_COMMAND, IDLE)
    return True


@extern
def ap_park() -> None:
    """Halt this CPU for ever."""


def interrupt(vector: u64) -> None:
    """Another CPU wants an address forgotten; it waits until all have counted themselves."""
    if vector == SHOOT_DOWN_VECTOR:
        invlpg(load64(shared + ADDRESS))
        atomic_add64(shared + FORGOTTEN, 1)
        store32(APIC + APIC_EOI, 0)


# -- what the first asks of the others -----------------------------------------------------------


@noinline
def send(number: u64, command: u64, va: VirtAddr, frame: PhysAddr) -> u64:
    """Ask CPU *number* to do something and wait for its answer; `NO_ANSWER` if none comes."""
    area = areas + AREA_SIZE * number
    store64(area + AREA_ARGUMENT, va)
    store64(area + AREA_FRAME, frame)
    store64(area + AREA_COMMAND, command)
    began = rdtsc()
    while load64(area + AREA_COMMAND) != IDLE:
        if rdtsc() - began >= PATIENCE:
            return NO_ANSWER
        pause()
    return load64(area + AREA_ANSWER)


NO_ANSWER: Final = 0xFFFF_FFFF_FFFF_FFFF


@noinline
def shoot_down(top: VirtAddr, va: VirtAddr) -> u64:
    """Remove the page at *va* from the tables and from what every CPU remembers; return how many others forgot it."""
    store64(pte_of(top, va), 0)
    invlpg(va)
    store64(shared + ADDRESS, va)
    store64(shared + FORGOTTEN, 0)
    tell_others(SHOOT_DOWN_VECTOR)
    began = rdtsc()
    while load64(shared + FORGOTTEN) != online() and rdtsc() - began < PATIENCE:
        pause()
    return load64(shared + FORGOTTEN)


@noinline
def check_arrival() -> None:
    """All are there, in one mode, on one root; a CPU without the mode of the first was refused."""
    equals("smp_all_arrived", online() + 1, wanted)
    equals("smp_none_refused", refused(), 0)
    if refused() != 0:
        report.put_line("fivefold: CPUs refused that lack the paging mode of the first:", refused())
    modes = u64(0)
    roots = u64(0)
    for i in range(online()):
        area = areas + AREA_SIZE * i
        modes += u64((load64(area + AREA_CR4) ^ read_cr4()) & cpu.CR4_LA57 != 0)
        modes += u64(load64(area + AREA_EFER) != rdmsr(cpu.MSR_EFER))
        roots += u64(load64(area + AREA_CR3) != read_cr3())
    equals("smp_same_mode", modes, 0)
    equals("smp_same_root", roots, 0)


@noinline
def check_mappings(top: VirtAddr) -> None:
    """What one CPU maps, each of the others reads, whoever it was."""
    first = memblock.allocate_page()
    second = memblock.allocate_page()
    store64(phys_to_virt(first), MARK)
    store64(phys_to_virt(second), OTHER_MARK)
    mapped = map_page(top, test_page(0), first, KERNEL_RW)
    report.check("smp_mapping_seen", mapped and all_read(test_page(0), MARK), u64(mapped), 1)
    done = send(0, MAP, test_page(1), second)
    equals("smp_mapping_by_another", done, 1)
    found = traps.probe_read(test_page(1), VirtAddr(seen))
    ours = found == traps.PROBE_OK and load64(seen) == OTHER_MARK
    report.check("smp_mapping_by_another_seen", ours and all_read(test_page(1), OTHER_MARK), found, 0)


def test_page(i: u64) -> VirtAddr:
    """Where the vmalloc area has room after its first pages."""
    return kernel_map.vmalloc_page(kernel_map.VMALLOC_PAGES + i)


@noinline
def all_read(va: VirtAddr, value: u64) -> bool:
    """Whether every other CPU reads *value* at *va*."""
    same = True
    for i in range(online()):
        same = send(i, READ, va, PhysAddr(0)) == traps.PROBE_OK and same
        same = load64(areas + AREA_SIZE * i + AREA_VALUE) == value and same
    return same


@noinline
def check_shoot_down(top: VirtAddr) -> None:
    """All have read the pages and may remember them; once they are removed, nobody does."""
    first = entry_frame(load64(pte_of(top, test_page(0))))
    equals("smp_shoot_down_acknowledged", shoot_down(top, test_page(0)), online())
    equals("smp_shoot_down_seen", how_many_miss(test_page(0)), online())
    memblock.free_page(first)
    second = entry_frame(load64(pte_of(top, test_page(1))))
    shoot_down(top, test_page(1))
    equals("smp_shoot_down_of_anothers_page", how_many_miss(test_page(1)), online())
    memblock.free_page(second)


@noinline
def how_many_miss(va: VirtAddr) -> u64:
    """How many other CPUs fault when they read *va*."""
    missing = u64(0)
    for i in range(online()):
        missing += u64(send(i, READ, va, PhysAddr(0)) == ABSENT)
    return missing

"""Secondary CPUs come up in the mode of the first, share its mappings and invalidate TLB entries on request (TLB
shootdown) [proposal: part 4].

CR4.LA57 is copied, never decided again: the trampoline (`smp.S`) loads the first CPU's CR4 before paging is
turned on, and a CPU that lacks LA57 where the first uses it is refused, since all CPUs share one root. The
trampoline runs on a root of its own, below 4 GiB because 32-bit code loads it: the kernel's half is the
kernel's, whole; below, nothing but an identity map of the trampoline's page.

The first CPU waits for each answer, so allocators and tables are never used by two CPUs at a time.
"""

from __future__ import annotations

from typing import Final

from fivefold.kernel import params, report
from fivefold.kernel.areas import kernel_map
from fivefold.kernel.boot.in_use import LOW_PAGES, TRAMPOLINE_LIMIT
from fivefold.kernel.paging import cpu, free, memblock
from fivefold.kernel.paging.mapping import map_page, pte_of
from fivefold.kernel.paging.pgtable import (
    ACCESSED,
    DIRTY,
    KERNEL_RW,
    PRESENT,
    RW,
    entry_frame,
)
from fivefold.kernel.paging.phys import PAGE_SIZE, phys_to_virt
from fivefold.kernel.process import traps
from fivefold.kernel.smp import apic
from fivefold.metal.lang import (
    address_of,
    atomic_add64,
    buffer,
    copy64,
    extern,
    fill64,
    invlpg,
    load16,
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
    store16,
    store32,
    store64,
    symbol,
    u64,
)
from fivefold.units import PhysAddr, VirtAddr

MAX_CPUS: Final = 64
SHOOT_DOWN_VECTOR: Final = 0xF0

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
AREA_STACKS: Final = 0x1000
"""What a CPU has to itself: GDT, TSS, a letter box, a page of stack for each vector that needs one (kernel_map.py); its
main stack ends with the area."""

IDLE: Final = 0
READ: Final = 1
MAP: Final = 2
STOP: Final = 3

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


def choose_place() -> None:
    """Take two low pages for the trampoline's code and its root; call it before low memory is reserved as a whole.

    Nothing else uses them, so kexec takes them for its own trampoline once the other CPUs are let go.
    """
    global place
    place = memblock.find_below(LOW_PAGES * PAGE_SIZE, PhysAddr(TRAMPOLINE_LIMIT))


def read_option(cmdline: VirtAddr) -> None:
    """Take the number of CPUs from ``smp=``; refuse what is none."""
    global wanted
    at = params.find_option(cmdline, "smp=")
    if at != params.ABSENT:
        wanted = params.number_at(at) if params.is_number_at(at) else u64(0)
    if wanted == 0 or wanted > MAX_CPUS:
        report.panic("smp= on the command line needs a number of CPUs from 1 to 64")


# -- starting ------------------------------------------------------------------------------


@noinline
def start_cpus(top: VirtAddr) -> None:
    """Bring up all other CPUs, if ``smp=`` asks for any, and wait for them; again after a machine was restarted.

    Each then waits for commands (`send`) until `stop_cpus` halts it.
    """
    global kernel_root
    others = wanted - 1
    if others == 0:
        return
    if areas == 0:
        apic.map_apic(top)
        take_areas(others)
    else:
        apic.turn_on()
    put_trampoline(top)
    store64(symbol("ap_expected"), others)
    store64(symbol("ap_taken"), 0)
    store64(shared + ARRIVED, 0)
    kernel_root = entry_frame(read_cr3())
    store64(symbol("ap_handler"), address_of(secondary_main))
    store64(symbol("ipi_handler"), address_of(interrupt))
    traps.set_gate(SHOOT_DOWN_VECTOR, VirtAddr(symbol("ipi_shoot_down")), 0)
    traps.set_gate(apic.SPURIOUS_VECTOR, VirtAddr(symbol("ipi_spurious")), 0)
    apic.tell_others(apic.INIT)
    apic.wait_ticks(apic.AFTER_INIT)
    apic.tell_others(apic.STARTUP | place >> 12)
    apic.wait_ticks(apic.BETWEEN_STARTUPS)
    apic.tell_others(apic.STARTUP | place >> 12)
    began = rdtsc()
    while online() + refused() < others and rdtsc() - began < apic.PATIENCE:
        pause()
    if is_complete():
        drop_trampoline()


def take_areas(count: u64) -> None:
    """Give *count* CPUs their areas, and see that the trampoline has its place."""
    global areas
    memory = memblock.allocate(count * AREA_SIZE, PAGE_SIZE)
    if memory == 0 or place == 0:
        report.panic("no memory for the other CPUs")
    areas = phys_to_virt(memory)
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
    store64(words + WORD_LIMIT, wanted - 1)
    for offset in WORDS_OF_PLACE:
        store32(words + offset, load32(words + offset) + place)
    idt = code + symbol("ap_idt") - symbol("ap_trampoline")
    store16(idt + 10, place >> 4)
    move_gate(idt + 16)
    move_gate(idt + 32)
    root = phys_to_virt(PhysAddr(place + PAGE_SIZE))
    fill64(root, 0, 256)
    copy64(root + 8 * 256, top + 8 * 256, 256)
    if not map_page(root, VirtAddr(place), PhysAddr(place), TRAMPOLINE):
        report.panic("no memory for the page tables of the other CPUs' start")


TRAMPOLINE: Final = PRESENT | RW | ACCESSED | DIRTY
"""Code and stacks in one page. Not global: CR4.PGE comes with the first CPU's CR4, and the load of CR3 with which a CPU
leaves the trampoline's root keeps global translations. Each CPU would go on to run ring 0 code from a page that the
kernel gives away."""
WORD_REFUSED: Final = 40
WORD_NMIS: Final = 88
WORD_LIMIT: Final = 96
WORDS_OF_PLACE: Final = (50, 56, 64, 74)
"""Offsets from `ap_words`: counts, and four addresses that depend on where the page is (GDT, two far jumps, IDT)."""


def move_gate(gate: u64) -> None:
    """Add the page's address to that of a gate's handler; a gate has its bits 0 to 15 and 16 to 31 apart."""
    handler = load16(gate) + place
    store16(gate, handler & 0xFFFF)
    store16(gate + 6, handler >> 16)


def is_complete() -> bool:
    """Whether every CPU that was asked for has left the trampoline's tables: it has arrived, or it was refused.

    One that is refused waits without paging. One that is late still walks the tables, which then must stay.
    """
    return online() + refused() == wanted - 1


@noinline
def drop_trampoline() -> None:
    """Give the tables of the trampoline's lower half back, after `is_complete`.

    No CPU remembers them: each has loaded CR3 since, which flushes what is not global and the paging-structure caches.
    """
    traps.nmi_count += load64(trampoline_word(WORD_NMIS))
    root = phys_to_virt(PhysAddr(place + PAGE_SIZE))
    store64(pte_of(root, VirtAddr(place)), 0)
    free.free_range(root, VirtAddr(place), PAGE_SIZE)


def trampoline_word(offset: u64) -> VirtAddr:
    """Address of a word of the trampoline, where it was copied to."""
    return VirtAddr(phys_to_virt(PhysAddr(place)) + symbol("ap_words") - symbol("ap_trampoline") + offset)


def refused() -> u64:
    """How many CPUs lack the mode of the first."""
    return load64(trampoline_word(WORD_REFUSED))


def online() -> u64:
    """How many other CPUs have arrived."""
    return load64(shared + ARRIVED)


# -- on the other CPUs -----------------------------------------------------------------------


def secondary_main(number: u64) -> None:
    """What another CPU does: take its place, then answer until it gets the request to stop. Does not return.

    It comes on the trampoline's root, with its stack in the direct map: that root has the kernel's whole half.
    """
    area = areas + AREA_SIZE * number
    load_own_tables(VirtAddr(area))
    # Only now: the trampoline's IDT, which an NMI would take, lies in the page that this root does not map.
    cpu.write_cr3(PhysAddr(kernel_root))
    store64(area + AREA_CR3, read_cr3())
    store64(area + AREA_CR4, read_cr4())
    store64(area + AREA_EFER, rdmsr(cpu.MSR_EFER))
    apic.turn_on()
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
    for i in range(kernel_map.IST_STACKS):
        store64(tss + kernel_map.TSS_IST + 8 * i, area + AREA_STACKS + PAGE_SIZE * (i + 1))
    kernel_map.close_ports(tss)
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
    """Handle a shootdown IPI: INVLPG the address, then acknowledge."""
    if vector == SHOOT_DOWN_VECTOR:
        invlpg(load64(shared + ADDRESS))
        atomic_add64(shared + FORGOTTEN, 1)
        apic.end_interrupt()


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
        if rdtsc() - began >= apic.PATIENCE:
            return NO_ANSWER
        pause()
    return load64(area + AREA_ANSWER)


NO_ANSWER: Final = 0xFFFF_FFFF_FFFF_FFFF


@noinline
def shoot_down(top: VirtAddr, va: VirtAddr) -> u64:
    """Unmap the page at *va* and invalidate it on every CPU; return how many others acknowledged."""
    store64(pte_of(top, va), 0)
    invlpg(va)  # TLB: the leaf is global, so only INVLPG drops it, on each CPU for itself (docs/tlb.md)
    store64(shared + ADDRESS, va)
    store64(shared + FORGOTTEN, 0)
    apic.tell_others(SHOOT_DOWN_VECTOR)
    began = rdtsc()
    while load64(shared + FORGOTTEN) != online() and rdtsc() - began < apic.PATIENCE:
        pause()
    return load64(shared + FORGOTTEN)


@noinline
def stop_cpus() -> None:
    """Halt all others; they take no more interrupts, and their stacks and tables stay theirs."""
    for i in range(online()):
        send(i, STOP, VirtAddr(0), PhysAddr(0))


def release_cpus() -> None:
    """Before another kernel takes the machine: let go of the memory in which the others are halted.

    INIT makes each wait for a startup, with nothing of ours in use, and not even an NMI wakes it (Intel SDM volume 3,
    "Multiple-Processor (MP) Initialization"). One that was refused waits in the low pages, which are the next
    kernel's too.
    """
    if wanted != 1:
        apic.tell_others(apic.INIT)
        apic.wait_ticks(apic.AFTER_INIT)

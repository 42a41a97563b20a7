"""Checks that ring 3 stays in ring 3: what it must not do, each with the exception that the manuals name for it.

The instructions are programs of `entry.S`, in slots of 32 bytes. Source: Intel SDM volume 2, "64-Bit Mode Exceptions"
of each instruction; volume 3, "Privileged Instructions".
"""

from __future__ import annotations

from typing import Final

from fivefold.kernel import report
from fivefold.kernel.areas import kernel_map
from fivefold.kernel.paging import layout, phys
from fivefold.kernel.paging.cpu import CR4_SMAP, CR4_SMEP, CR4_UMIP, EAX, EBX, ECX, EDX, write_cr3
from fivefold.kernel.paging.layout import AREAS, FIXADDR_TOP
from fivefold.kernel.paging.pgtable import va_bits
from fivefold.kernel.paging.phys import PAGE_SIZE, phys_to_virt
from fivefold.kernel.process import program, syscall, traps, user
from fivefold.kernel.report import equals
from fivefold.metal.lang import buffer, cpuid, load16, load64, noinline, read_cr4, symbol, u64
from fivefold.units import PhysAddr, VirtAddr

SLOT: Final = 32
CODE: Final = user.LOWEST
STACK: Final = user.LOWEST + 8 * PAGE_SIZE
OWN: Final = STACK - 0x800
"""Memory of the program, in the middle of its stack."""
GP: Final = traps.PROBE_FAULTED | traps.GENERAL_PROTECTION << 32
UD: Final = traps.PROBE_FAULTED | traps.INVALID_OPCODE << 32
PF: Final = traps.PROBE_FAULTED | traps.PAGE_FAULT << 32
ALL: Final = (1 << 64) - 1
CODE_BITS: Final = 0xFFFF_FFFF
"""The error code in an outcome."""
PRESENT: Final = 1
WRITE: Final = 2
USER: Final = 4
FETCH: Final = 16
"""Bits of a page fault's error code."""
ALIGNMENT_CHECK: Final = 1 << 18
SELECTORS: Final = (0x10, 0x20, 0x28)
"""Error codes of `user_selectors`."""
word: Final = buffer(8)
top: u64 = 0
space: u64 = 0


def check_ring_3(kernel_top: VirtAddr) -> None:
    """Run all of it in one space."""
    global top, space
    top = kernel_top
    space = program.load(kernel_top, CODE, STACK)
    check_instructions()
    check_selectors()
    check_table_registers()
    check_pages()
    check_window_ends()
    check_protections()
    user.destroy(space)
    check_stacks()


def run(entry: u64, argument: u64) -> u64:
    """Run a program of the image in the space."""
    return program.enter(VirtAddr(top), space, CODE, STACK, entry, argument)


@noinline
def not_refused(start: u64, end: u64, want: u64, care: u64) -> u64:
    """Number of the first slot in [start, end), counted from 1, that does not end with *want*; 0 without any.

    *care* has the bits of the outcome that are compared.
    """
    for i in range((end - start) // SLOT):
        got = run(start + SLOT * i, OWN)
        if got & care != want:
            report.put_line("# ring 3: slot", i)
            report.put_line("#   ended with", got)
            return i + 1
    return 0


@noinline
def check_instructions() -> None:
    """Groups of instructions that are all refused alike."""
    privileged = symbol("user_privileged")
    registers = symbol("user_registers")
    ports = symbol("user_ports")
    undefined = symbol("user_undefined")
    caches = symbol("user_caches")
    equals("ring3_privileged_instructions", not_refused(privileged, symbol("user_sysret"), GP, ALL), 0)
    executed = u64(0)
    if report.get_word(report.W_SYSCALL_STAYS) == report.NO_SYSCALL:
        # #UD or #GP first: the manuals leave it open. What is executed ends at the SYSCALL of `user_allowed`.
        executed = UD
        got = run(symbol("user_sysret"), OWN)
        report.check("ring3_sysret", got == UD or got == GP, got, UD)
    else:
        equals("ring3_sysret", not_refused(symbol("user_sysret"), caches, GP, ALL), 0)
    if run(caches, 0) == executed:
        report.skip("ring3_caches", "this machine executes INVD in ring 3, as QEMU 10 does")
    else:
        equals("ring3_caches", not_refused(caches, registers, GP, ALL), 0)
    equals("ring3_registers", not_refused(registers, symbol("user_port_beyond"), GP, ALL), 0)
    if run(symbol("user_port_beyond"), 0) == GP:
        equals("ring3_ports", not_refused(ports, undefined, GP, ALL), 0)
    else:
        report.skip("ring3_ports", "this machine lets ring 3 use every port, whatever the TSS says")
    equals("ring3_undefined_instructions", not_refused(undefined, symbol("user_selectors"), UD, ALL), 0)
    tss = symbol("task_state")
    report.check("ring3_io_map_closed", load16(tss + kernel_map.TSS_IO_MAP) >= kernel_map.TSS_SIZE, tss, 0)


@noinline
def check_selectors() -> None:
    """The kernel's segments, and its gates, which are for exceptions only.

    A gate's error code is its number times 8 plus 2, but QEMU 7.2 says 16: only the vector is compared.
    """
    at = symbol("user_selectors")
    wrong = u64(0)
    for selector in SELECTORS:
        wrong += not_refused(at, at + SLOT, GP | selector, ALL)
        at += SLOT
    equals("ring3_selectors", wrong, 0)
    equals("ring3_gates", not_refused(symbol("user_gates"), symbol("user_table_registers"), GP, ~CODE_BITS), 0)
    if read_cr4() & CR4_SMAP != 0 and run(at, OWN) == PF | PRESENT:
        report.skip("ring3_returns", "this machine reads the stack of ring 3 with the rights of ring 0, under SMAP")
    else:
        equals("ring3_returns", not_refused(at, symbol("user_gates"), GP | traps.KERNEL_CS, ALL), 0)


@noinline
def check_table_registers() -> None:
    """Where the kernel's tables lie is none of ring 3's business, if the CPU can keep it."""
    if read_cr4() & CR4_UMIP == 0:
        report.skip("ring3_umip", "the CPU has no UMIP")
        return
    start = symbol("user_table_registers")
    equals("ring3_umip", not_refused(start, symbol("user_refused_end"), GP, ALL), 0)


@noinline
def is_refused(va: u64) -> bool:
    """Whether ring 3 gets a page fault of ring 3 for a read, a write and a jump to *va*, mapped or not."""
    read = run(symbol("user_touch"), va) & ~PRESENT == PF | USER
    write = run(symbol("user_store"), va) & ~PRESENT == PF | USER | WRITE
    fetch = run(symbol("user_jump"), va) & ~PRESENT == PF | USER | FETCH
    if not (read and write and fetch):
        report.put_line("# ring 3 reaches", va)
    return read and write and fetch


@noinline
def check_pages() -> None:
    """Every page of the image, and the ends of every area."""
    refused = True
    page = symbol("_text")
    while page < symbol("_end") and refused:
        refused = is_refused(page)
        page += PAGE_SIZE
    report.check("ring3_image_pages", refused, page, symbol("_end"))
    refused = True
    for row in AREAS:
        start = layout.area_start(row.movable, row.start[layout.column()])
        if start != 0:
            refused = is_refused(start) and refused
            refused = is_refused(layout.area_end(row.movable, row.end[layout.column()]) - 8) and refused
    refused = is_refused(phys_to_virt(PhysAddr(report.get_word(report.W_LOAD_ADDRESS)))) and refused
    refused = is_refused(FIXADDR_TOP - PAGE_SIZE) and refused
    if kernel_map.has_entry_area():
        for i in range(kernel_map.ENTRY_STACKS + 2 * kernel_map.IST_STACKS):
            refused = is_refused(kernel_map.entry_area(i)) and refused
    report.check("ring3_areas", refused, u64(refused), 1)


@noinline
def check_window_ends() -> None:
    """Beyond both ends of what a program may map: nothing is there, or the address is not canonical."""
    half = u64(1) << (va_bits() - 1)
    touch = symbol("user_touch")
    equals("ring3_null", run(touch, 0), PF | USER)
    equals("ring3_below_lowest", run(touch, user.LOWEST - 8), PF | USER)
    equals("ring3_window_end", run(touch, user.DEFAULT_WINDOW), PF | USER)
    equals("ring3_last_page", run(touch, half - 8), PF | USER)
    equals("ring3_not_canonical", run(touch, half), GP)
    equals("ring3_not_canonical_high", run(touch, 0 - half - 8), GP)
    equals("ring3_kernel_half", run(touch, 0 - half) & ~PRESENT, PF | USER)
    flags = run(symbol("user_flags"), 0)
    if report.get_word(report.W_SYSCALL_STAYS) == 0:
        equals("ring3_flags_kept", flags, 0)


@noinline
def check_protections() -> None:
    """Ring 0 does not run or read the program's memory by mistake, and reads it where it means to."""
    if cpuid(0, 0, EAX) >= 7:
        equals("smep_on_where_it_is", read_cr4() >> 20 & 1, cpuid(7, 0, EBX) >> 7 & 1)
        equals("smap_on_where_it_is", read_cr4() >> 21 & 1, cpuid(7, 0, EBX) >> 20 & 1)
        equals("umip_on_where_it_is", read_cr4() >> 11 & 1, cpuid(7, 0, ECX) >> 2 & 1)
    equals("machine_check_on_where_it_is", read_cr4() >> 6 & 1, cpuid(1, 0, EDX) >> 7 & 1)
    if report.get_word(report.W_SYSCALL_STAYS) == 0:
        start = symbol("user_program")
        equals("user_read_by_kernel", run(symbol("user_reader"), CODE), load64(start))
        equals("user_read_of_kernel_refused", run(symbol("user_reader"), start), syscall.NOTHING)
        equals("user_read_of_nothing_refused", run(symbol("user_reader"), user.LOWEST - 8), syscall.NOTHING)
    equals("ring3_sets_alignment_check", run(symbol("user_aligner"), 0), UD)
    write_cr3(user.root_of(space))
    if read_cr4() & CR4_SMAP != 0:
        equals("smap_refuses_read", traps.probe_read(VirtAddr(CODE), VirtAddr(word)), PF | PRESENT)
        # A read and a write in one: which of them is refused first is the machine's choice.
        equals("smap_refuses_write", traps.probe_write(VirtAddr(OWN)) & ~WRITE, PF | PRESENT)
    if read_cr4() & CR4_SMEP != 0:
        equals("smep_refuses_execution", traps.probe_execute(VirtAddr(CODE)), PF | PRESENT | FETCH)
    write_cr3(PhysAddr(top - phys.phys_window))
    if read_cr4() & CR4_SMAP == 0:
        report.skip("smap", "the CPU has no SMAP")
    else:
        equals("smap_holds_in_handlers", traps.flags_in_handler & ALIGNMENT_CHECK, 0)
    if read_cr4() & CR4_SMEP == 0:
        report.skip("smep", "the CPU has no SMEP")


@noinline
def check_stacks() -> None:
    """#DB, NMI and #MC are taken on their own stacks, whatever RSP is."""
    traps.raise_debug()
    own_stack("ist_debug", 3)
    traps.raise_nmi()
    own_stack("ist_nmi", 1)
    traps.raise_machine_check()
    own_stack("ist_machine_check", 2)


def own_stack(name: str, i: u64) -> None:
    """Whether the frame that was noted last lies on exception stack *i*."""
    end = kernel_map.exception_stack_top(i)
    frame = traps.raised_frame
    report.check(name, frame < end and end - PAGE_SIZE <= frame, frame, end)

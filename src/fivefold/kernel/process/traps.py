"""Exceptions: the table, the entry from assembly, and probes that are allowed to fault.

The stubs in `entry.S` save the registers and call the function whose address is in
`trap_handler`. A probe is an access at a known instruction; if it faults, the handler
sends it to its end with what happened in RAX, so the kernel can ask "what would the CPU
do?" of any address.
"""

from __future__ import annotations

from typing import Final

from fivefold.kernel import report
from fivefold.kernel.boot import early
from fivefold.kernel.paging.cpu import load_idt
from fivefold.metal.lang import (
    address_of,
    buffer,
    extern,
    inline,
    load64,
    noinline,
    read_cr2,
    read_rflags,
    store64,
    symbol,
    text_address,
    u64,
)
from fivefold.units import VirtAddr

VECTORS: Final = 32
GATE_SIZE: Final = 16
IDT_SIZE: Final = 256 * GATE_SIZE
STUB_SIZE: Final = 16
KERNEL_CS: Final = 0x18
KERNEL_SS: Final = 0x20
INTERRUPT_GATE: Final = 0x8E00
"""Present, DPL 0, 64-bit interrupt gate."""

DEBUG: Final = 1
NMI: Final = 2
INVALID_OPCODE: Final = 6
DOUBLE_FAULT: Final = 8
MACHINE_CHECK: Final = 18
STACK_FAULT: Final = 12
GENERAL_PROTECTION: Final = 13
PAGE_FAULT: Final = 14

FRAME_RCX: Final = 104
FRAME_RAX: Final = 112
FRAME_VECTOR: Final = 120
FRAME_ERROR: Final = 128
FRAME_RIP: Final = 136
FRAME_CS: Final = 144
FRAME_FLAGS: Final = 152
FRAME_RSP: Final = 160
FRAME_SS: Final = 168

PROBE_OK: Final = 0
PROBE_FAULTED: Final = 1 << 63

idt: Final = buffer(IDT_SIZE, 4096)
nmi_count: u64 = 0
raised_frame: u64 = 0
"""Where the frame of a vector lay that was raised on purpose."""
flags_in_handler: u64 = 0
"""RFLAGS of the handler that took the last exception of ring 3."""
"""NMIs that came while this table of gates was in use; see `nmis`."""
left_rcx: u64 = 0
"""RCX of the program that was left last: SYSRET has put its return address there, IRET leaves what it was."""


@extern
def probe_read(va: VirtAddr, out: VirtAddr) -> u64:
    """Read 8 bytes at *va* into *out*; `PROBE_OK`, or what `outcome` describes."""


@extern
def probe_write(va: VirtAddr) -> u64:
    """Write to *va* (it keeps its value); `PROBE_OK`, or what `outcome` describes."""


@extern
def probe_execute(va: VirtAddr) -> u64:
    """Call *va*, which returns at once; `PROBE_OK`, or what `outcome` describes."""


@extern
def user_read(va: VirtAddr, out: VirtAddr) -> u64:
    """Read 8 bytes of the program's at *va* into *out*, with SMAP held off; `PROBE_OK`, or what `outcome` describes."""


@extern
def raise_debug() -> None:
    """Raise #DB by INT 1."""


@extern
def raise_nmi() -> None:
    """Enter NMI's handler by INT 2, which does not mask further NMIs."""


@extern
def raise_machine_check() -> None:
    """Enter #MC's handler by INT 18."""


@inline
def outcome(vector: u64, error: u64) -> u64:
    """What a probe returns that faulted with *vector* and *error* code."""
    return PROBE_FAULTED | vector << 32 | error


@noinline
def set_gate(vector: u64, handler: VirtAddr, stack: u64) -> None:
    """Send *vector* to *handler* on interrupt stack *stack* (1 to 7; 0 keeps the current one)."""
    gate = idt + GATE_SIZE * vector
    low = handler & 0xFFFF | KERNEL_CS << 16 | stack << 32 | INTERRUPT_GATE << 32 | (handler >> 16 & 0xFFFF) << 48
    store64(gate, low)
    store64(gate + 8, handler >> 32)


def traps_init() -> None:
    """Fill the table and load it; every vector ends in `trap`."""
    for vector in range(VECTORS):
        set_gate(vector, VirtAddr(symbol("trap_stubs") + STUB_SIZE * vector), 0)
    store64(symbol("trap_handler"), address_of(trap))
    load_idt(VirtAddr(idt), IDT_SIZE)


def nmis() -> u64:
    """Return how many NMIs were met since the entry, in the trampoline too."""
    return load64(symbol("early_nmi_count")) + nmi_count


def trap(frame: VirtAddr) -> None:
    """Handle an exception; *frame* is what the stub saved."""
    global nmi_count, raised_frame, flags_in_handler
    vector = load64(frame + FRAME_VECTOR)
    if vector == PAGE_FAULT and early.handle_fault(VirtAddr(read_cr2()), load64(frame + FRAME_ERROR)):
        return
    rip = load64(frame + FRAME_RIP)
    if rip >= symbol("raise_start") and rip < symbol("raise_end"):
        raised_frame = frame
        return
    if vector == NMI:
        nmi_count += 1
        return
    if load64(frame + FRAME_CS) & 3 != 0:
        flags_in_handler = read_rflags()
        if rip == symbol("syscall_entry"):
            report.set_word(report.W_SYSCALL_STAYS, 1)
        leave_user(frame, outcome(vector, load64(frame + FRAME_ERROR)))
        return
    if rip == symbol("iret_site"):
        leave_user(frame, outcome(vector, load64(frame + FRAME_ERROR)))
        return
    if end_probe(frame, vector):
        return
    panic_on(frame, vector)


def leave_user(frame: VirtAddr, result: u64) -> None:
    """Make *frame* return to the caller of `enter_user`, with *result*, instead of to the program."""
    global left_rcx
    left_rcx = load64(frame + FRAME_RCX)
    store64(frame + FRAME_RAX, result)
    store64(frame + FRAME_RIP, symbol("enter_user_end"))
    store64(frame + FRAME_CS, KERNEL_CS)
    store64(frame + FRAME_FLAGS, 2)
    store64(frame + FRAME_RSP, load64(symbol("kernel_rsp")))
    store64(frame + FRAME_SS, KERNEL_SS)


def end_probe(frame: VirtAddr, vector: u64) -> bool:
    """Send a probe that faulted to its end; False if the exception is not a probe's."""
    rip = load64(frame + FRAME_RIP)
    end = 0
    if rip == symbol("probe_read_site") or rip == symbol("probe_write_site") or rip == symbol("probe_execute_site"):
        end = symbol("probe_end")
    elif rip == symbol("user_read_site"):
        end = symbol("user_read_end")
    elif rip == load64(symbol("probe_target")) and rip != 0:
        end = symbol("probe_execute_end")
    if end == 0:
        return False
    store64(frame + FRAME_RAX, outcome(vector, load64(frame + FRAME_ERROR)))
    store64(frame + FRAME_RIP, end)
    return True


@noinline
def panic_on(frame: VirtAddr, vector: u64) -> None:
    """Report an unexpected exception, and stop."""
    report.set_word(report.W_PANIC_VECTOR, vector)
    report.set_word(report.W_PANIC_ERROR, load64(frame + FRAME_ERROR))
    report.set_word(report.W_PANIC_RIP, load64(frame + FRAME_RIP))
    report.set_word(report.W_PANIC_ADDRESS, read_cr2())
    report.set_word(report.W_PANIC_TEXT, text_address("unexpected exception"))
    report.set_word(report.W_STATE, report.STATE_PANIC)
    error = load64(frame + FRAME_ERROR)
    report.panic_on_exception(vector, error, read_cr2(), load64(frame + FRAME_RIP))

"""Exceptions and interrupts through the guest's own descriptor tables.

For engines that hand exceptions to their host instead of the guest. Written from the Intel
SDM: "Interrupt and Exception Handling", "64-Bit Mode Stack Frame", "Interrupt Stack Table",
"Privilege Checking of Exception- and Interrupt-Handlers", "Interrupt 8—Double Fault Exception".
"""

from __future__ import annotations

import struct
from dataclasses import replace
from typing import Final, NamedTuple

from fivefold.arch import HAS_ERROR_CODE, Access, Cpu, Escalation, Kind, Vector, escalate
from fivefold.errors import MachineError
from fivefold.machine.base import ExceptionRecord, Shutdown
from fivefold.machine.unicorn.privileged_writes import GuestException, Linear
from fivefold.machine.vcpu import (
    BIG,
    CODE_OR_DATA,
    CONFORMING,
    EXECUTABLE,
    LONG,
    PRESENT,
    RFLAGS_IF,
    RFLAGS_NT,
    RFLAGS_RF,
    RFLAGS_TF,
    RFLAGS_VM,
    Vcpu,
    VcpuSegment,
)
from fivefold.memory import PhysMemory
from fivefold.units import MASK64

SYSTEM: Final = Access(Kind.READ, implicit=True)
PUSH: Final = Access(Kind.WRITE, stack=True)
_INTERRUPT_GATE, _TRAP_GATE, _TASK_GATE = 0xE, 0xF, 0x5
_CLEARED: Final = RFLAGS_TF | RFLAGS_NT | RFLAGS_RF | RFLAGS_VM
_TRAPS: Final = frozenset({Vector.DB, Vector.BP, Vector.OF})
"""Exceptions whose saved RIP is past the instruction: RF is not set in their saved RFLAGS."""


class Trap(NamedTuple):
    """What is raised. *software*: by ``int n`` or ``int3``, so the gate's DPL counts.

    *length* is that of such an instruction: RIP is past it, and back at it if it cannot be done.
    """

    vector: int
    error_code: int | None = None
    cr2: int | None = None
    software: bool = False
    external: bool = False
    length: int = 0

    @property
    def ext(self) -> int:
        """Bit 0 of the error codes that its own delivery may raise."""
        return 0 if self.software else 1


class _Gate(NamedTuple):
    selector: int
    offset: int
    kind: int
    ist: int


class Delivered(NamedTuple):
    """The processor at the first instruction of a handler, and what was raised on the way there."""

    vcpu: Vcpu
    records: tuple[ExceptionRecord, ...]


def deliver(trap: Trap, vcpu: Vcpu, memory: PhysMemory, cpu: Cpu) -> Delivered | Shutdown:
    """Start the handler of *trap*, or of what its delivery escalates to."""
    first: int | None = None
    records: list[ExceptionRecord] = []
    while True:
        if trap.cr2 is not None:
            vcpu = replace(vcpu, cr2=trap.cr2)
        records.append(ExceptionRecord(trap.vector, trap.error_code, trap.cr2, vcpu.rip, vcpu.rsp))
        try:
            return Delivered(_enter(trap, vcpu, Linear(memory, vcpu, cpu), memory, cpu), tuple(records))
        except GuestException as refusal:
            # An `int n` of the program is no exception until its delivery raises one.
            first = trap.vector if not (trap.software or trap.external) else None
            second = Trap(refusal.vector, refusal.error_code, refusal.cr2)
            vcpu = replace(vcpu, rip=vcpu.rip - trap.length & MASK64)
        match escalate(first, second.vector):
            case Escalation.SERIAL:
                trap = second
            case Escalation.DOUBLE:
                records.append(ExceptionRecord(second.vector, second.error_code, second.cr2, vcpu.rip, vcpu.rsp))
                vcpu = replace(vcpu, cr2=vcpu.cr2 if second.cr2 is None else second.cr2)
                trap = Trap(Vector.DF, 0)
            case Escalation.TRIPLE:
                records.append(ExceptionRecord(second.vector, second.error_code, second.cr2, vcpu.rip, vcpu.rsp))
                return Shutdown(tuple(records))


def has_error_code(vector: int) -> bool:
    """Whether the processor pushes an error code for exception *vector*."""
    return vector in HAS_ERROR_CODE


def _enter(trap: Trap, vcpu: Vcpu, linear: Linear, memory: PhysMemory, cpu: Cpu) -> Vcpu:
    if not vcpu.cr0 & 1:
        raise MachineError(f"vector {trap.vector} in real mode is not modelled by this engine")
    gate = _gate(trap, vcpu, linear)
    code = _handler_code(gate, trap, vcpu, linear)
    cpl = vcpu.cpl if code.flags & CONFORMING else code.dpl
    # The stack of the handler is written at the handler's privilege.
    stack = Linear(memory, replace(vcpu, cpl=cpl), cpu)
    enter = _enter_long if vcpu.long_mode else _enter_protected
    vcpu = enter(trap, gate, cpl, vcpu, linear, stack)
    cleared = _CLEARED | (RFLAGS_IF if gate.kind == _INTERRUPT_GATE else 0)
    return replace(
        vcpu,
        cs=code._replace(selector=gate.selector & ~3 | cpl),
        rip=gate.offset,
        rflags=vcpu.rflags & ~cleared,
        cpl=cpl,
    )


def _gate(trap: Trap, vcpu: Vcpu, linear: Linear) -> _Gate:
    """The gate of *trap*, checked: inside the IDT, of the right type, permitted, present."""
    size = 16 if vcpu.long_mode else 8
    bad = trap.vector << 3 | 2 | trap.ext
    if trap.vector * size + size - 1 > vcpu.idt.limit:
        raise GuestException(Vector.GP, bad)
    raw = linear.read(vcpu.idt.base + trap.vector * size, size, SYSTEM)
    low, selector, ist, access, middle = struct.unpack_from("<HHBBH", raw)
    offset = low | middle << 16 | (int.from_bytes(raw[8:12], "little") << 32 if vcpu.long_mode else 0)
    kind = access & 0x1F
    if kind == _TASK_GATE and not vcpu.long_mode:
        raise MachineError(f"vector {trap.vector} has a task gate, which this engine does not model")
    if kind not in (_INTERRUPT_GATE, _TRAP_GATE):
        raise GuestException(Vector.GP, bad)
    if trap.software and access >> 5 & 3 < vcpu.cpl:
        raise GuestException(Vector.GP, bad)
    if not access & 0x80:
        raise GuestException(Vector.NP, bad)
    return _Gate(selector, offset, kind, ist & 7 if vcpu.long_mode else 0)


def _handler_code(gate: _Gate, trap: Trap, vcpu: Vcpu, linear: Linear) -> VcpuSegment:
    if not gate.selector & ~3:
        raise GuestException(Vector.GP, trap.ext)
    bad = gate.selector & ~3 | trap.ext
    segment = _descriptor(gate.selector, bad, vcpu, linear)
    wanted = PRESENT | CODE_OR_DATA | EXECUTABLE
    if segment.flags & (CODE_OR_DATA | EXECUTABLE) != CODE_OR_DATA | EXECUTABLE or segment.dpl > vcpu.cpl:
        raise GuestException(Vector.GP, bad)
    if segment.flags & wanted != wanted:
        raise GuestException(Vector.NP, bad)
    if vcpu.long_mode and segment.flags & (LONG | BIG) != LONG:
        raise GuestException(Vector.GP, bad)
    return segment


def _descriptor(selector: int, bad: int, vcpu: Vcpu, linear: Linear) -> VcpuSegment:
    base, limit = (vcpu.ldt.base, vcpu.ldt.limit) if selector & 4 else vcpu.gdt
    offset = selector & ~7
    if offset + 7 > limit:
        raise GuestException(Vector.GP, bad)
    raw = int.from_bytes(linear.read(base + offset, 8, SYSTEM), "little")
    return VcpuSegment.from_descriptor(selector, raw)


def _saved_rflags(trap: Trap, vcpu: Vcpu) -> int:
    fault = not (trap.software or trap.external or trap.vector in _TRAPS)
    return vcpu.rflags | RFLAGS_RF if fault else vcpu.rflags


def _enter_long(trap: Trap, gate: _Gate, cpl: int, vcpu: Vcpu, linear: Linear, stack: Linear) -> Vcpu:
    """Push the frame of IA-32e mode: SS, RSP, RFLAGS, CS, RIP and the error code, 8 bytes each."""
    rsp, ss = vcpu.rsp, vcpu.ss
    if gate.ist:
        rsp = _tss_word(0x24 + 8 * (gate.ist - 1), 8, trap, vcpu, linear)
    elif cpl != vcpu.cpl:
        rsp = _tss_word(4 + 8 * cpl, 8, trap, vcpu, linear)
    if cpl != vcpu.cpl:
        ss = VcpuSegment(cpl, 0, 0, cpl << 13)
    frame = [vcpu.ss.selector, vcpu.rsp, _saved_rflags(trap, vcpu), vcpu.cs.selector, vcpu.rip]
    if trap.error_code is not None:
        frame.append(trap.error_code)
    # Word by word from the top, as the processor does: the first that cannot be written faults.
    top = rsp & ~0xF
    for word in frame:
        top = top - 8 & MASK64
        try:
            stack.write(top, word.to_bytes(8, "little"), PUSH)
        except GuestException as refusal:
            # A stack that is not canonical is #SS, with EXT when the processor was delivering.
            raise GuestException(refusal.vector, _stack_code(refusal, trap), refusal.cr2) from None
    return replace(vcpu, rsp=top, ss=ss)


def _stack_code(refusal: GuestException, trap: Trap) -> int | None:
    return trap.ext if refusal.vector == Vector.SS else refusal.error_code


def _enter_protected(trap: Trap, gate: _Gate, cpl: int, vcpu: Vcpu, linear: Linear, stack: Linear) -> Vcpu:
    """Push the frame of 32-bit protected mode, on the stack of the TSS if the privilege changes."""
    frame = [_saved_rflags(trap, vcpu) & 0xFFFF_FFFF, vcpu.cs.selector, vcpu.rip]
    rsp, ss = vcpu.rsp, vcpu.ss
    if cpl != vcpu.cpl:
        rsp = _tss_word(4 + 8 * cpl, 4, trap, vcpu, linear)
        selector = _tss_word(8 + 8 * cpl, 2, trap, vcpu, linear)
        ss = _descriptor(selector, selector & ~3 | trap.ext, vcpu, linear)
        frame = [vcpu.ss.selector, vcpu.rsp, *frame]
    if trap.error_code is not None:
        frame.append(trap.error_code)
    for word in frame:
        rsp = rsp - 4 & 0xFFFF_FFFF
        stack.write(ss.base + rsp & 0xFFFF_FFFF, (word & 0xFFFF_FFFF).to_bytes(4, "little"), PUSH)
    return replace(vcpu, rsp=rsp, ss=ss)


def _tss_word(offset: int, size: int, trap: Trap, vcpu: Vcpu, linear: Linear) -> int:
    """A stack pointer or selector out of the task-state segment."""
    if offset + size - 1 > vcpu.tr.limit or not vcpu.tr.flags & PRESENT:
        raise GuestException(Vector.TS, vcpu.tr.selector & ~3 | trap.ext)
    return int.from_bytes(linear.read(vcpu.tr.base + offset, size, SYSTEM), "little")

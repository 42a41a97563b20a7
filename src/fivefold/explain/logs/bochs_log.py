"""Bochs' log: the exceptions that it names, its own reasons for them, and the registers at the end.

At its default level Bochs prints no exception but the third one, ``exception(): 3rd (13) exception with no
resolution``, with the registers, the instruction and its bytes, and before it, at the same tick, the reasons that
are errors to it: a gate beyond the IDT's limit, an address that is not canonical. With CPU debug messages it prints
each exception, the address of each page fault, and the level that refused it.

Source: Bochs 2.6 to 3.0, ``cpu/exception.cc``, ``cpu/paging.cc``, ``cpu/crregs.cc``,
``cpu/access.cc``, ``cpu/debugstuff.cc``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from fivefold.arch import HAS_ERROR_CODE, Level, Vector
from fivefold.explain.logs.event_line import pair_up
from fivefold.explain.logs.register_text import parse_registers
from fivefold.explain.logs.text.lines import Line
from fivefold.explain.logs.trace import Code, EmulatorReason, RaisedException, Trace
from fivefold.memory import CpuState, Segment

_LINE: Final = re.compile(r"(\d{6,})([deip])\[CPU(\d+) *\] *(.*)", re.I)
_RAISED: Final = re.compile(r"exception\(0x([0-9a-f]{2})\): error_code=([0-9a-f]{1,8})", re.I)
_FAULT: Final = re.compile(r"page fault for address ([0-9a-f]{16}) @ ([0-9a-f]{16})(?![0-9a-z])", re.I)
_THIRD: Final = re.compile(r"exception\(\): 3rd \((\d{1,2})\) exception", re.I)
_INSTRUCTION: Final = re.compile(r"0x([0-9a-f]{16})>> .*: ([0-9a-f]{2,30})\s*$", re.I)
_STACK: Final = re.compile(r">> (?:push|pop|call|ret|enter|leave|iret)|\bss:", re.I)
_DELIVERIES: Final = 2
"""Those of a triple fault whose gates cannot be used: of the first exception, and of the double fault."""
_GATES: Final = ("idt-limit", "idt-entry")
_LIMIT: Final = re.compile(r"IDT\.limit = 0x[0-9a-f]|within IDT table limits", re.I)
_GATE: Final = re.compile(
    r"interrupt\(.*(?:not valid|not present|unsupported|gate type|TYPE != 0|selector|64 ?bit|canonical|is not|DPL)",
    re.I,
)
_CANONICAL: Final = re.compile(r"canonical (?:failure|RIP violation|violation)|not canonical", re.I)
_CONTROL: Final = re.compile(r"(?:CR0|CR4|EFER|CR3).*(?:attempt|reserved|change|invalid|toggle)", re.I)
_LEVEL: Final = re.compile(r"(?:PAE )?\b(PTE|PDE|PDPE|PML4E?|PML5E?):? (entry not present|.*reserved)", re.I)
_LEVELS: Final = {"PTE": Level.PT, "PDE": Level.PD, "PDPE": Level.PDPT, "PML4": Level.PML4, "PML5": Level.PML5}
_DUMP: Final = re.compile(r"CPU is in (?:long mode|protected mode|real mode|compat)", re.I)
_CHAIN: Final = 4
"""Exceptions of a triple fault, the double fault among them."""
_REMEMBERED: Final = 16


@dataclass(slots=True)
class _Cpu:
    """What was printed of one CPU, of its last tick that has an exception or a reason."""

    tick: str = ""
    raised: list[RaisedException] = field(default_factory=list)
    reasons: list[EmulatorReason] = field(default_factory=list)
    address: tuple[int, int] | None = None
    level: EmulatorReason | None = None
    dump: list[str] = field(default_factory=list)
    code: Code | None = None
    uses_stack: bool = False
    """Whether the instruction addresses the stack, so that what is not canonical there is a #SS."""
    third: tuple[int, int] | None = None


def read_bochs(lines: Sequence[Line], source: str) -> Trace | None:
    """The last exceptions of a log of Bochs, None if there are none."""
    cpus: dict[str, _Cpu] = {}
    total = 0
    for line in lines:
        match = _LINE.search(line.text)
        if match is None:
            continue
        tick, severity, name, text = match.groups()
        cpu = cpus.setdefault(name, _Cpu())
        if cpu.third is None:
            total += _take(cpu, tick, text, line.number, severity.lower() == "e")
    for name, cpu in cpus.items():
        if cpu.third is not None:
            return _trace(source, cpu, total, f"CPU {name} of the machine" if len(cpus) > 1 else None)
    for cpu in cpus.values():
        if cpu.raised or (cpu.reasons and cpu.dump):
            return _trace(source, cpu, total, None)
    return None


def _take(cpu: _Cpu, tick: str, text: str, number: int, is_error: bool) -> int:
    """Add one line; 1 if it is of an exception. What is an error to Bochs is a reason, whatever it says."""
    if match := _THIRD.search(text):
        _at(cpu, tick)
        cpu.third = int(match[1]), number
        return 1
    if match := _FAULT.search(text):
        _at(cpu, tick)
        cpu.address = int(match[1], 16), int(match[2], 16)
    elif match := _RAISED.search(text):
        _at(cpu, tick)
        _raise(cpu, int(match[1], 16), int(match[2], 16), number)
        return 1
    elif (reason := _reason(text)) is not None:
        _at(cpu, tick)
        if reason.level is not None:
            cpu.level = reason
        else:
            cpu.reasons.append(reason)
    elif _DUMP.search(text):
        cpu.dump = [text]
    elif match := _INSTRUCTION.search(text):
        raw = match[2]
        if len(raw) % 2 == 0:
            cpu.code = Code(bytes.fromhex(raw), 0)
            cpu.uses_stack = _STACK.search(text) is not None
    elif is_error and text.strip() and not text.startswith("interrupt("):
        _at(cpu, tick)
        cpu.reasons.append(EmulatorReason(text.strip(), "other"))
    elif cpu.dump and len(cpu.dump) < 40:
        cpu.dump.append(text)
    return 0


def _at(cpu: _Cpu, tick: str) -> None:
    """What was printed at an earlier tick is of another instruction."""
    if cpu.tick != tick:
        cpu.tick, cpu.raised, cpu.reasons, cpu.address, cpu.level = tick, [], [], None, None


def _raise(cpu: _Cpu, vector: int, code: int, number: int) -> None:
    is_fault = vector == Vector.PF
    cr2, rip = cpu.address if cpu.address and is_fault else (None, None)
    level, cpu.level, cpu.address = cpu.level if is_fault else None, None, None
    del cpu.raised[:-_REMEMBERED]
    cpu.raised.append(
        RaisedException(vector, None, code if vector in HAS_ERROR_CODE else None, cr2, rip, line=number, reason=level)
    )


def _reason(text: str) -> EmulatorReason | None:
    """What Bochs itself gives as the reason of an exception."""
    if match := _LEVEL.search(text):
        rule = "not-present" if "not present" in match[2].lower() else "reserved-bit"
        return EmulatorReason(text, rule, _LEVELS[match[1].upper()[:4]])
    if _LIMIT.search(text):
        return EmulatorReason(text, "idt-limit")
    if _GATE.search(text):
        return EmulatorReason(text, "idt-entry")
    if _CANONICAL.search(text):
        return EmulatorReason(text, "non-canonical")
    if _CONTROL.search(text):
        return EmulatorReason(text, "mode-change-refused")
    return None


def _trace(source: str, cpu: _Cpu, total: int, remark: str | None) -> Trace:
    registers = _registers(cpu)
    raised = cpu.raised
    if cpu.third is not None:
        last, number = cpu.third
        if not raised or raised[-1].vector != last:
            raised = [*raised, RaisedException(last, line=number)]
    chain = list(pair_up(raised))[-_CHAIN:]
    is_cut = cpu.third is not None and len(raised) < _CHAIN
    if cpu.third is not None and not cpu.raised and (first := _first_by_reason(cpu, registers)) is not None:
        chain, is_cut = [*_after(first, raised[-1], cpu.reasons)], False
    if chain:
        chain = _with_reasons(chain, cpu.reasons, registers, is_cut)
    return Trace(
        source,
        "Bochs log",
        tuple(chain),
        "triple-fault" if cpu.third is not None else "unknown",
        registers,
        cpu.code,
        total=total,
        resets=int(cpu.third is not None),
        truncated=is_cut,
        remarks=(remark,) if remark else (),
    )


def _first_by_reason(cpu: _Cpu, registers: CpuState | None) -> RaisedException | None:
    """The exception whose reason comes before those of the gates, so that it is the first."""
    reason = cpu.reasons[0] if cpu.reasons else None
    if reason is None or reason.rule in _GATES or cpu.third is None:
        return None
    vector = Vector.SS if reason.rule == "non-canonical" and cpu.uses_stack else Vector.GP
    return RaisedException(
        int(vector), error_code=None if reason.rule == "other" else 0, rip=registers.rip if registers else None,
        line=cpu.third[1], reason=reason,
    )  # fmt: skip


def _after(
    first: RaisedException, third: RaisedException, reasons: list[EmulatorReason]
) -> tuple[RaisedException, ...]:
    """The chain that *first* began, as far as the gates that could not be used show it."""
    if sum(reason.rule in _GATES for reason in reasons) < _DELIVERIES:
        return (first,)
    second, double = RaisedException(int(Vector.GP), line=third.line), RaisedException(int(Vector.DF), line=third.line)
    return pair_up([first, second, double, third])


def _with_reasons(
    chain: list[RaisedException], reasons: list[EmulatorReason], registers: CpuState | None, is_cut: bool
) -> list[RaisedException]:
    """The reasons given to the exceptions: those of gates to deliveries, others to the first exception."""
    gates = [reason for reason in reasons if reason.rule in _GATES]
    others = [reason for reason in reasons if reason.rule not in _GATES]
    others.sort(key=lambda reason: reason.rule == "other")
    found = []
    for one in chain:
        reason = one.reason
        is_cut_off = is_cut and one is chain[-1]
        if reason is None and (one.during is not None or is_cut_off) and gates and one.vector in (Vector.GP, Vector.NP):
            # With a third exception alone the first reason is that of the first delivery.
            times = len(gates) if is_cut_off else 1
            reason = gates.pop(0)._replace(times=times)
        elif reason is None and others and one.vector != Vector.PF and (one.during is None or is_cut_off):
            reason = others[0]
        found.append(replace(one, reason=reason, cpu=registers if one.cpu is None else one.cpu))
    return found


def _registers(cpu: _Cpu) -> CpuState | None:
    text = "\n".join(cpu.dump)
    found = parse_registers(text, "Bochs' dump")
    if found is None:
        return None
    segments = dict(found.segments)
    if "in long mode" in text and "CS.mode = 64" in text:
        selector = re.search(r"\bCS:([0-9a-f]{4})\(", text)
        segments["cs"] = Segment(int(selector[1], 16) if selector else 0, 0, 0xFFFF_FFFF, 0xAF9B00)
    general = dict(found.general)
    if (selector := re.search(r"\bCS:([0-9a-f]{4})\(", text)) is not None:
        general.setdefault("cpl", int(selector[1], 16) & 3)
    return replace(found, segments=segments, general=general)

"""Why a handler could not run: the delivery of an exception in IA-32e mode, step by step, from memory.

Gate inside the limit, readable, usable; code segment; stack, which a gate's IST or a change of
privilege may switch; the frame, word by word; and the handler's first instruction. Each step
that memory or registers cannot show ends the replay without an answer.

Source: Intel SDM, "Interrupt and Exception Handling in 64-bit Mode", "Interrupt Stack Table".
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final, NamedTuple

from fivefold.arch import FETCH, Access, Kind, Step, Vector
from fivefold.explain.rules.ruling import Granted, Outside, Refusal, RuleName, Ruling, read_virtual, rule_on
from fivefold.explain.rules.situation import Situation
from fivefold.machine.base import vector_name
from fivefold.units import MASK64, hex64

GATE_SIZE: Final = 16
"""Bytes of a gate in long mode; `Situation.gate_size` is that of the mode."""
_USABLE: Final = (0xE, 0xF)
_PRESENT, _CODE, _LONG, _BIG = 1 << 47, 0x18 << 40, 1 << 53, 1 << 54
_FRAME: Final = 5
"""Words of a frame. An error code is a sixth, in the same 16 bytes as the fifth: what refuses it refuses that first."""
SYSTEM: Final = Access(Kind.READ, 8, implicit=True)
PUSH: Final = Access(Kind.WRITE, 8, stack=True)


@dataclass(frozen=True, slots=True)
class Obstacle:
    """What stopped the delivery: *rule*, the exception it raises, the address where it did.

    *in_handler*: the delivery itself succeeded, and the first instruction could not be fetched.
    """

    rule: RuleName
    sentence: str
    vector: int
    va: int | None = None
    culprit: Step | None = None
    steps: tuple[Step, ...] = ()
    in_handler: bool = False


@dataclass(frozen=True, slots=True)
class Route:
    """How far a delivery gets. None is what could not be read; *missing* says what ended the replay early."""

    vector: int
    gate: int | None = None
    handler: int | None = None
    ist: int | None = None
    top: int | None = None
    obstacle: Obstacle | None = None
    missing: str | None = None


class Gate(NamedTuple):
    """An IDT entry of 64-bit mode; *offset* is its handler."""

    selector: int
    offset: int
    ist: int
    kind: int
    dpl: int
    present: bool


def gate_address(here: Situation, vector: int) -> int | None:
    """Where the gate of *vector* lies, None if IDTR is not known."""
    idt = here.registers.idt
    return None if idt is None or here.may_be_long else idt.base + here.gate_size * vector & MASK64


def replay(here: Situation, vector: int, software: bool = False) -> Route:
    """Deliver *vector* in the state *here*, on the stack that RSP names."""
    route = Route(vector, gate_address(here, vector))
    idt = here.registers.idt
    if idt is None:
        return replace(route, missing="IDTR is not known")
    if here.has_gate(vector, idt.limit) is False:
        return replace(route, obstacle=_beyond_limit(here, vector, idt.limit))
    if here.may_be_long:
        return replace(route, missing="it is not known whether gates have 8 or 16 bytes")
    if not here.is_long:
        return replace(route, missing="the CPU is outside of long mode, where deliveries are not replayed")
    if here.space is None:
        return replace(route, missing="there is no memory to read the gate from")
    route, gate = _find_gate(here, route)
    if gate is None:
        return route
    route = replace(route, handler=gate.offset, ist=gate.ist)
    if (obstacle := _unusable(here, vector, gate, software)) is not None:
        return replace(route, obstacle=obstacle)
    return _enter(here, route, gate)


def _beyond_limit(here: Situation, vector: int, limit: int) -> Obstacle:
    size = here.gate_size
    where = "lies outside" if here.may_be_long else f"ends at offset {size * vector + size - 1:#x}"
    sentence = f"the gate of {vector_name(vector)} {where}, and the IDT's limit is {limit:#x}"
    return Obstacle("idt-limit", sentence, int(Vector.GP))


def read_gate(here: Situation, vector: int) -> Gate | None:
    """The gate of *vector*, None where memory does not show it."""
    at = gate_address(here, vector)
    raw = None if at is None else read_virtual(here, at, GATE_SIZE)
    if raw is None or len(raw) < GATE_SIZE:
        return None
    low, high = int.from_bytes(raw[:8], "little"), int.from_bytes(raw[8:12], "little")
    offset = low & 0xFFFF | low >> 32 & 0xFFFF0000 | high << 32
    return Gate(low >> 16 & 0xFFFF, offset, low >> 32 & 7, low >> 40 & 0x1F, low >> 45 & 3, bool(low & _PRESENT))


def _find_gate(here: Situation, route: Route) -> tuple[Route, Gate | None]:
    assert route.gate is not None  # the caller has the IDT
    ruling = rule_on(here, route.gate, replace(SYSTEM, size=GATE_SIZE))
    if not isinstance(ruling, Granted):
        what = f"the gate of {vector_name(route.vector)} at {hex64(route.gate)} could not be read"
        return replace(route, obstacle=_blocked("idt-not-mapped", what, ruling)), None
    gate = read_gate(here, route.vector)
    if gate is None:
        return replace(route, missing=f"the memory does not hold the gate at {hex64(route.gate)}"), None
    return route, gate


def _blocked(rule: RuleName, what: str, ruling: Ruling | None, in_handler: bool = False) -> Obstacle:
    """An obstacle out of a refused access."""
    if isinstance(ruling, Outside):
        return Obstacle(rule, what, int(Vector.PF), ruling.va, ruling.pointer, ruling.steps, in_handler)
    assert isinstance(ruling, Refusal)  # what is granted or not known is no obstacle
    return Obstacle(rule, what, ruling.vector, ruling.va, ruling.culprit, ruling.steps, in_handler)


def _unusable(here: Situation, vector: int, gate: Gate, software: bool) -> Obstacle | None:
    """The gate's own faults, in the order in which the CPU finds them."""
    name = f"the gate of {vector_name(vector)}"
    general = int(Vector.GP)
    if gate.kind not in _USABLE:
        empty = "is empty" if not gate.kind and not gate.present else f"has type {gate.kind:#x}"
        return Obstacle("idt-entry", f"{name} {empty}; expected an interrupt or trap gate (0xe, 0xf)", general)
    if software and gate.dpl < here.state.cpl:
        return Obstacle("idt-entry", f"{name} has DPL {gate.dpl}, the caller level {here.state.cpl}", general)
    if not gate.present:
        return Obstacle("idt-entry", f"{name} is not present", int(Vector.NP))
    if not gate.selector & ~3:
        return Obstacle("idt-entry", f"{name} has a null code selector", general)
    return _bad_segment(here, name, gate.selector)


def _bad_segment(here: Situation, name: str, selector: int) -> Obstacle | None:
    gdt = here.registers.gdt
    if gdt is None or selector & 4:
        return None
    general = int(Vector.GP)
    offset = selector & ~7
    if offset + 7 > gdt.limit:
        return Obstacle("idt-entry", f"{name} has selector {selector:#x}, past the GDT's limit {gdt.limit:#x}", general)
    ruling = rule_on(here, gdt.base + offset, SYSTEM)
    if isinstance(ruling, Refusal):
        what = f"the descriptor of {name}'s code segment at {hex64(gdt.base + offset)} could not be read"
        return _blocked(ruling.rule, what, ruling)
    raw = read_virtual(here, gdt.base + offset, 8)
    if raw is None or len(raw) < 8:
        return None
    descriptor = int.from_bytes(raw, "little")
    if descriptor & _CODE != _CODE:
        return Obstacle("idt-entry", f"{name} has selector {selector:#x}, which is no code segment", general)
    if not descriptor & _PRESENT:
        return Obstacle("idt-entry", f"{name} has selector {selector:#x}, which is not present", int(Vector.NP))
    if descriptor & (_LONG | _BIG) != _LONG:
        return Obstacle("idt-entry", f"{name} has selector {selector:#x}, which is no 64-bit code segment", general)
    return None


def _enter(here: Situation, route: Route, gate: Gate) -> Route:
    """The stack, the frame on it, and the handler's first byte."""
    mode = here.mode
    assert mode is not None  # there is a space
    if not mode.is_canonical(gate.offset):
        what = f"the gate of {vector_name(route.vector)} leads to {hex64(gate.offset)}, which is not canonical"
        return replace(route, obstacle=Obstacle("idt-entry", what, int(Vector.GP)))
    top, trouble = _stack_top(here, gate)
    if isinstance(trouble, Obstacle):
        return replace(route, obstacle=trouble)
    if top is None:
        return replace(route, missing=trouble)
    route = replace(route, top=top)
    kernel = here.with_state(replace(here.state, cpl=0))
    for number in range(1, _FRAME + 1):
        ruling = rule_on(kernel, top - 8 * number & MASK64, PUSH)
        if isinstance(ruling, Refusal | Outside):
            return replace(route, obstacle=_push(route, ruling, number))
    ruling = rule_on(kernel, gate.offset, FETCH)
    if isinstance(ruling, Refusal | Outside):
        what = f"the handler of {vector_name(route.vector)} at {hex64(gate.offset)} cannot be fetched"
        return replace(route, obstacle=_blocked("handler-not-mapped", what, ruling, in_handler=True))
    return route


def _push(route: Route, ruling: Refusal | Outside, number: int) -> Obstacle:
    rule: RuleName = ruling.rule if isinstance(ruling, Refusal) else "table-outside-memory"
    on = f"IST {route.ist}" if route.ist else "the same stack, for the gate names no IST"
    what = f"word {number} of the frame could not be pushed to {hex64(ruling.va)}, on {on}"
    return _blocked(rule, what, ruling)


def _stack_top(here: Situation, gate: Gate) -> tuple[int | None, Obstacle | str]:
    """Where the frame starts, or why that is not known."""
    if not gate.ist and here.state.cpl == 0:
        rsp = here.registers.rsp
        return (None, "RSP is not known") if rsp is None else (rsp & ~15, "")
    offset = 0x24 + 8 * (gate.ist - 1) if gate.ist else 4
    tss = here.registers.segments.get("tr")
    if tss is None:
        return None, "TR is not known, and the stack comes from the TSS"
    if offset + 7 > tss.limit:
        return None, Obstacle(
            "stack", f"the TSS ends at {tss.limit:#x}, before the stack that is needed", int(Vector.TS)
        )
    ruling = rule_on(here, tss.base + offset, SYSTEM)
    if isinstance(ruling, Refusal):
        what = f"the stack pointer in the TSS at {hex64(tss.base + offset)} could not be read"
        return None, _blocked(ruling.rule, what, ruling)
    raw = read_virtual(here, tss.base + offset, 8)
    if raw is None or len(raw) < 8:
        return None, "the memory does not hold the TSS"
    return int.from_bytes(raw, "little") & ~15, ""

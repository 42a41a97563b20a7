"""What the CPU is about to do, from registers and memory alone: for cores and live machines without a log.

After a triple fault an emulator keeps the registers as they were, so the instruction at RIP
is the one that faulted. What follows from it is inferred, and said to be.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from fivefold.arch import FETCH, HAS_ERROR_CODE, READ, Escalation, Vector, escalate
from fivefold.explain.faults.delivery import SYSTEM, replay
from fivefold.explain.faults.finding import instruction_at
from fivefold.explain.faults.general_fault import explain_write
from fivefold.explain.faults.illegal_state import impossible
from fivefold.explain.faults.page_fault import FRAME_WORDS
from fivefold.explain.logs.trace import Code, Outcome, RaisedException
from fivefold.explain.rules.instruction import LONGEST, Instruction
from fivefold.explain.rules.reserved import with_reserved
from fivefold.explain.rules.ruling import Granted, Outside, Refusal, Ruling, rule_on
from fivefold.explain.rules.situation import GivenState, Situation
from fivefold.units import MASK64

_MOST: Final = 4
_SOFTWARE: Final = {"int3": Vector.BP, "int1": Vector.DB, "into": Vector.OF}


def given_exception(given: GivenState, here: Situation) -> RaisedException | None:
    """The exception that the caller describes, None if they describe none."""
    if given.vector is None and given.cr2 is None and given.error_code is None:
        return None
    vector = int(Vector.PF) if given.vector is None else given.vector
    registers = here.registers
    return RaisedException(
        vector,
        None,
        given.error_code,
        registers.cr2 if vector == Vector.PF else None,
        registers.rip,
        registers.rsp,
        here.state.cpl,
        cpu=registers,
    )


def first_exception(here: Situation, code: Code | None = None) -> RaisedException | None:
    """The exception that the instruction at RIP raises, None if it raises none or is not known."""
    registers = here.registers
    rip = registers.rip
    if rip is None:
        return None
    plain = RaisedException(0, rip=rip, rsp=registers.rsp, cpl=here.state.cpl, cpu=registers)
    if impossible(here):
        return replace(plain, vector=int(Vector.PF), cr2=registers.cr2)
    if here.mode is None:
        return None
    if raised := _of_ruling(plain, rule_on(here, rip, FETCH)):
        return raised
    instruction = instruction_at(here, plain, code)
    if instruction is None:
        return _by_registers(here, plain)
    if raised := _of_ruling(plain, rule_on(here, rip, replace(FETCH, size=instruction.size))):
        return raised
    return _of_instruction(here, plain, instruction)


def _by_registers(here: Situation, plain: RaisedException) -> RaisedException | None:
    """What the registers show by themselves, where memory does not hold the code.

    CR2 alone proves little: a healthy guest has the address of some fault of a process in it.
    """
    registers = here.registers
    cr2, rip, rsp, mode = registers.cr2, registers.rip, registers.rsp, here.mode
    if rsp is not None and mode is not None and not mode.is_canonical(rsp - 8 & MASK64):
        return replace(plain, vector=int(Vector.SS), error_code=0)
    if cr2 is None or rip is None:
        return None
    fault = replace(plain, vector=int(Vector.PF), cr2=cr2)
    if cr2 == rip or (rip < cr2 < rip + LONGEST and not cr2 & 0xFFF):
        return fault
    idt = registers.idt
    if idt is not None and idt.limit and 0 <= cr2 - idt.base <= idt.limit:
        return replace(fault, during=cr2 - idt.base >> 4)
    if rsp is not None and 0 < rsp - cr2 <= 8 * FRAME_WORDS and here.state.cpl == 0:
        return fault
    if not cr2 >> 63:
        return None
    ruling = rule_on(here, cr2, READ)
    absent = isinstance(ruling, Refusal) and ruling.rule == "not-present"
    return fault if absent else None


def _of_instruction(here: Situation, plain: RaisedException, instruction: Instruction) -> RaisedException | None:
    if instruction.on_purpose:
        name, _, operand = instruction.text.partition(" ")
        if name.startswith("ud"):
            return replace(plain, vector=int(Vector.UD))
        vector = int(operand, 0) if name == "int" else int(_SOFTWARE[name])
        return replace(plain, vector=vector, software=True)
    for use in instruction.uses:
        seen, _ = with_reserved(here, use.va, use.how, None)
        if raised := _of_ruling(plain, rule_on(seen, use.va, use.how)):
            return raised
    cr2 = here.registers.cr2
    if cr2 and any(use.va == cr2 for use in instruction.uses):
        # The tables allow it, and yet the last page fault was at just this address.
        return replace(plain, vector=int(Vector.PF), cr2=cr2)
    if instruction.write is not None and explain_write(here, instruction.write) is not None:
        return replace(plain, vector=int(Vector.GP), error_code=0)
    return None


def _of_ruling(plain: RaisedException, ruling: Ruling | None) -> RaisedException | None:
    if ruling is None or isinstance(ruling, Granted):
        return None
    if isinstance(ruling, Outside):
        return replace(plain, vector=int(Vector.PF), cr2=ruling.va)
    cr2 = ruling.va if ruling.vector == Vector.PF else None
    return replace(plain, vector=ruling.vector, error_code=0 if cr2 is None else None, cr2=cr2)


def follow(here: Situation, first: RaisedException) -> tuple[tuple[RaisedException, ...], Outcome]:
    """*first* and what its delivery leads to, as far as memory shows it."""
    exceptions = [first]
    if (cr2 := here.registers.cr2) is not None:
        # The last page fault of a failed delivery may have been one of the gate, the stack or the handler.
        here, _ = with_reserved(here, cr2, SYSTEM, None)
    vector, software = first.vector, first.software
    while len(exceptions) <= _MOST:
        route = replay(here, vector, software)
        obstacle = route.obstacle
        if obstacle is None:
            delivered: Outcome = "double-fault" if vector == Vector.DF else "handled"
            return tuple(exceptions), "unknown" if route.missing else delivered
        if obstacle.in_handler:
            exceptions.append(_fetch_fault(exceptions[-1], route.handler, vector, software))
            return tuple(exceptions), "unknown"
        va = obstacle.va if obstacle.vector == Vector.PF else None
        exceptions.append(
            RaisedException(obstacle.vector, vector, cr2=va, rip=first.rip, rsp=first.rsp, cpl=first.cpl, cpu=first.cpu)
        )
        step = escalate(None if software else vector, obstacle.vector)
        if step is Escalation.TRIPLE:
            return tuple(exceptions), "triple-fault"
        vector, software = (int(Vector.DF) if step is Escalation.DOUBLE else obstacle.vector), False
    return tuple(exceptions), "unknown"


def _fetch_fault(before: RaisedException, handler: int | None, vector: int, software: bool) -> RaisedException:
    """The page fault at the handler's first instruction, after a frame was pushed."""
    words = 6 if vector in HAS_ERROR_CODE and not software else 5
    rsp = None if before.rsp is None else (before.rsp & ~15) - 8 * words
    return RaisedException(int(Vector.PF), cr2=handler, rip=handler, rsp=rsp, cpl=0, cpu=before.cpu, linked=True)

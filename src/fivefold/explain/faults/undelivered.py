"""An exception that could not be delivered, and that the source does not have: an emulator says only why not."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from fivefold.arch import Kind
from fivefold.explain.faults.failed_delivery import refused_gate
from fivefold.explain.faults.finding import FaultFinding
from fivefold.explain.faults.page_fault import FRAME_WORDS
from fivefold.explain.logs.trace import EmulatorReason
from fivefold.explain.rules.instruction import Instruction
from fivefold.explain.rules.situation import Situation
from fivefold.units import hex64

_NULL_PAGE: Final = 0x1000
_OF_A_BENIGN_ONE: Final = 3
"""Deliveries that fail until the triple fault, if the first is of INT3 or of an invalid opcode; else two."""


def before_a_gate(
    here: Situation, reason: EmulatorReason, instruction: Instruction | None, own: FaultFinding | None
) -> FaultFinding:
    """What could not be delivered, as far as the instruction shows it, or else the gate that could not be used.

    *own* is what refuses the instruction by its operands alone.
    """
    if own is not None and own.confidence == "certain":
        return replace(own, confidence="likely", remarks=(f"the emulator says of the delivery: {reason.text}",))
    finding = _undelivered(refused_gate(here, reason), instruction)
    if instruction is not None and instruction.on_purpose and reason.times >= _OF_A_BENIGN_ONE:
        return replace(finding, confidence="likely")
    return finding


def _undelivered(finding: FaultFinding, instruction: Instruction | None) -> FaultFinding:
    """*finding* of a gate, with what the instruction and CR2 say of the exception, which is not in the source.

    It is a guess where they say nothing: what was raised first may be what went wrong.
    """
    unsaid = "what was to be delivered first is not in the source"
    here, which = finding.here, ""
    cr2, rsp = here.registers.cr2, here.registers.rsp
    if cr2 is not None and rsp is not None and 0 < rsp - cr2 <= 8 * FRAME_WORDS:
        unsaid = f"{unsaid}; CR2 is {rsp - cr2} bytes below RSP: perhaps a push raised a #PF"
        which = f" (perhaps a #PF: push to {hex64(cr2)})"
    for use in instruction.uses if instruction else ():
        if cr2 is not None and use.va <= cr2 < use.va + use.how.size:
            kind = {Kind.READ: "reads", Kind.WRITE: "writes", Kind.FETCH: "jumps to"}[use.how.kind]
            unsaid = f"{unsaid}; the instruction {kind} {hex64(use.va)}, which CR2 holds: perhaps a #PF there"
            access = {Kind.READ: "read of", Kind.WRITE: "write to", Kind.FETCH: "jump to"}[use.how.kind]
            null = ", a null pointer" if use.va < _NULL_PAGE else ""
            which = f" (perhaps a #PF: {access} {hex64(use.va)}{null})"
            break
    rip = here.registers.rip
    if rip is not None and rip == cr2:
        unsaid = f"{unsaid}; RIP is what CR2 holds: perhaps a jump there raised a #PF"
        which = f" (perhaps a #PF: jump to {hex64(rip)}{', a null pointer' if rip < _NULL_PAGE else ''})"
    if not which:
        finding = replace(finding, confidence="guess")
    if rip is not None and rip != cr2:
        which = f"{which} at RIP {hex64(rip)}"
    why = "the IDT ends before its gate" if finding.rule == "idt-limit" else "its gate cannot be used"
    subject = f"an exception{which} could not be delivered, because {why}"
    return replace(finding, instruction=instruction, remarks=(unsaid,), subject=subject)

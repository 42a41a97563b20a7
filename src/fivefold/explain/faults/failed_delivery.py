"""Why the delivery of one exception ended in another: from memory by replaying it, else by the address.

Without memory CR2 still distinguishes a gate from a push, and the IDT's limit is in every dump.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from fivefold.arch import FETCH, Access, Kind, Vector
from fivefold.explain.faults.delivery import SYSTEM, Obstacle, Route, gate_address, replay
from fivefold.explain.faults.finding import Certainty, FaultFinding
from fivefold.explain.faults.page_fault import FRAME_WORDS
from fivefold.explain.logs.trace import EmulatorReason, RaisedException
from fivefold.explain.rules.error_codes import kind_of, rule_from_code
from fivefold.explain.rules.reserved import with_reserved
from fivefold.explain.rules.ruling import Refusal, RuleName, describe_entry, rule_on
from fivefold.explain.rules.situation import Situation
from fivefold.machine.base import vector_name
from fivefold.units import MASK64, hex64

_RESUMED: Final = frozenset({Vector.DB, Vector.NMI, Vector.NM})
"""Exceptions after which the interrupted instruction is run as if nothing had been."""
SELECTOR_FAULTS: Final = frozenset({Vector.GP, Vector.SS, Vector.NP, Vector.TS})
"""Exceptions that a bad descriptor, selector or address raises; their error code names the selector."""


def explain_delivery(
    here: Situation, before: RaisedException, raised: RaisedException, dialect: str = ""
) -> FaultFinding:
    """Why the delivery of *before* (or of the double fault it became) ended in *raised*."""
    assert raised.during is not None  # it is of a delivery
    inferred: tuple[str, ...] = ()
    if raised.reason is not None and raised.reason.rule in ("idt-limit", "idt-entry"):
        return refused_gate(here, raised.reason, vector_name(raised.during))
    if raised.vector == Vector.PF and raised.cr2 is not None:
        here, inferred = with_reserved(here, raised.cr2, SYSTEM, raised.error_code, dialect)
    finding = _explain(here, raised.during, before, raised)
    return replace(finding, remarks=(*finding.remarks, *inferred))


def _explain(here: Situation, vector: int, before: RaisedException, raised: RaisedException) -> FaultFinding:
    route = replay(here, vector, before.software and vector == before.vector)
    obstacle = route.obstacle
    if obstacle is not None and not obstacle.in_handler and _fits(obstacle, raised):
        return _of_obstacle(here, obstacle, raised)
    if raised.vector == Vector.PF:
        return _page_fault_in_delivery(here, vector, raised, route)
    return _other_in_delivery(here, vector, raised, route)


def refused_gate(here: Situation, reason: EmulatorReason, name: str | None = None) -> FaultFinding:
    """What an emulator says of a gate that it could not use: likely the cause, where that of which is not known."""
    rule: RuleName = "idt-limit" if reason.rule == "idt-limit" else "idt-entry"
    what = "lies beyond the limit of the IDT" if rule == "idt-limit" else "cannot be used"
    sentence = f"the gate of {name or 'an exception'} {what}; the emulator says: {reason.text}"
    return FaultFinding(rule, sentence, "certain" if name else "likely", here)


def is_of_delivery(here: Situation, before: RaisedException, raised: RaisedException) -> bool:
    """Whether *raised*, at the RIP and RSP of *before*, can be of its delivery.

    An interrupt, or a #NM, also returns to where it was raised, and then the instruction there may fault by itself.
    """
    vector = before.vector
    if not (before.external or vector >= 32 or vector in _RESUMED) or before.software:
        return True
    route = replay(here, vector)
    if route.obstacle is not None and not route.obstacle.in_handler:
        return _fits(route.obstacle, raised)
    if raised.vector != Vector.PF:
        return bool(raised.error_code and raised.error_code & 2 and raised.error_code >> 3 == vector)
    gate, va = gate_address(here, vector), raised.cr2
    return va is not None and gate is not None and gate <= va < gate + here.gate_size


def _fits(obstacle: Obstacle, raised: RaisedException) -> bool:
    """Whether the replay's obstacle is what was reported. QEMU reports a non-canonical push as #GP."""
    vectors = {obstacle.vector, int(Vector.GP) if obstacle.vector == Vector.SS else obstacle.vector}
    same_address = raised.cr2 is None or obstacle.va is None or raised.cr2 == obstacle.va
    return raised.vector in vectors and same_address


def _of_obstacle(here: Situation, obstacle: Obstacle, raised: RaisedException) -> FaultFinding:
    remarks: tuple[str, ...] = ()
    if obstacle.vector != raised.vector:
        remarks = (
            f"a CPU raises {vector_name(obstacle.vector)} for it, {vector_name(raised.vector)} was reported: QEMU's "
            "TCG reports a non-canonical push as #GP",
        )
    how = None
    if obstacle.va is not None:
        kind = Kind.WRITE if "pushed" in obstacle.sentence else Kind.READ
        how = replace(FETCH, kind=kind)
    sentence = obstacle.sentence
    if obstacle.culprit is not None and not obstacle.culprit.entry.is_present:
        sentence += f"; the {describe_entry(obstacle.culprit)} is not present"
    return FaultFinding(
        obstacle.rule, sentence, "certain", here, obstacle.va, how, obstacle.culprit, obstacle.steps, remarks=remarks
    )


def _page_fault_in_delivery(here: Situation, vector: int, raised: RaisedException, route: Route) -> FaultFinding:
    """By the address: the gate, a descriptor, the TSS, or the stack."""
    name, va = vector_name(vector), raised.cr2
    if va is None:
        return FaultFinding("unknown", f"a page fault in the delivery of {name}; where is not known", "guess", here)
    gate = gate_address(here, vector)
    code = raised.error_code
    kind = Kind.READ if code is None else kind_of(here, code, va, None)
    if kind is Kind.FETCH:
        sentence = (
            f"an instruction fetch from {hex64(va)} failed, which no delivery makes: perhaps of the handler of {name}, "
            "after it"
        )
        return _placed(here, "unknown", sentence, va, FETCH, "guess", code)
    how = replace(FETCH, kind=kind, implicit=True)
    if gate is not None and gate <= va < gate + here.gate_size:
        sentence = f"the gate of {name} at {hex64(gate)} could not be read"
        return _placed(here, "idt-not-mapped", sentence, va, how, "certain", code)
    rsp = raised.rsp if raised.rsp is not None else here.registers.rsp
    if rsp is not None and 0 < rsp - va <= 8 * FRAME_WORDS + 8:
        ist = "" if route.ist is None else " (the gate names none)" if not route.ist else ""
        sentence = (
            f"the frame could not be pushed to {hex64(va)}, {rsp - va} bytes below RSP: no IST is used{ist}, so the "
            "same stack again"
        )
        return _placed(here, "stack", sentence, va, replace(how, kind=Kind.WRITE, stack=True), "likely", code)
    gdt, tr = here.registers.gdt, here.registers.segments.get("tr")
    if gdt is not None and gdt.limit and 0 <= va - gdt.base <= gdt.limit:
        sentence = f"the descriptor of the handler's code segment at {hex64(va)}, in the GDT, could not be read"
        return _placed(here, "unknown", sentence, va, how, "likely", code)
    if tr is not None and tr.base and 0 <= va - tr.base <= tr.limit:
        sentence = f"the stack pointer in the TSS, at {hex64(va)}, could not be read"
        return _placed(here, "unknown", sentence, va, how, "likely", code)
    sentence = f"an access to {hex64(va)} failed in the delivery of {name}: perhaps a stack that the TSS names"
    return _placed(here, "unknown", sentence, va, how, "guess", code)


def _placed(
    here: Situation, rule: RuleName, sentence: str, va: int, how: Access, confidence: Certainty, code: int | None
) -> FaultFinding:
    """A finding with the walk of its address, if there is memory, which then also gives an unknown rule."""
    ruling = rule_on(here, va, how)
    if isinstance(ruling, Refusal):
        if ruling.culprit is not None:
            sentence += f"; {describe_entry(ruling.culprit)} refused it"
        named = ruling.rule if rule in ("stack", "unknown") else rule
        return FaultFinding(named, sentence, confidence, here, va, how, ruling.culprit, ruling.steps)
    if rule in ("stack", "unknown") and code is not None:
        candidate = rule_from_code(here, code, va, how)
        return FaultFinding(candidate.rule, f"{sentence}; {candidate.reason}", confidence, here, va, how)
    return FaultFinding(rule, sentence, confidence, here, va, how)


def _other_in_delivery(here: Situation, vector: int, raised: RaisedException, route: Route) -> FaultFinding:
    name = vector_name(vector)
    if raised.vector == Vector.NP:
        sentence = f"the gate of {name}, or its code segment, is not present"
        return FaultFinding("idt-entry", sentence, "likely", here)
    rsp, mode = here.registers.rsp, here.mode
    gate = gate_address(here, vector)
    if gate is not None and mode is not None and not mode.is_canonical(gate) and raised.vector == Vector.GP:
        sentence = f"the gate of {name} at {hex64(gate)} could not be read: the address is not canonical"
        return FaultFinding("idt-not-mapped", sentence, "certain", here, gate, SYSTEM)
    if (
        rsp is not None
        and mode is not None
        and not mode.is_canonical(rsp - 8 & MASK64)
        and raised.vector in SELECTOR_FAULTS
    ):
        sentence = f"the frame of {name} could not be pushed: RSP is {hex64(rsp)}, which is not canonical"
        return FaultFinding("non-canonical", sentence, "likely", here, rsp - 8 & MASK64)
    if raised.vector == Vector.GP:
        sentence = f"the gate of {name} lies inside the IDT's limit and could not be used"
        idt, missing = here.registers.idt, (route.missing,) if route.missing else ()
        if idt is None:
            sentence = f"the gate of {name} could not be used; IDTR is not known"
        elif here.has_gate(vector, idt.limit) is None:
            sentence = f"the gate of {name} could not be used; whether it lies inside the IDT's limit is not known"
        return FaultFinding("idt-entry", sentence, "likely", here, remarks=missing)
    sentence = f"{vector_name(raised.vector)} in the delivery of {name}"
    return FaultFinding("unknown", sentence, "guess", here)

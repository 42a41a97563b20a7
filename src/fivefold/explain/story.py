"""The story: each exception in order, why its handler could not run, and which of them is the cause."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Final

from fivefold.arch import Escalation, Kind, TableReader, Vector, escalate
from fivefold.explain.address_area import describe, notable_registers, phys_base_hint
from fivefold.explain.faults.delivery import GATE_SIZE, read_gate
from fivefold.explain.faults.failed_delivery import SELECTOR_FAULTS, explain_delivery, is_of_delivery
from fivefold.explain.faults.finding import Confidence, FaultFinding, instruction_at
from fivefold.explain.faults.general_fault import explain_general_fault
from fivefold.explain.faults.page_fault import FRAME_WORDS, explain_page_fault
from fivefold.explain.logs.trace import Strike, Trace
from fivefold.explain.result import FaultCause, Told
from fivefold.explain.rules.situation import GivenState, Situation, situation
from fivefold.machine.base import vector_name
from fivefold.memory import CpuState
from fivefold.units import MASK64, hex64

_FRAME: Final = "the stack pointer is just below that of the interrupted code, by the frame of the delivery"
_LOW_INTERRUPT: Final = (
    "; vectors below 32 belong to the CPU's exceptions: the interrupt controller still has the base that the firmware "
    "gave it"
)
_ON_THEIR_OWN: Final = frozenset({"#DE", "#DB", "NMI", "#BP", "#OF", "#BR", "#UD", "#NM", "#MF", "#XM"})
"""Exceptions that no refused access leads to, by name."""
_BENIGN: Final = frozenset({Vector.DE, Vector.DB, Vector.NMI, Vector.BP, Vector.OF, Vector.BR, Vector.UD, Vector.NM})


@dataclass
class Story:
    """Tells a trace. *memory* may be None; *given* goes before what the trace says."""

    trace: Trace
    memory: TableReader | None
    given: GivenState
    final: CpuState | None = None
    """Registers of the memory source: those after everything happened."""
    told: list[Told] = field(default_factory=list)
    _last: Situation | None = None

    def tell(self) -> tuple[Told, ...]:
        """Explain every exception, in order."""
        strikes = self.trace.strikes
        for index, strike in enumerate(strikes):
            here = self._situation(strike)
            before = self.told[-1] if self.told else None
            strike = self._with_cr2(strike, index == len(strikes) - 1)
            if before and before.strike.during is None and before.strike.vector == strike.during:
                # The source does not say so: it was joined by RIP and RSP alone.
                strike = strike if is_of_delivery(here, before.strike, strike) else replace(strike, during=None)
            if strike.during is not None and before is not None:
                finding = explain_delivery(here, before.strike, strike, self.trace.dialect)
            elif strike.during is not None:
                finding = _cut_off(here, strike)
            else:
                finding = self._first(here, strike)
            if strike.linked and before is not None:
                finding = _in_handler(finding, before.strike.name, _FRAME)
            elif strike.during is None and (names := _handled_there(finding)):
                finding = _in_handler(finding, names, "the IDT's gates name this address as the handler", "likely")
                if not all(name in _ON_THEIR_OWN or name.startswith("vector") for name in names.split(" or ")):
                    unsaid = f"what raised {names} is not in the source, and may be what went wrong first"
                    finding = replace(finding, confidence="guess", remarks=(*finding.remarks, unsaid))
            self.told.append(self._told(strike, finding))
        self._add_deliveries()
        return tuple(self.told)

    def remarks(self) -> Iterator[str]:
        """What is odd about the source as a whole."""
        delivering = [s for s in self.trace.strikes if s.during is not None and s.rip is not None]
        if any(s.rip != self.trace.strikes[0].rip for s in delivering) and self.trace.strikes[0].rip is not None:
            yield (
                "RIP differs between exceptions of one delivery, where no instruction ran: in such logs it is "
                "brought up to date late; CR2, RSP and the vectors are what counts"
            )

    def _situation(self, strike: Strike) -> Situation:
        """The CPU at this exception; while nothing is delivered its registers do not change."""
        if strike.cpu is None and self._last is not None and (strike.during is not None or self.trace.cpu is None):
            return self._last
        registers = strike.cpu or self.trace.cpu or self.final
        self._last = situation(registers, strike.cpl, self.memory, self.given)
        return self._last

    def _with_cr2(self, strike: Strike, is_last: bool) -> Strike:
        """CR2 of a page fault in a delivery: it has no line of its own, but the next dump shows it."""
        if strike.vector != Vector.PF or strike.cr2 is not None:
            return strike
        cpu = strike.cpu if not is_last or strike.cpu is not None else self.final
        return replace(strike, cr2=cpu.cr2) if cpu is not None else strike

    def _first(self, here: Situation, strike: Strike) -> FaultFinding:
        if strike.software or strike.external or strike.vector >= 32 or strike.vector in _BENIGN:
            return _legitimate(here, strike, self.trace)
        if strike.vector == Vector.PF:
            return explain_page_fault(here, strike, self.trace)
        if strike.vector in SELECTOR_FAULTS:
            return explain_general_fault(here, strike, self.trace)
        if strike.vector == Vector.DF:
            return _double_fault(here, strike)
        sentence = f"{vector_name(strike.vector)}: no rule of paging raises it"
        return FaultFinding("unknown", sentence, "certain", here, legitimate=True)

    def _told(self, strike: Strike, finding: FaultFinding) -> Told:
        va = finding.va if finding.va is not None else strike.cr2
        place = None if va is None else describe(finding.here, va, self.trace.release)
        return Told(strike, finding, place)

    def _add_deliveries(self) -> None:
        """Say of each exception why its handler could not run, or that it did."""
        for index, told in enumerate(self.told):
            after = self.told[index + 1] if index + 1 < len(self.told) else None
            self.told[index] = replace(told, delivery=_delivery(told.strike, after, self.trace))


def _delivery(strike: Strike, after: Told | None, trace: Trace) -> str | None:
    """What became of an exception, in one sentence; why is the next exception's own sentence."""
    name = strike.name
    if after is None:
        if trace.outcome == "triple-fault" and strike.during is not None:
            return "a triple fault: the CPU shuts down"
        return None
    if after.strike.linked:
        return f"{name} was delivered, but its handler did not get past the first instruction"
    during = after.strike.during
    if during is None:
        return f"the handler of {name} ran"
    delivered = name if during == strike.vector else vector_name(during)
    can_double = not strike.external and after.strike.vector != Vector.DF
    if can_double and escalate(during, after.strike.vector) is Escalation.DOUBLE:
        return f"{delivered} could not be delivered: a double fault (#DF) takes its place"
    return f"{delivered} could not be delivered"


def _legitimate(here: Situation, strike: Strike, trace: Trace) -> FaultFinding:
    instruction = instruction_at(here, strike, trace.code)
    name = strike.name
    if strike.external:
        low = _LOW_INTERRUPT if strike.vector < 32 else ""
        return FaultFinding("unknown", f"{name}, from outside{low}", "certain", here, legitimate=True)
    if strike.software or (instruction is not None and instruction.on_purpose):
        how = f"by {instruction.text}" if instruction else "by an instruction for it"
        sentence = f"{name} was raised on purpose, {how}"
    elif strike.vector >= 32 or strike.vector == Vector.NMI:
        sentence = f"an interrupt, {name}"
    else:
        text = f" by {instruction.text}" if instruction else ""
        sentence = f"{name} was raised{text}; no rule of paging is behind it"
    return FaultFinding("unknown", sentence, "certain", here, instruction=instruction, legitimate=True)


def _double_fault(here: Situation, strike: Strike) -> FaultFinding:
    """A double fault with nothing before it: what led to it is not in the source, CR2 may tell."""
    cr2, rsp = here.registers.cr2, here.registers.rsp
    sentence = "a double fault; the exceptions that led to it are not in the source"
    if rsp is not None and here.mode is not None and not here.mode.is_canonical(rsp - 8 & MASK64):
        sentence += f". RSP is {hex64(rsp)}, which is not canonical: no frame can be pushed there"
        return FaultFinding("non-canonical", sentence, "likely", here, rsp - 8 & MASK64)
    if cr2 is not None and rsp is not None and 0 < rsp - cr2 <= 8 * FRAME_WORDS + 4096:
        sentence += f". CR2 is {rsp - cr2} bytes below RSP: the stack ran out"
        fault = replace(strike, vector=int(Vector.PF), error_code=None, cr2=cr2)
        inner = explain_page_fault(here, fault, Trace("", ""))
        return replace(inner, sentence=f"{sentence}; {inner.sentence}", confidence="likely")
    return FaultFinding("unknown", sentence, "guess", here)


def _cut_off(here: Situation, strike: Strike) -> FaultFinding:
    """The source begins in the middle of a delivery: what was being delivered is known, why it struck is not."""
    before = Strike(strike.during or 0, rip=strike.rip, rsp=strike.rsp, cpl=strike.cpl, cpu=strike.cpu)
    finding = explain_delivery(here, before, strike)
    remark = f"the source begins while {vector_name(before.vector)} is being delivered: what raised that is not known"
    return replace(finding, remarks=(*finding.remarks, remark))


def _in_handler(finding: FaultFinding, name: str, remark: str, confidence: Confidence | None = None) -> FaultFinding:
    """A fetch that failed at the first instruction of the handler of *name*, as *remark* says."""
    if finding.how is None or finding.how.kind is not Kind.FETCH:
        return finding
    if finding.rule == "non-canonical" and finding.va is not None:
        # A CPU looks at the address before it leaves the interrupted code; QEMU finds out by going there.
        sentence = f"the gate of {name} leads to {hex64(finding.va)}, which is not canonical"
        return replace(finding, rule="idt-entry", sentence=sentence, va=None, how=None)
    sentence = f"the handler of {name} could not be fetched: {finding.sentence}"
    return replace(
        finding,
        rule="handler-not-mapped",
        sentence=sentence,
        confidence=confidence or finding.confidence,
        remarks=(*finding.remarks, remark),
    )


def _handled_there(finding: FaultFinding) -> str | None:
    """The exceptions whose gates lead to the address that could not be fetched, None if there are none."""
    here = finding.here
    idt = here.registers.idt
    if here.space is None or idt is None or finding.va is None or finding.how is None:
        return None
    if finding.how.kind is not Kind.FETCH:
        return None
    names = []
    for vector in range(min(256, (idt.limit + 1) // GATE_SIZE)):
        gate = read_gate(here, vector)
        if gate is not None and gate.present and gate.offset == finding.va:
            names.append(vector_name(vector))
    return " or ".join(names) if 0 < len(names) <= 4 else "an exception" if names else None


# -- the cause -------------------------------------------------------------------------------


def find_cause(told: tuple[Told, ...], trace: Trace) -> FaultCause:
    """The first thing that went wrong: the first exception that was not legitimate, or what stopped one that was."""
    for one in told:
        if one.finding.legitimate:
            continue
        return _cause_of(one, trace)
    if told:
        sentence = f"{told[-1].finding.sentence}; nothing shows that its handler did not run"
        return FaultCause("unknown", None, None, None, sentence, "guess")
    sentence = "no exception in the source, and nothing in registers or memory that would raise one"
    return FaultCause("unknown", None, None, None, sentence, "guess")


def _cause_of(told: Told, trace: Trace) -> FaultCause:
    finding = told.finding
    evidence = list(dict.fromkeys(_evidence(told)))
    if trace.outcome == "handled" and told.strike.during is None:
        evidence.append("its handler was entered, so it may be meant")
    confidence = finding.confidence
    if trace.inferred and confidence == "certain":
        # What registers and memory lead to is not yet what happened.
        confidence = "likely"
    if trace.inferred and told.strike.during is None and finding.instruction is None and finding.va != told.strike.rip:
        evidence.append("the memory does not hold the instruction at RIP; CR2 may be that of an older page fault")
        confidence = "guess"
    return FaultCause(
        finding.rule,
        finding.level,
        finding.va,
        told.place.area if told.place and finding.va is not None else None,
        finding.sentence,
        confidence,
        tuple(evidence),
    )


def _evidence(told: Told) -> Iterator[str]:
    finding, strike = told.finding, told.strike
    if finding.instruction is not None:
        at = finding.instruction.at
        yield f"the instruction{'' if at is None else f' at {hex64(at)}'} is {finding.instruction.text}"
    if finding.agrees and strike.error_code is not None and not any("where a CPU gives" in r for r in finding.remarks):
        yield f"the error code {strike.error_code:#x} is the one that the tables give"
    if told.place is not None:
        yield told.place.sentence
    yield from finding.remarks
    yield from notable_registers(finding.here)
    if finding.va is not None and (hint := phys_base_hint(finding.here, finding.va)):
        yield hint
    if strike.repeats > 1:
        yield _repeats(strike)


def _repeats(strike: Strike) -> str:
    text = f"the same exception struck {strike.repeats} times in a row"
    if strike.rsp is not None and strike.last_rsp is not None and strike.last_rsp < strike.rsp:
        return f"{text}, each lower on the stack than the one before: a runaway recursion"
    return text

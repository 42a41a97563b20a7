"""The story: each exception in order, why its handler could not run, and which of them is the cause."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Final

from fivefold.arch import Escalation, Kind, TableReader, Vector, escalate
from fivefold.explain.address_area import describe
from fivefold.explain.area_names import AreaNames
from fivefold.explain.faults.control_protection import control_protection
from fivefold.explain.faults.delivery import GATE_SIZE, read_gate
from fivefold.explain.faults.failed_delivery import SELECTOR_FAULTS, explain_delivery, is_of_delivery
from fivefold.explain.faults.finding import Certainty, FaultFinding, instruction_at
from fivefold.explain.faults.general_fault import explain_general_fault
from fivefold.explain.faults.page_fault import FRAME_WORDS, explain_page_fault
from fivefold.explain.faults.suspicious_state import root_outside
from fivefold.explain.logs.trace import Levels, RaisedException, Trace
from fivefold.explain.result import ExplainedException
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
    names: AreaNames = field(default_factory=AreaNames)
    levels: Levels | None = None
    """What the trace proves of the number of levels without CR4."""
    explained: list[ExplainedException] = field(default_factory=list)
    _last: Situation | None = None

    def explain_all(self) -> tuple[ExplainedException, ...]:
        """Explain every exception, in order."""
        exceptions = self.trace.exceptions
        for index, raised in enumerate(exceptions):
            here = self._situation(raised)
            if not index and self.trace.vm_exit and (found := root_outside(here, self.trace.vm_exit)) is not None:
                # The hypervisor stopped in this access; nothing that it was delivering comes before it.
                self.explained.append(self._explained(raised, found))
                continue
            before = self.explained[-1] if self.explained else None
            raised = self._with_cr2(raised, index == len(exceptions) - 1)
            if before and before.raised.during is None and before.raised.vector == raised.during:
                # The source does not say so: it was joined by RIP and RSP alone.
                raised = raised if is_of_delivery(here, before.raised, raised) else replace(raised, during=None)
            if raised.during is not None and before is not None:
                finding = explain_delivery(here, before.raised, raised, self.trace.dialect)
            elif raised.during is not None:
                finding = _cut_off(here, raised)
            else:
                finding = self._first(here, raised)
            if raised.linked and before is not None:
                finding = _in_handler(finding, before.raised.name, _FRAME)
            elif raised.during is None and (names := _handled_there(finding)):
                finding = _in_handler(finding, names, "the IDT's gates name this address as the handler", "likely")
                if not all(name in _ON_THEIR_OWN or name.startswith("vector") for name in names.split(" or ")):
                    unsaid = f"what raised {names} is not in the source, and may be what went wrong first"
                    finding = replace(finding, confidence="guess", remarks=(*finding.remarks, unsaid))
            self.explained.append(self._explained(raised, finding))
        self._add_deliveries()
        return tuple(self.explained)

    def remarks(self) -> Iterator[str]:
        """What is odd about the source as a whole."""
        delivering = [s for s in self.trace.exceptions if s.during is not None and s.rip is not None]
        if any(s.rip != self.trace.exceptions[0].rip for s in delivering) and self.trace.exceptions[0].rip is not None:
            yield (
                "RIP differs between exceptions of one delivery, where no instruction ran: in such logs it is "
                "brought up to date late; CR2, RSP and the vectors are what counts"
            )

    def _situation(self, raised: RaisedException) -> Situation:
        """The CPU at this exception; while nothing is delivered its registers do not change."""
        if raised.cpu is None and self._last is not None and (raised.during is not None or self.trace.cpu is None):
            return self._last
        registers = raised.cpu or self.trace.cpu or self.final
        self._last = situation(registers, raised.cpl, self.memory, self.given, self.levels)
        return self._last

    def _with_cr2(self, raised: RaisedException, is_last: bool) -> RaisedException:
        """CR2 of a page fault in a delivery: it has no line of its own, but the next dump shows it."""
        if raised.vector != Vector.PF or raised.cr2 is not None:
            return raised
        cpu = raised.cpu if not is_last or raised.cpu is not None else self.final
        return replace(raised, cr2=cpu.cr2) if cpu is not None else raised

    def _first(self, here: Situation, raised: RaisedException) -> FaultFinding:
        if raised.software or raised.external or raised.vector >= 32 or raised.vector in _BENIGN:
            return _legitimate(here, raised, self.trace)
        if raised.vector == Vector.PF:
            return explain_page_fault(here, raised, self.trace)
        if raised.vector in SELECTOR_FAULTS:
            return explain_general_fault(here, raised, self.trace)
        if raised.vector == Vector.DF:
            return _double_fault(here, raised)
        if raised.vector == Vector.CP:
            return control_protection(here, raised)
        if raised.says is not None:
            return _legitimate(here, raised, self.trace)
        sentence = f"{vector_name(raised.vector)}: no rule of paging raises it"
        return FaultFinding("unknown", sentence, "certain", here, legitimate=True)

    def _explained(self, raised: RaisedException, finding: FaultFinding) -> ExplainedException:
        va = finding.va if finding.va is not None else raised.cr2
        place = None if va is None else describe(finding.here, va, self.names)
        return ExplainedException(raised, finding, place)

    def _add_deliveries(self) -> None:
        """Say of each exception why its handler could not run, or that it did."""
        for index, explained in enumerate(self.explained):
            after = self.explained[index + 1] if index + 1 < len(self.explained) else None
            delivery = _delivery(explained.raised, after, self.trace) or _no_gate(explained, after, self.trace)
            self.explained[index] = replace(explained, delivery=delivery)


def _delivery(raised: RaisedException, after: ExplainedException | None, trace: Trace) -> str | None:
    """What became of an exception, in one sentence; why is the next exception's own sentence."""
    name = raised.name
    if after is None:
        if trace.outcome == "triple-fault" and raised.during is not None:
            return "a triple fault: the CPU shuts down"
        return None
    if after.raised.linked:
        return f"{name} was delivered, but its handler did not get past the first instruction"
    during = after.raised.during
    if during is None:
        return f"the handler of {name} ran"
    delivered = name if during == raised.vector else vector_name(during)
    can_double = not raised.external and after.raised.vector != Vector.DF
    if can_double and escalate(during, after.raised.vector) is Escalation.DOUBLE:
        return f"{delivered} could not be delivered: a double fault (#DF) takes its place"
    return f"{delivered} could not be delivered"


def _no_gate(explained: ExplainedException, after: ExplainedException | None, trace: Trace) -> str | None:
    """What follows where a log ends with an exception that has no gate in the IDT."""
    here, vector = explained.finding.here, explained.raised.vector
    idt = here.registers.idt
    if after is not None or trace.outcome != "unknown" or idt is None or here.has_gate(vector, idt.limit) is not False:
        return None
    return (
        f"the log ends here; the IDT's limit is {idt.limit:#x}, and the gate of {vector_name(vector)} lies beyond it, "
        "so it cannot be delivered, nor can what follows: most likely a triple fault"
    )


def _legitimate(here: Situation, raised: RaisedException, trace: Trace) -> FaultFinding:
    instruction = instruction_at(here, raised, trace.code)
    name = raised.name
    if raised.says is not None:
        return FaultFinding("unknown", raised.says, "certain", here, legitimate=True)
    if raised.external:
        low = _LOW_INTERRUPT if raised.vector < 32 else ""
        return FaultFinding("unknown", f"{name}, from outside{low}", "certain", here, legitimate=True)
    if raised.software or (instruction is not None and instruction.on_purpose):
        how = f"by {instruction.text}" if instruction else "by an instruction for it"
        sentence = f"{name} was raised on purpose, {how}"
    elif raised.vector >= 32 or raised.vector == Vector.NMI:
        sentence = f"an interrupt, {name}"
    else:
        text = f" by {instruction.text}" if instruction else ""
        sentence = f"{name} was raised{text}; no rule of paging is behind it"
    return FaultFinding("unknown", sentence, "certain", here, instruction=instruction, legitimate=True)


def _double_fault(here: Situation, raised: RaisedException) -> FaultFinding:
    """A double fault with nothing before it: what led to it is not in the source, and CR2 may show it."""
    cr2, rsp = here.registers.cr2, here.registers.rsp
    sentence = "a double fault; the exceptions that led to it are not in the source"
    if rsp is not None and here.mode is not None and not here.mode.is_canonical(rsp - 8 & MASK64):
        sentence += f". RSP is {hex64(rsp)}, which is not canonical: no frame can be pushed there"
        subject = f"stack pointer {hex64(rsp)}, which is not canonical,"
        return FaultFinding("non-canonical", sentence, "likely", here, rsp - 8 & MASK64, subject=subject)
    if cr2 is not None and rsp is not None and 0 < rsp - cr2 <= 8 * FRAME_WORDS + 4096:
        sentence += f". CR2 is {rsp - cr2} bytes below RSP: the stack ran out"
        fault = replace(raised, vector=int(Vector.PF), error_code=None, cr2=cr2)
        inner = explain_page_fault(here, fault, Trace("", ""))
        return replace(inner, sentence=f"{sentence}; {inner.sentence}", confidence="likely")
    return FaultFinding("unknown", sentence, "guess", here)


def _cut_off(here: Situation, raised: RaisedException) -> FaultFinding:
    """The source begins in the middle of a delivery: what was being delivered is known, why it was raised is not."""
    before = RaisedException(raised.during or 0, rip=raised.rip, rsp=raised.rsp, cpl=raised.cpl, cpu=raised.cpu)
    finding = explain_delivery(here, before, raised)
    remark = f"the source begins while {vector_name(before.vector)} is being delivered: what raised that is not known"
    return replace(finding, confidence="guess", remarks=(*finding.remarks, remark))


def _in_handler(finding: FaultFinding, name: str, remark: str, confidence: Certainty | None = None) -> FaultFinding:
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

"""Which exception is the cause, and what speaks for it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Final

from fivefold.explain.address_area import notable_registers, phys_base_hint
from fivefold.explain.faults.finding import FaultFinding
from fivefold.explain.logs.trace import RaisedException, Trace
from fivefold.explain.result import ExplainedException, FaultCause
from fivefold.explain.rules.ruling import RuleName
from fivefold.units import hex64

DELIVERY_RULES: Final[frozenset[RuleName]] = frozenset({"idt-limit", "idt-entry", "idt-not-mapped"})
"""Rules that stop the delivery of any exception, whatever raised it."""


def guilty_of(explained: Sequence[ExplainedException]) -> ExplainedException | None:
    """The first exception that was not raised on purpose, or what stopped it if it is not known itself.

    None where every one was raised on purpose.
    """
    suspects = [one for one in explained if not one.finding.legitimate]
    first = next(iter(suspects), None)
    if first is None or first.finding.rule != "unknown" or first.finding.confidence != "guess":
        return first
    stopped = (one for one in suspects[1:] if one.raised.during is not None and one.finding.rule in DELIVERY_RULES)
    return next(stopped, first)


def blamed(explained: Sequence[ExplainedException], trace: Trace) -> ExplainedException | None:
    """The exception of `guilty_of`, but None where nothing is known of it and the source says more by itself."""
    guilty = guilty_of(explained)
    if guilty is None or trace.says is None:
        return guilty
    finding = guilty.finding
    return None if finding.rule == "unknown" and finding.confidence == "guess" else guilty


def find_cause(
    explained: tuple[ExplainedException, ...], trace: Trace, suspicion: FaultFinding | None = None
) -> FaultCause:
    """The first thing that went wrong: the exception of `guilty_of`, or else *suspicion*, what registers look like."""
    guilty = blamed(explained, trace)
    if guilty is not None:
        cause = _cause_of(guilty, trace)
        first = next(one for one in explained if not one.finding.legitimate)
        if guilty is first:
            return cause
        lost = f"what raised {first.name} first is not known, and may be what went wrong"
        return replace(cause, confidence="guess", evidence=(*cause.evidence, lost))
    if explained and trace.says is None:
        sentence = explained[-1].finding.sentence
        if trace.outcome == "unknown":
            sentence += "; nothing shows that its handler did not run"
        return FaultCause("unknown", None, None, None, sentence, "guess")
    sentence = trace.says or "no exception in the source, and nothing in registers or memory that would raise one"
    if suspicion is not None:
        return FaultCause(suspicion.rule, suspicion.level, None, None, suspicion.sentence, "guess", suspicion.remarks)
    return FaultCause("unknown", None, None, None, sentence, "guess")


def _cause_of(explained: ExplainedException, trace: Trace) -> FaultCause:
    finding = explained.finding
    evidence = list(dict.fromkeys(_evidence(explained)))
    if trace.outcome == "handled" and explained.raised.during is None and trace.dialect != "Linux oops":
        evidence.append("its handler was entered, so it may be intended")
    confidence = finding.confidence
    if (trace.inferred or trace.truncated) and confidence == "certain":
        # What registers and memory lead to is not yet what happened, and what is lost may have come first.
        confidence = "likely"
    if (
        trace.inferred
        and explained.raised.during is None
        and finding.instruction is None
        and finding.va != explained.raised.rip
    ):
        which = "no memory shows" if finding.here.memory is None else "the memory does not hold"
        evidence.append(f"{which} the instruction at RIP; CR2 may be that of an older page fault")
        confidence = "guess"
    return FaultCause(
        finding.rule,
        finding.level,
        finding.va,
        explained.place.area if explained.place and finding.va is not None else None,
        finding.sentence,
        confidence,
        tuple(evidence),
    )


def _evidence(explained: ExplainedException) -> Iterator[str]:
    finding, raised = explained.finding, explained.raised
    if finding.instruction is not None:
        at = finding.instruction.at
        yield f"the instruction{'' if at is None else f' at {hex64(at)}'} is {finding.instruction.text}"
    if (
        finding.agrees
        and raised.error_code is not None
        and not any("where a CPU gives" in r or "RSVD with P clear" in r for r in finding.remarks)
    ):
        yield f"the error code {raised.error_code:#x} is the one that the tables give"
    if explained.place is not None:
        yield explained.place.sentence
    yield from finding.remarks
    yield from notable_registers(finding.here)
    if finding.va is not None and (hint := phys_base_hint(finding.here, finding.va)):
        yield hint
    if raised.repeats > 1:
        yield _repeats(raised)


def _repeats(raised: RaisedException) -> str:
    text = f"the same exception was raised {raised.repeats} times in a row"
    if raised.rsp is not None and raised.last_rsp is not None and raised.last_rsp < raised.rsp:
        return f"{text}, each lower on the stack than the one before: a runaway recursion"
    return text

"""The first line of a report: what happened, where, and why, as one says it to a colleague."""

from __future__ import annotations

import re
from typing import Final

from fivefold.arch import Kind, Vector
from fivefold.explain.faults.finding import FaultFinding
from fivefold.explain.logs.trace import Outcome, RaisedException, Trace
from fivefold.explain.result import ExplainedException, FaultCause
from fivefold.explain.rules.ruling import RuleName
from fivefold.units import hex64

_OUTCOMES: Final[dict[Outcome, str]] = {
    "triple-fault": "Triple fault",
    "double-fault": "Double fault",
    "emulation-failure": "The hypervisor gave up",
    "reset": "CPU reset",
}
_VERBS: Final = {Kind.READ: "read", Kind.WRITE: "write", Kind.FETCH: "jump"}
_PREPOSITIONS: Final = {"read": "of", "pop": "from"}
_PHRASES: Final[dict[RuleName, str]] = {
    "not-present": "which is not mapped",
    "reserved-bit": "through an entry with a reserved bit set",
    "write-protected": "a page that is read-only",
    "no-execute": "a page that forbids execution",
    "user-supervisor": "a page of the kernel, from user mode",
    "smep": "a user page, which SMEP keeps from the kernel",
    "smap": "a user page, which SMAP keeps from the kernel",
    "protection-key": "which its protection key forbids",
    "lass": "in the half that LASS keeps from this code",
    "address-tag": "an address with a tag that is not ignored",
    "non-canonical": "which is not canonical",
    "stack": "which failed",
    "table-outside-memory": "through a table where there is no memory",
}
"""What is said of the access, by rule."""

_NOUNS: Final = ("double fault", "general protection fault", "page fault")
_WHOLE: Final[dict[RuleName, str]] = {
    "wrong-depth": "the root in CR3 is not of the depth that CR4.LA57 selects{where}",
    "idt-limit": "an exception{where} could not be delivered: the IDT ends before its gate",
    "idt-entry": "an exception{where} could not be delivered: its gate cannot be used",
    "idt-not-mapped": "an exception{where} could not be delivered: the IDT is not mapped",
    "handler-not-mapped": "the handler of an exception{where} cannot be fetched",
}
_TRIPLE: Final = "the guest had a triple fault; "


def headline(cause: FaultCause, guilty: ExplainedException | None, trace: Trace) -> str:
    """One sentence without a full stop. *guilty* is the exception of the cause, None where there is none."""
    outcome = _OUTCOMES.get(trace.outcome)
    if outcome is None and guilty is not None and guilty.raised.vector == Vector.DF and cause.rule != "unknown":
        outcome = "Double fault"
    if guilty is None:
        text, at = _whole_report(cause.sentence, trace)
        outcome = f"{outcome}{at}" if outcome else None
    else:
        text = f"{_what(guilty)}{_why(cause, guilty.finding)}"
    return f"{outcome}: {text}" if outcome else text[0].upper() + text[1:]


def _whole_report(sentence: str, trace: Trace) -> tuple[str, str]:
    """What is said where no exception is to blame, and where, if that goes with the outcome."""
    if sentence.startswith(_TRIPLE):
        rip = trace.cpu.rip if trace.cpu is not None else None
        return sentence.removeprefix(_TRIPLE), "" if rip is None else f" at RIP {hex64(rip)}"
    if trace.exceptions and trace.says is None:
        where = _where(trace.exceptions[-1])
        return re.sub(r"^(\S+ was raised|#\w+(?=:))", rf"\g<1>{where}", sentence), ""
    return sentence, ""


def _what(guilty: ExplainedException) -> str:
    finding = guilty.finding
    if finding.subject is not None:
        return f"{_subject(finding)}{_where(guilty.raised)}"
    where = _where(guilty.raised, finding)
    if finding.rule in _WHOLE:
        return _WHOLE[finding.rule].format(where=where)
    phrase = _PHRASES.get(finding.rule)
    if phrase is None or (finding.rule == "table-outside-memory" and finding.va is None):
        return _told(guilty.name, where, finding.sentence)
    return f"{_access(guilty)}{where}, {phrase}"


def _told(name: str, where: str, sentence: str) -> str:
    """A sentence with the place in it, and with the exception's name where it does not begin with that."""
    if sentence.startswith(name):
        head, _, rest = sentence.partition(": ")
        return f"{head}{where}: {rest}" if rest else f"{sentence}{where}"
    for noun in _NOUNS:
        if sentence.startswith(f"a {noun}"):
            return f"{noun} ({name}){where}{sentence[len(noun) + 2 :]}"
    return f"{name}{where}: {sentence}"


def _subject(finding: FaultFinding) -> str:
    """A fault that has a name of its own."""
    if finding.subject == "null pointer" and finding.va is not None:
        verb = _VERBS[finding.how.kind] if finding.how else "access"
        if finding.va >> 12:
            return "null pointer dereference, found by KASAN"
        return f"null pointer dereference: {verb} at offset {finding.va:#x}"
    if finding.subject == "error value used as a pointer" and finding.va is not None:
        return f"error value used as a pointer, {hex64(finding.va)}"
    return finding.subject or ""


def _access(guilty: ExplainedException) -> str:
    finding, va = guilty.finding, guilty.address
    verb = _VERBS[finding.how.kind] if finding.how else "access"
    if finding.use is not None and finding.use.moves_stack:
        verb = "push" if finding.use.how.kind is Kind.WRITE else "pop"
    if finding.rule == "stack":
        verb = "push"
    if va is None:
        return f"{verb} {_PREPOSITIONS.get(verb, 'to')} an unknown address"
    rsp = guilty.raised.rsp
    below = f" ({rsp - va} bytes below RSP)" if verb == "push" and rsp is not None and 0 < rsp - va <= 64 else ""
    return f"{verb} {_PREPOSITIONS.get(verb, 'to')} {hex64(va)}{below}"


def _where(raised: RaisedException, finding: FaultFinding | None = None) -> str:
    if raised.symbol is not None:
        return f" in {raised.symbol}"
    rip = raised.rip
    if rip is None and finding is not None and finding.instruction is not None:
        rip = finding.instruction.at
    return f" at RIP {hex64(rip)}" if rip is not None and raised.cr2 != rip else ""


def _why(cause: FaultCause, finding: FaultFinding) -> str:
    """The entry to blame, and how sure that is."""
    culprit = finding.culprit
    if culprit is not None:
        value = "empty" if not culprit.entry.raw else f"{culprit.entry.raw:#x}"
        return f"; its {culprit.entry.level.name} entry is {value}{_doubt(cause)}"
    if finding.level is not None and finding.va is not None:
        said = "is not present" if finding.rule == "not-present" else "refused it"
        return f"; its {finding.level.name} entry {said}{_doubt(cause)}"
    return _doubt(cause) if cause.rule != "unknown" else ""


def _doubt(cause: FaultCause) -> str:
    return "" if cause.confidence == "certain" else f" ({cause.confidence})"

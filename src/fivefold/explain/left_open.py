"""What the source leaves open, as far as it can matter for the answer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from fivefold.arch import Kind, Vector
from fivefold.explain.faults.finding import FaultFinding
from fivefold.explain.logs.trace import Trace
from fivefold.explain.result import ExplainedException
from fivefold.explain.rules.instruction import can_decode
from fivefold.explain.rules.ruling import RuleName
from fivefold.explain.rules.situation import Situation

_BY_CR0: Final[frozenset[RuleName]] = frozenset({"write-protected", "smap", "mode-change-refused", "wrong-depth"})
_BY_CR4: Final[frozenset[RuleName]] = frozenset(
    {"smep", "smap", "no-execute", "write-protected", "protection-key", "lass", "mode-change-refused", "wrong-depth"}
)
_BY_EFER: Final[frozenset[RuleName]] = frozenset({"no-execute", "smep", "reserved-bit", "mode-change-refused"})
_WIDE_BIT: Final = 36


def left_open(
    here: Situation, explained: Sequence[ExplainedException], guilty: ExplainedException | None, trace: Trace
) -> tuple[str, ...]:
    """Sentences: assumptions on which the answer turns, what is not there, what was not believed."""
    return tuple(dict.fromkeys(_sentences(here, explained, guilty, trace)))


def _sentences(
    here: Situation, explained: Sequence[ExplainedException], guilty: ExplainedException | None, trace: Trace
) -> Iterator[str]:
    for name, text in here.assumed.items():
        if _matters(name, here, explained, guilty.finding if guilty else None):
            yield text
    if here.memory is None:
        yield "there is no memory: the levels of the walk, the instruction and the handlers are not known"
    if any(one.raised.code is not None for one in explained) and not can_decode():
        yield "the instruction was not decoded: that needs the installed tool, with capstone"
    if trace.truncated:
        yield "the source begins in the middle: what was raised first is not in it"
    if not trace.exceptions:
        yield "no exception is in the source"
    for one in explained:
        yield from one.raised.dropped
    yield from trace.unknown
    for one in explained:
        raised = one.raised
        if guilty is not None and raised.error_code is None and raised.vector == Vector.PF and raised.during is None:
            yield "the error code of the page fault is not in the source"


def _matters(name: str, here: Situation, explained: Sequence[ExplainedException], finding: FaultFinding | None) -> bool:
    """Whether another value of what was assumed could change the answer."""
    if name == "phys_bits":
        return any(_is_high(one) for one in explained)
    if name == "cr4" and here.mode is None:
        return True
    if (name == "cr4" and not here.known_mode) or (name == "efer" and here.may_be_long):
        return True
    if finding is None:
        return False
    rule, kind = finding.rule, finding.how.kind if finding.how else None
    if rule == "unknown":
        return (
            finding.va is not None and (name != "efer" or kind is Kind.FETCH) and (name != "cr0" or kind is Kind.WRITE)
        )
    return rule in {"cr0": _BY_CR0, "cr4": _BY_CR4, "efer": _BY_EFER}.get(name, frozenset())


def _is_high(one: ExplainedException) -> bool:
    """Whether some entry on the path has an address that a narrower physical width would reserve."""
    return any(step.entry.raw & ((1 << 52) - 1) >> _WIDE_BIT << _WIDE_BIT for step in one.finding.steps)

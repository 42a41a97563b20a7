"""What an address says by itself: null pointers, error values used as pointers, guard pages, hashes."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from fivefold.arch import Access, Kind, PageFault
from fivefold.explain.faults.finding import FaultFinding
from fivefold.explain.logs.trace import RaisedException
from fivefold.explain.rules.error_codes import beyond_tables
from fivefold.explain.rules.situation import Situation
from fivefold.units import hex64

NULL_PAGE: Final = 0x1000
"""The first page is never mapped: a pointer into it is a null pointer and the offset of a member."""

_ERRORS: Final = 4095
"""Linux returns error numbers as pointers, from -4095 on."""


def is_null(va: int) -> bool:
    """Whether *va* is a null pointer, or the member of a structure at one."""
    return va < NULL_PAGE


def with_pointer(finding: FaultFinding, raised: RaisedException) -> FaultFinding:
    """*finding* with what its address is, where that is more telling than the entry that refused it."""
    va = finding.va
    if va is None or finding.rule not in ("not-present", "unknown", "smap", "smep", "user-supervisor", "stack"):
        return finding
    if finding.use is not None and finding.use.is_of_stack:
        return _lost_stack(finding, va, raised)
    if raised.guard:
        return finding
    if is_null(va):
        return _null(finding, va)
    negative = (1 << 64) - va
    if negative <= _ERRORS:
        words = (
            f"{hex64(va)} is {-negative} as a signed number: an error value used as a pointer, or a member before a "
            "null pointer"
        )
        return replace(
            finding, subject="error value used as a pointer", remarks=(words, *finding.remarks),
            advice=("a check with IS_ERR, or for NULL, before the pointer is used",),
        )  # fmt: skip
    return finding


def _lost_stack(finding: FaultFinding, va: int, raised: RaisedException) -> FaultFinding:
    """A stack of the kernel in the lower half: RSP is wrong, and no page is missing."""
    rip = finding.here.registers.rip
    has_memory = finding.here.memory is not None and not raised.entries
    if va >> 63 or rip is None or not rip >> 63 or finding.here.state.cpl or has_memory:
        return finding
    words = "RSP is in the lower half while the code is in the upper one: its upper half was lost, or it was never set"
    return replace(finding, remarks=(words, *finding.remarks), advice=("an RSP that points to a stack of the kernel",))


def _null(finding: FaultFinding, va: int) -> FaultFinding:
    if finding.how is not None and finding.how.kind is Kind.FETCH:
        where = "a jump through a null pointer" if not va else f"a jump to {va:#x}: a null pointer and an offset"
        return replace(
            finding, sentence=f"{finding.sentence}; it is {where}", subject="jump through a null pointer",
            advice=("a function pointer that is set before it is called",),
        )  # fmt: skip
    what = "a null pointer" if not va else f"a null pointer with offset {va:#x}, likely that of a member"
    return replace(
        finding, sentence=f"{finding.sentence}; the address is {what}", subject="null pointer",
        advice=("a pointer that is set, or a check for NULL before it is used",),
    )  # fmt: skip


def guard_page(finding: FaultFinding, raised: RaisedException, spelled: str) -> FaultFinding:
    """A stack that ran into its guard page, as the kernel says."""
    sentence = f"{spelled} was refused: it is the guard page below a stack, as the kernel says, which is never mapped"
    return replace(finding, sentence=sentence, subject="stack overflow", advice=_SMALLER_STACK)


_SMALLER_STACK: Final = ("less stack: fewer calls in one another, or smaller variables; the guard page stays unmapped",)


def without_address(here: Situation, raised: RaisedException) -> FaultFinding:
    """What can be said of a page fault whose address the source does not have."""
    if raised.guard:
        sentence = "a stack ran into its guard page, which is never mapped"
        if raised.hashed:
            sentence += "; its address is printed as a hash, and so not known"
        return FaultFinding("not-present", sentence, "likely", here, subject="stack overflow", advice=_SMALLER_STACK)
    kinds = {Kind.READ: "a read", Kind.WRITE: "a write", Kind.FETCH: "an instruction fetch", None: "an access"}
    kind = raised.kind
    code = raised.error_code
    if code is not None and code & (PageFault.W | PageFault.I):
        kind = Kind.WRITE if code & PageFault.W else Kind.FETCH
    if code is not None and (other := beyond_tables(code)) is not None:
        return FaultFinding(other.rule, f"{kinds[kind]} was refused: {other.reason}", "certain", here)
    if code is not None and not code & 1 and not code & 8:
        sentence = f"{kinds[kind]} was refused: the error code has P clear; the address is not known"
        return FaultFinding("not-present", sentence, "likely", here, how=Access(kind) if kind else None)
    if code is not None and code & 8 and code & 1:
        sentence = f"{kinds[kind]} was refused: the error code has RSVD; the address is not known"
        return FaultFinding("reserved-bit", sentence, "likely", here)
    return FaultFinding("unknown", "a page fault whose address the source does not give", "guess", here)

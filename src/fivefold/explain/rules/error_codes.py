"""Error codes: what their bits say, and which rules they leave over when there are no tables to ask."""

from __future__ import annotations

from typing import Final, NamedTuple

from fivefold.arch import Access, Cr4, Kind, PageFault, Vector
from fivefold.explain.rules.ruling import RuleName
from fivefold.explain.rules.situation import Situation
from fivefold.machine.base import vector_name

_BITS: Final = (
    (PageFault.P, "P: a present translation", "P clear: not present"),
    (PageFault.W, "W: a write", "W clear: a read or fetch"),
    (PageFault.U, "U: user mode", "U clear: supervisor mode"),
    (PageFault.RSVD, "RSVD: a reserved bit", ""),
    (PageFault.I, "I: an instruction fetch", ""),
    (PageFault.PK, "PK: a protection key", ""),
    (PageFault.SS, "SS: a shadow-stack access", ""),
    (PageFault.HLAT, "HLAT: in HLAT paging", ""),
    (PageFault.SGX, "SGX: an SGX rule", ""),
    (PageFault.RMP, "RMP: AMD's reverse map", ""),
)


class Candidate(NamedTuple):
    """A rule that fits an error code, and why. *certain*: no other one fits."""

    rule: RuleName
    reason: str
    certain: bool
    guess: bool = False
    """It turns on a register that is not known."""


def gate_vectors(code: int, by_tcg: bool) -> tuple[int, ...]:
    """The vectors whose gate an error code with IDT (bit 1) may name: more than one only where QEMU's TCG made it.

    Until 8.0 TCG gives ``vector * 16 + 2`` in long mode, where a CPU gives ``vector * 8 + 2``.
    """
    plain, by_sixteen = code >> 3 & 0xFF, code >> 4 & 0xFF
    return (by_sixteen, plain) if by_tcg and code & 0xD == 0 and by_sixteen != plain else (plain,)


def decode_error(vector: int, code: int, by_tcg: bool = False) -> tuple[str, ...]:
    """The bits of an error code in words, lowest first. *by_tcg*: QEMU's TCG made it."""
    if vector == Vector.PF:
        words = [on if code & bit else off for bit, on, off in _BITS]
        unknown = code & ~int(sum(bit for bit, _, _ in _BITS))
        return (*filter(None, words), *([f"unknown bits {unknown:#x}"] if unknown else []))
    if not code:
        return ("0: no selector is involved",)
    vectors = gate_vectors(code, by_tcg) if code & 2 else ()
    if len(vectors) > 1:
        tcg, plain = (vector_name(one) for one in vectors)
        return (f"the gate of {tcg} as QEMU's TCG encodes it until 8.0, of {plain} as a CPU does",)
    table = "IDT" if code & 2 else "LDT" if code & 4 else "GDT"
    index = code >> 3
    name = f", {vector_name(index)}" if table == "IDT" else ""
    outside = ("EXT: raised while another event was being delivered",) if code & 1 else ()
    return (f"{table} entry {index}{name}", *outside)


def kind_of(here: Situation, code: int, cr2: int | None, rip: int | None) -> Kind:
    """The access that a page fault's error code reports.

    Without SMEP and without NXE the CPU does not report fetches: then CR2 shows them.
    """
    if code & PageFault.W:
        return Kind.WRITE
    reports = here.state.cr4_has(Cr4.SMEP) or here.state.nxe or not here.knows("cr4")
    if code & PageFault.I or (not reports and cr2 is not None and cr2 == rip):
        return Kind.FETCH
    return Kind.READ


_NAMED_BITS: Final = (
    (PageFault.RMP, "the error code has RMP (bit 31): AMD's reverse map refused it"),
    (PageFault.SGX, "the error code has SGX (bit 15): a rule of SGX refused it, not the tables"),
    (PageFault.HLAT, "the error code has HLAT (bit 7): the hypervisor's linear-address translation refused it"),
    (
        PageFault.SS,
        "the error code has SS (bit 6): a shadow-stack access to a page that is none, or an ordinary write to one",
    ),
)
"""Bits that say that another structure than the page tables decided."""


def rule_from_code(here: Situation, code: int, va: int | None, how: Access) -> Candidate:
    """The rule that *code* leaves over. What two rules share, the half of the address decides, as a likelihood."""
    if (other := beyond_tables(code)) is not None:
        return other
    if code & PageFault.RSVD:
        # Before P: QEMU reports these with P clear.
        return Candidate("reserved-bit", "the error code has RSVD", bool(code & PageFault.P))
    if not code & PageFault.P:
        return Candidate("not-present", "the error code has P clear", True)
    if code & PageFault.PK:
        return Candidate("protection-key", "the error code has PK", True)
    if code & PageFault.U:
        return _user_rule(here, how, va)
    if how.kind is Kind.FETCH:
        return _fetch_rule(here, va)
    return _data_rule(here, how, va)


def beyond_tables(code: int) -> Candidate | None:
    """What *code* says where it was not the page tables that refused, None where it says nothing of the kind."""
    for bit, reason in _NAMED_BITS:
        if code & bit and (bit is not PageFault.SS or code & PageFault.P):
            return Candidate("unknown", reason, True)
    return None


def _upper(va: int | None) -> bool:
    return va is not None and bool(va >> 63)


def _user_rule(here: Situation, how: Access, va: int | None) -> Candidate:
    if how.kind is Kind.READ:
        return Candidate("user-supervisor", "a user read of a present page fails for U/S only", True)
    if how.kind is Kind.FETCH and here.knows("efer") and not here.state.nxe:
        return Candidate("user-supervisor", "EFER.NXE is clear, so a user fetch fails for U/S only", True)
    if not here.is_long:
        return Candidate("unknown", "U/S or R/W refused it; the error code does not distinguish them", False)
    if _upper(va):
        return Candidate("user-supervisor", "the address is in the kernel's half", False)
    other: RuleName = "no-execute" if how.kind is Kind.FETCH else "write-protected"
    return Candidate(other, "the address is in the user half, where pages are the user's", False)


def _fetch_rule(here: Situation, va: int | None) -> Candidate:
    if here.knows("cr4") and not here.state.cr4_has(Cr4.SMEP):
        return Candidate("no-execute", "CR4.SMEP is clear, so a supervisor fetch fails for XD only", True)
    if here.knows("efer") and not here.state.nxe:
        return Candidate("smep", "EFER.NXE is clear, so a supervisor fetch fails for SMEP only", True)
    if not here.is_long:
        return Candidate("unknown", "XD or SMEP refused it; the error code does not distinguish them", False)
    both = "" if here.knows("cr4") else "a supervisor fetch from a present page fails for XD, or under SMEP; "
    if _upper(va):
        return Candidate(
            "no-execute", f"{both}the address is in the kernel's half, where pages are not the user's", False
        )
    return Candidate("smep", f"{both}the address is in the user half", False, guess=not here.knows("cr4"))


def _data_rule(here: Situation, how: Access, va: int | None) -> Candidate:
    """A supervisor's read or write of a present page: SMAP, and for writes R/W; what is not known may be on."""
    may_smap = not here.knows("cr4") or here.state.cr4_has(Cr4.SMAP)
    smap = may_smap and (how.implicit or not here.state.ac)
    can_protect = how.kind is Kind.WRITE and (here.state.wp or not here.knows("cr0"))
    if smap and not (can_protect and _upper(va)):
        why = "the user half is the user's" if can_protect else "only SMAP refuses a supervisor read of a present page"
        if can_protect and not here.knows("cr4"):
            return Candidate("smap", "SMAP or R/W=0 refused it: CR4 is not known", False, guess=True)
        return Candidate("smap", why, not (can_protect or _upper(va)))
    if can_protect:
        why = "the address is in the kernel's half" if smap else "only R/W=0 refuses a supervisor write here"
        return Candidate("write-protected", why, not smap)
    return Candidate("unknown", "no rule of paging refuses this access in this state", False)

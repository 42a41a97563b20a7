"""What an engine did with a case, and where it differs from what the CPU must do.

A case tests several rules at once; each check is a row of the published table. So that one cause is one row, what
an error code, CR2 or a flag says wrongly is a rule of its own, beside the rule that decides whether there is a fault.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

from fivefold.arch import (
    Access,
    Allowed,
    ControlState,
    Cr4,
    Fault,
    Flag,
    Kind,
    Mapped,
    PageFault,
    Rule,
    Vector,
    Vendor,
    access,
    translate,
)
from fivefold.conform.cases.actions import RMW, address_of
from fivefold.conform.cases.case import Case
from fivefold.conform.judging.expect import BREAKPOINT, Expected, decide, states_of
from fivefold.conform.judging.memory_words import value_read, words_after, words_before
from fivefold.conform.judging.rules import ERROR_BITS, Rules, flush_rule, rule_of
from fivefold.conform.judging.stale_answers import StaleAnswer
from fivefold.conform.places import CODE, DATA
from fivefold.units import VirtAddr, hex64

_A, _D = int(Flag.A), int(Flag.D)
_WRITE_DISABLE: Final = 0xAAAA_AAAA
"""WD of every key in PKRU and PKRS."""


@dataclass(frozen=True, slots=True)
class CaseOutcome:
    """What was seen. *vector* is 3 where the access went ahead; *after* are words of memory by physical address.

    *rip* is the saved RIP, where it is known. *problem* says why the case came to no end in this engine, if so; then
    the rest means nothing.
    """

    vector: int
    error_code: int = 0
    cr2: int = 0
    value: int = 0
    rip: int | None = None
    after: dict[int, int] | None = None
    problem: str | None = None
    stopped: bool = False
    """The machine came to its end at this case. For a register write that must be refused this is an answer."""

    def __str__(self) -> str:
        if self.problem:
            return self.problem
        if self.vector == BREAKPOINT:
            return "the access goes ahead"
        name = Vector(self.vector).name if self.vector in set(Vector) else str(self.vector)
        cr2 = f", CR2={hex64(self.cr2)}" if self.vector == Vector.PF else ""
        return f"#{name}({self.error_code:#x}){cr2}"


class OutcomeCheck(NamedTuple):
    """One rule held against one outcome. *expected* and *got* are in words."""

    rule: str
    section: str
    agrees: bool
    expected: str = ""
    got: str = ""


def checks(case: Case, expected: Expected, outcome: CaseOutcome) -> Iterator[OutcomeCheck]:
    """Every rule that *outcome* shows, the decisive one first."""
    rules = rule_of(case, expected)
    if expected.allowed is not None:
        right = answer_of(outcome) in expected.allowed
        yield OutcomeCheck(*rules, right, *(() if right else (_allowed_text(expected), answer_text(outcome))))
        return
    if case.what.label == RMW and _read_first(case, expected, outcome):
        yield OutcomeCheck(*Rules.RMW, False, expected_text(expected), str(outcome))
        return
    if _keys_by_privilege(case, expected, outcome):
        yield OutcomeCheck(*Rules.KEYS, False, expected_text(expected), str(outcome))
        return
    if case.what.scratch and outcome.vector == Vector.PF and CODE <= outcome.cr2 < DATA:
        yield OutcomeCheck(*Rules.OWN_STACK, False, expected_text(expected), str(outcome))
        return
    if case.what.implicit and _explicit(case, expected, outcome):
        yield OutcomeCheck(*Rules.SMAP_IMPLICIT, False, expected_text(expected), str(outcome))
        return
    if outcome.stopped and _read_only_without_wp(case, expected):
        yield OutcomeCheck(*Rules.WITHOUT_WP, False, expected_text(expected), str(outcome))
        return
    if not _same_decision(expected, outcome):
        yield OutcomeCheck(*rules, False, expected_text(expected), str(outcome))
        return
    yield OutcomeCheck(*rules, True)
    if case.what.scratch and case.what.fetches and case.cpl == 3 and "smap" in case.flags:
        yield OutcomeCheck(*Rules.OWN_STACK, True)
    if isinstance(expected.verdict, Fault) and expected.verdict.rule in (Rule.PKU, Rule.PKS):
        yield OutcomeCheck(*Rules.KEYS, True)
    if case.what.label == RMW and outcome.vector == Vector.PF:
        yield OutcomeCheck(*Rules.RMW, True)
    if outcome.vector == Vector.PF and expected.cr2 is not None:
        # Which bytes of a descriptor are written back is the CPU's affair.
        inside = case.action == "accessed" and expected.error_code & PageFault.W and outcome.cr2 - case.va in range(8)
        yield _same(Rules.CR2, hex64(expected.cr2), hex64(expected.cr2 if inside else outcome.cr2), "CR2=")
        yield from _error_bits(expected, outcome)
    elif outcome.vector in (Vector.GP, Vector.SS):
        yield _same(Rules.ZERO_CODE, f"{expected.error_code:#x}", f"{outcome.error_code:#x}", "error code ")
    if expected.vector == Vector.SS:
        yield OutcomeCheck(*Rules.STACK, outcome.vector == Vector.SS, expected_text(expected), str(outcome))
    if outcome.rip is not None and outcome.vector != BREAKPOINT:
        yield _at_fault(case, expected, outcome.rip)
    if outcome.after is not None:
        yield from _memory(case, expected, outcome)


def answer_of(outcome: CaseOutcome) -> StaleAnswer:
    """What a case of steps gave, as it is compared."""
    if outcome.vector == Vector.PF:
        return StaleAnswer(outcome.vector, outcome.error_code, outcome.cr2)
    return StaleAnswer(outcome.vector, outcome.error_code, value=outcome.value)


def gave_old(expected: Expected, outcome: CaseOutcome) -> bool | None:
    """Whether a case of steps gave an old translation; None where none is allowed that is not the new one."""
    if expected.allowed is None or len(expected.allowed) < 2 or outcome.problem:
        return None
    new = StaleAnswer(expected.vector, expected.error_code, expected.cr2 or 0, expected.value)
    return answer_of(outcome) != new


def _allowed_text(expected: Expected) -> str:
    return " or ".join(
        sorted(
            f"{hex64(one.value)} is read" if one.vector == BREAKPOINT else "#PF(0x0)" for one in expected.allowed or ()
        )
    )


def answer_text(outcome: CaseOutcome) -> str:
    return f"{hex64(outcome.value)} is read" if outcome.vector == BREAKPOINT else str(outcome)


def _same_decision(expected: Expected, outcome: CaseOutcome) -> bool:
    """Whether the engine came to the same end for the same reason, as far as that is seen.

    A page fault for a reserved bit and one without it are two decisions, and so are those of two pages. #GP in the
    place of #SS is one: which of the two it is has a rule of its own.
    """
    if (expected.vector, outcome.vector) == (Vector.SS, Vector.GP):
        return True
    if outcome.vector != expected.vector:
        return False
    if outcome.vector != Vector.PF or expected.cr2 is None:
        return True
    return not (outcome.error_code ^ expected.error_code) & PageFault.RSVD and expected.cr2 >> 12 == outcome.cr2 >> 12


def cause_of(case: Case, expected: Expected) -> tuple[str, str]:
    """The rule by which *case* would end a machine that others of the same rule end, too."""
    return Rules.WITHOUT_WP if _read_only_without_wp(case, expected) else rule_of(case, expected)


States = tuple[ControlState, ControlState]
"""The registers at either of two accesses."""


def _as_states(case: Case, expected: Expected, states: States) -> tuple[int, int, int]:
    """Vector, error code and CR2 of the case's access in other *states*."""
    assert expected.space is not None
    found = decide(expected.space, states, case).verdict
    return (int(found.vector), found.error_code, found.cr2 or 0) if isinstance(found, Fault) else (BREAKPOINT, 0, 0)


def _differs_as(expected: Expected, outcome: CaseOutcome, other: tuple[int, int, int]) -> bool:
    """Whether *outcome* is *other*, and that is not what the CPU must do. CR2 is compared by its page."""
    must = (expected.vector, expected.error_code, (expected.cr2 or 0) >> 12)
    return _is_as(outcome, other) and (*other[:2], other[2] >> 12) != must


def _is_as(outcome: CaseOutcome, other: tuple[int, int, int]) -> bool:
    """Whether *outcome* is *other*: vector, error code and the page of CR2."""
    did = (outcome.vector, outcome.error_code, outcome.cr2 >> 12 if outcome.vector == Vector.PF else 0)
    return did == (*other[:2], other[2] >> 12)


def _keys_by_privilege(case: Case, expected: Expected, outcome: CaseOutcome) -> bool:
    """Whether the engine errs as a CPU would whose key register follows the privilege of the access.

    Or as one whose PKRU, beside that, keeps the supervisor from writing.
    """
    if expected.space is None or case.what.access is None or not {"pke", "pks"} & set(case.flags):
        return False
    if flush_rule(case) and outcome.vector == BREAKPOINT:
        return False  # an engine that checks nothing
    wrongs = list(_key_states(case, states_of(case)))
    if any(_differs_as(expected, outcome, _as_states(case, expected, wrong)) for wrong in wrongs):
        return True
    return case.what.then is not None and any(_at_the_other_access(case, expected, outcome, wrong) for wrong in wrongs)


def _at_the_other_access(case: Case, expected: Expected, outcome: CaseOutcome, wrong: States) -> bool:
    """Whether of two accesses a CPU with *wrong* registers faults at the other one, in the same words, as was seen."""
    assert expected.space is not None
    elsewhere = (decide(expected.space, wrong, case).first is None) != (expected.first is None)
    seen = elsewhere and _is_as(outcome, _as_states(case, expected, wrong))
    return seen and any(not check.agrees for check in _memory(case, expected, outcome))


def _key_states(case: Case, states: States) -> Iterator[States]:
    """*states* as those CPUs see them: both key registers hold what they would ask."""
    (first, first_too), (second, second_too) = (_keys_asked(case, state) for state in states)
    yield first, second
    yield first_too, second_too


def _keys_asked(case: Case, state: ControlState) -> States:
    """*state* as the CPU sees it whose key register follows the privilege, and as the one that asks PKRU's WD too."""
    supervisor = case.cpl == 0 or case.what.implicit
    user_keys = state.pkru if state.cr4_has(Cr4.PKE) else 0
    own = (state.pkrs if state.cr4_has(Cr4.PKS) else 0) if supervisor else user_keys
    both, more = state.cr4 | int(Cr4.PKE | Cr4.PKS), own | (user_keys & _WRITE_DISABLE if supervisor else 0)
    return replace(state, cr4=both, pkru=own, pkrs=own), replace(state, cr4=both, pkru=more, pkrs=more)


def _explicit(case: Case, expected: Expected, outcome: CaseOutcome) -> bool:
    """Whether the engine lets RFLAGS.AC exempt the CPU's own access from SMAP, whichever keys it asks then."""
    state = case.state()
    if expected.space is None or not state.cr4_has(Cr4.SMAP) or not state.ac:
        return False
    without = (replace(state, cr4=state.cr4 & ~int(Cr4.SMAP)),) * 2
    return any(
        _differs_as(expected, outcome, _as_states(case, expected, one))
        for one in (without, *_key_states(case, without))
    )


def _read_only_without_wp(case: Case, expected: Expected) -> bool:
    """Whether a supervisor writes with WP=0, and a page of the access is read-only."""
    if expected.space is None or not case.what.writes or all(state.wp for state in states_of(case)):
        return False
    pages = (translate(expected.space, VirtAddr(va)) for va in {case.va, case.second_page if case.crosses else case.va})
    return any(isinstance(page, Mapped) and not page.rights.write for page in pages)


def _read_first(case: Case, expected: Expected, outcome: CaseOutcome) -> bool:
    """Whether a read-modify-write faulted as a read of the same bytes does, where it must fault as a write."""
    if outcome.vector != Vector.PF or outcome.error_code & PageFault.W or expected.space is None:
        return False
    read = access(expected.space, case.state(), VirtAddr(case.va), Access(Kind.READ, case.what.size))
    if not isinstance(read, Fault) or read.cr2 is None:
        return False
    same_code = not (read.error_code ^ outcome.error_code) & ~PageFault.P
    return same_code and read.cr2 == outcome.cr2


def expected_text(expected: Expected) -> str:
    """What the CPU must do, in words."""
    if expected.allowed is not None:
        return _allowed_text(expected)
    if expected.vector == BREAKPOINT:
        return "the access goes ahead" if expected.verdict else "no exception"
    cr2 = f", CR2={hex64(expected.cr2)}" if expected.cr2 is not None else ""
    return f"#{Vector(expected.vector).name}({expected.error_code:#x}){cr2}"


def _at_fault(case: Case, expected: Expected, rip: int) -> OutcomeCheck:
    """Whether the saved RIP is that of the instruction that faulted."""
    start = address_of(case.what, case.cpl)
    at_branch = start <= rip < start + len(case.what.code)
    if case.what.fetches and not case.paging.is_canonical(case.va):
        if case.action == "sysretq" and expected.cpu.vendor is Vendor.AMD:
            return OutcomeCheck(*Rules.SYSRET, rip == case.va, f"RIP={hex64(case.va)}", f"RIP={hex64(rip)}")
        return OutcomeCheck(*Rules.BRANCH, at_branch, f"RIP={hex64(start)}", f"RIP={hex64(rip)}")
    right = at_branch or (case.what.fetches and rip == case.va)
    wanted = case.va if case.what.fetches else start
    return OutcomeCheck(*Rules.RIP, right, f"RIP={hex64(wanted)}", f"RIP={hex64(rip)}")


def _same(rule: tuple[str, str], want: str, got: str, what: str) -> OutcomeCheck:
    return OutcomeCheck(*rule, want == got, what + want, what + got)


def _error_bits(expected: Expected, outcome: CaseOutcome) -> Iterator[OutcomeCheck]:
    fault = expected.verdict
    if not isinstance(fault, Fault):
        return
    must, seen = f"error code {expected.error_code:#x}", f"error code {outcome.error_code:#x}"
    for bit, rule in ERROR_BITS:
        want, got = bool(expected.error_code & bit), bool(outcome.error_code & bit)
        name = PageFault(bit).name
        yield OutcomeCheck(*rule(fault), want == got, f"{must}, {name}={want:d}", f"{seen}, {name}={got:d}")
    if outcome.error_code & ~sum(bit for bit, _ in ERROR_BITS):
        yield OutcomeCheck(*Rules.OTHER_BITS, False, must, seen)


def _memory(case: Case, expected: Expected, outcome: CaseOutcome) -> Iterator[OutcomeCheck]:
    """Flags of the entries, all other bits of them, and the data."""
    after = outcome.after or {}
    wrong = _wrong_entries(case, expected, after)
    faulted = isinstance(expected.verdict, Fault)
    if expected.histories or (expected.written is None and expected.verdict is None):
        for rule, mask in (
            (Rules.ACCESSED_FAULT if faulted else Rules.ACCESSED, _A),
            (Rules.DIRTY_FAULT if faulted else Rules.DIRTY, _D),
            (Rules.OTHER_ENTRY, ~(_A | _D)),
        ):
            words = next((text for bits, text in wrong if bits & mask), None)
            rule = flush_rule(case) or (Rules.CLEANED if case.what.then == "clean" and not faulted else rule)
            yield OutcomeCheck(*rule, words is None, *(words or ("", "")))
    yield from _data(case, expected, outcome, after)


def _wrong_entries(case: Case, expected: Expected, after: dict[int, int]) -> list[tuple[int, tuple[str, str]]]:
    """Each entry that is not as it must be afterwards: its wrong bits, and both values in words."""
    histories = {int(part.at): part for part in expected.histories}
    found = []
    for at, before in case.stores().items():
        part = histories.get(at)
        must, may = (part.must, part.may) if part else (0, 0 if expected.verdict else _A)
        now = after.get(at, before | must)
        if bits := (now ^ (before | must)) & ~may:
            place = (case.place_of(at) or "?").upper()
            asked = f"must set {_names(must & ~before)}, may set {_names(may & ~before)}"
            found.append((bits, (f"{place} entry {hex64(before)}: {asked}", f"{place} entry became {hex64(now)}")))
    return found


def _names(bits: int) -> str:
    return {0: "nothing", _A: "A", _D: "D", _A | _D: "A and D"}.get(bits, hex(bits))


def _data(case: Case, expected: Expected, outcome: CaseOutcome, after: dict[int, int]) -> Iterator[OutcomeCheck]:
    want = words_after(case, expected, words_before(case, expected))
    for at, word in want.items():
        if at in after and after[at] != word:
            rule = Rules.ADDRESS if isinstance(expected.verdict, Allowed) else Rules.TORN
            yield OutcomeCheck(*rule, False, f"{hex64(word)} at {hex64(at)}", hex64(after[at]))
            return
    if case.what.writes and want:
        yield OutcomeCheck(*(Rules.ADDRESS if isinstance(expected.verdict, Allowed) else Rules.TORN), True)
    value = value_read(case, expected)
    if value is not None:
        yield _same(Rules.ADDRESS, hex64(value), hex64(outcome.value), "value read ")

"""What the CPU must do with a case: `arch`'s verdict, as far as an engine can show it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Final, NamedTuple

from fivefold.arch import (
    FRAME_BITS,
    RFLAGS_AC,
    Access,
    AddressSpace,
    Allowed,
    ControlState,
    Cpu,
    Cr0,
    Cr4,
    Fault,
    History,
    Kind,
    Legal,
    Mapped,
    Refused,
    Register,
    Rule,
    Vector,
    Verdict,
    access,
    check_write,
    history_of,
    invpcid_refusal,
    translate,
)
from fivefold.conform.cases.case import Case, in_data
from fivefold.conform.judging.stale_answers import StaleAnswer, answers, place_written
from fivefold.conform.places import ARENA, CODE, ROOT, driver_entry, pattern
from fivefold.units import PhysAddr, VirtAddr

_FOREIGN = "the walk leads through memory that is not the case's"
_ALL_BUT_KEY_0: Final = 0xFFFF_FFFC
LDT = 0x38
"""The selector of the driver's LDT."""
BREAKPOINT = int(Vector.BP)
"""The exception by which a case ends whose access went ahead."""


class CaseTables:
    """The memory of a case as a walk sees it: its entries, the driver's, and zeros."""

    def __init__(self, entries: dict[int, int], levels: int) -> None:
        self.entries = entries
        self.levels = levels

    def read(self, pa: PhysAddr, size: int, /) -> bytes:
        """The 8 bytes at *pa*."""
        raw = self.entries.get(pa)
        if raw is None:
            raw = driver_entry(pa, self.levels)
        return raw.to_bytes(size, "little")


@dataclass(frozen=True, slots=True)
class Expected:
    """What must be seen. *pieces* are the physical bytes that are accessed, (address, length) each.

    *verdict* is None for an instruction that accesses nothing. *hidden* says why it cannot be shown, if so.
    """

    verdict: Verdict | None
    vector: int
    error_code: int
    cr2: int | None
    pieces: tuple[tuple[int, int], ...]
    histories: tuple[History, ...]
    hidden: str | None = None
    written: Legal | Refused | None = None
    """The verdict on a register write."""
    space: AddressSpace | None = field(default=None, compare=False)
    cpu: Cpu = field(default=Cpu(), compare=False)
    allowed: frozenset[StaleAnswer] | None = None
    """All that may be seen, for a case of steps; the other fields are then the new translation's."""
    value: int = 0
    """RAX by the new translation, for a case of steps."""
    first: Allowed | None = None
    """The first of two accesses, where it went ahead and the second decides."""


def expect(case: Case, cpu: Cpu) -> Expected:
    """Ask `arch` about *case* on *cpu*."""
    if (lacking := case.needs(cpu)) is not None:
        return Expected(None, BREAKPOINT, 0, None, (), (), f"this CPU has no {lacking}")
    if case.what.register is not None:
        return _register_write(case, cpu)
    how = case.what.access
    state = case.state()
    if case.what.invpcid is not None:
        return Expected(None, int(Vector.GP) if refused_invpcid(case, cpu) else BREAKPOINT, 0, None, (), (), cpu=cpu)
    if case.what.stale is not None:
        new, allowed = answers(case, cpu)
        cr2 = new.cr2 if new.vector == Vector.PF else None
        return Expected(None, new.vector, new.error_code, cr2, (), (), cpu=cpu, allowed=allowed, value=new.value)
    if how is None:
        return Expected(None, BREAKPOINT, 0, None, (), ())
    stores = case.stores()
    space = AddressSpace(CaseTables(stores, int(case.paging.top)), PhysAddr(ROOT), case.paging, cpu, state.nxe)
    how, verdict, first = decide(space, states_of(case), case)
    histories = history_of(space, state, how, verdict, VirtAddr(case.va))
    if first is not None and isinstance(verdict, Fault):
        before = history_of(space, state, first_access(case), first, VirtAddr(case.va))
        may = {part.at: part.may for part in histories}
        histories = tuple(replace(part, may=may.get(part.at, 0) & ~part.must) for part in before)
    if isinstance(verdict, Fault):
        hidden = None if all(_is_ours(step.at) for step in verdict.steps) else _FOREIGN
        if verdict.rule not in (Rule.PRESENT, Rule.RESERVED) and verdict.steps:
            leaf = verdict.steps[-1].entry
            page = cpu.frame(leaf) | verdict.va & (leaf.level.span - 1)
            hidden = hidden if in_data(page, 1) else "an engine that errs would reach memory that is not the case's"
        if case.crosses and not all(in_data(pa, 1) for pa in _mapped(case, space)):
            hidden = hidden or "an engine that errs would reach memory that is not the case's"
        hidden = hidden or _strays(case, first)
        return Expected(
            verdict, int(verdict.vector), verdict.error_code, verdict.cr2, (), histories, hidden,
            space=space, cpu=cpu, first=first,
        )  # fmt: skip
    pieces = _pieces(case, verdict)
    hidden = None
    if not all(in_data(pa, size) for pa, size in pieces):
        hidden = "the access leads to memory that is not the case's"
    elif case.what.fetches and (case.va + case.what.size) % 4096 == 0:
        hidden = "the instruction after it lies in another page"
    elif not all(_is_ours(step.at) for page in verdict.pages for step in page.steps):
        hidden = _FOREIGN
    hidden = hidden or _strays(case, first)
    return Expected(verdict, BREAKPOINT, 0, None, pieces, histories, hidden, space=space, cpu=cpu, first=first)


class Decided(NamedTuple):
    """The access that decides, `arch`'s verdict on it, and the access before it, where two are made."""

    how: Access
    verdict: Verdict
    first: Allowed | None = None


def states_of(case: Case) -> tuple[ControlState, ControlState]:
    """The registers at the first and at the second of two accesses."""
    state = case.state()
    match case.what.then:
        case "wp":
            return state, replace(state, cr0=state.cr0 ^ Cr0.WP)
        case "smap":
            return state, replace(state, cr4=state.cr4 ^ Cr4.SMAP)
        case "ac":
            return state, replace(state, rflags=state.rflags ^ RFLAGS_AC)
        case "pkru":
            return state, replace(state, pkru=state.pkru ^ _ALL_BUT_KEY_0)
        case "pkrs":
            return state, replace(state, pkrs=state.pkrs ^ _ALL_BUT_KEY_0)
        case _:
            return state, state


def first_access(case: Case) -> Access:
    """The first of two accesses: a descriptor is read before it is marked, and so is what `thenwrite` writes."""
    assert case.what.access is not None
    reads = case.action == "accessed" or case.what.then == "write"
    return replace(case.what.access, kind=Kind.READ) if reads else case.what.access


def decide(space: AddressSpace, states: tuple[ControlState, ControlState], case: Case) -> Decided:
    """The access that decides, in the registers of *states* at either access."""
    how, va = case.what.access, VirtAddr(case.va)
    assert how is not None
    if case.action != "accessed" and case.what.then is None:
        return Decided(how, access(space, states[0], va, how))
    first = access(space, states[0], va, first_access(case))
    if isinstance(first, Fault):
        return Decided(first_access(case), first)
    return Decided(how, access(space, states[1], va, how), first if case.what.then else None)


def _strays(case: Case, first: Allowed | None) -> str | None:
    """Whether the entry that software cleans is none that maps the address."""
    if case.what.then != "clean" or first is None or first.pages[0].steps[-1].at == place_written(case):
        return None
    return _FOREIGN


def _mapped(case: Case, space: AddressSpace) -> Iterator[int]:
    """Where the first bytes in each page lie, of those that are mapped."""
    for va in (case.va, case.second_page):
        found = translate(space, VirtAddr(va)) if space.mode.is_canonical(va) else None
        if isinstance(found, Mapped):
            yield found.pa


def refused_invpcid(case: Case, cpu: Cpu) -> str | None:
    """Why the INVPCID of *case* raises #GP(0), or None."""
    kind = case.what.invpcid
    assert kind is not None
    first, va = (case.va, 0) if kind == 1 else (0, case.va)
    return invpcid_refusal(case.state(), kind, first, va, cpu)


def _is_ours(at: int) -> bool:
    return ARENA <= at < CODE


def _register_write(case: Case, cpu: Cpu) -> Expected:
    register = case.what.register
    assert register is not None
    selector = LDT if register is Register.LDTR else 0
    found = check_write(case.state(), register, case.va, cpu, selector)
    if isinstance(found, Refused):
        return Expected(None, int(found.vector), found.error_code, None, (), (), written=found)
    lost = register is Register.CR3 and (case.va ^ ROOT) & FRAME_BITS
    hidden = "its tables are not the case's" if lost else None
    return Expected(None, BREAKPOINT, 0, None, (), (), hidden, written=found)


def _pieces(case: Case, verdict: Allowed) -> tuple[tuple[int, int], ...]:
    first = verdict.pages[0].pa
    size = case.what.size
    if len(verdict.pages) == 1:
        return ((first, size),)
    low = 4096 - (case.va & 0xFFF)
    return ((first, low), (verdict.pages[1].pa, size - low))


def data_at(pieces: tuple[tuple[int, int], ...]) -> bytes:
    """What data holds there before the access."""
    return b"".join(_bytes(pa, size) for pa, size in pieces)


def _bytes(pa: int, size: int) -> bytes:
    first = pa & ~7
    words = b"".join(pattern(at).to_bytes(8, "little") for at in range(first, pa + size, 8))
    return words[pa - first : pa - first + size]

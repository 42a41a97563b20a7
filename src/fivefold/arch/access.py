"""May this access go ahead, and if not, with which exception and error code?

The order, from the manual: canonical form first (no table is read for an address that is
not); then at each entry present before reserved bits; and only when the whole path is read,
the rights folded over it. So a deeper absent or malformed entry wins over missing rights above.

Sources: Intel SDM, "Determination of Access Rights", "Protection Keys", "Page-Fault
Exceptions", "Linear-Address Masking"; AMD APM volume 2, "Page-Protection Checks".
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum, IntFlag
from typing import Final

from fivefold.arch.accesses import READ, Access, Kind, is_user
from fivefold.arch.entry import Flag
from fivefold.arch.exceptions import Vector
from fivefold.arch.linear import first_non_canonical, first_separated, masked, past_segment_limit
from fivefold.arch.modes import Level
from fivefold.arch.state import ControlState, Cr4
from fivefold.arch.walk import AddressSpace, Cause, Mapped, Step, Unmapped, translate
from fivefold.units import MASK64, PhysAddr, VirtAddr, hex64


class PageFault(IntFlag):
    """Bits of a page fault's error code."""

    P = 1 << 0
    W = 1 << 1
    U = 1 << 2
    RSVD = 1 << 3
    I = 1 << 4  # noqa: E741 - the manual's name
    PK = 1 << 5
    SS = 1 << 6
    HLAT = 1 << 7
    SGX = 1 << 15
    RMP = 1 << 31


class Rule(Enum):
    """The rule that refused an access, in words."""

    CANONICAL = "the address is not canonical"
    PRESENT = "an entry on the path is not present"
    RESERVED = "an entry on the path has a reserved bit set"
    USER = "user access to a supervisor page"
    WRITE = "write to a read-only page"
    EXECUTE = "fetch from a no-execute page"
    SHADOW = "shadow-stack access to a page that is no shadow stack"
    SHADOW_SIDE = "supervisor shadow-stack access to a user page"
    LASS = "bit 63 of the address is the other privilege's (LASS)"
    SMEP = "supervisor fetch from a user page (SMEP)"
    SMAP = "supervisor access to user data (SMAP)"
    PKU = "the user page's protection key forbids it (PKU)"
    PKS = "the supervisor page's protection key forbids it (PKS)"
    SGX = "the enclave page cache map forbids it (SGX)"
    RMP = "the reverse map table gives the page to another owner (SEV-SNP)"


@dataclass(frozen=True, slots=True)
class Allowed:
    """The access goes ahead. *pages* holds one translation, or two if it straddles pages."""

    pages: tuple[Mapped, ...]

    @property
    def pa(self) -> PhysAddr:
        """The physical address of the first byte."""
        return self.pages[0].pa


@dataclass(frozen=True, slots=True)
class Fault:
    """The exception that the access raises, with the evidence.

    *va* is the first byte that faulted, with any LAM tag removed; *level* that of the last
    entry read, None where no table was read. The steps are those of the faulting page.
    """

    vector: Vector
    error_code: int
    cause: Cause
    rule: Rule
    va: VirtAddr
    level: Level | None
    steps: tuple[Step, ...]

    @property
    def cr2(self) -> VirtAddr | None:
        """What CR2 holds afterwards; None where the exception leaves it alone."""
        return self.va if self.vector is Vector.PF else None

    def __str__(self) -> str:
        """One line: the exception, its code, the address and the rule."""
        at = f" at {self.level.name}" if self.level else ""
        return f"#{self.vector.name}({self.error_code:#x}) {hex64(self.va)}{at}: {self.rule.value}"


Verdict = Allowed | Fault


def access(space: AddressSpace, state: ControlState, va: VirtAddr, how: Access = READ) -> Verdict:
    """Decide one access. `MemoryReadError` where a table cannot be read.

    *space* gives the tables, the mode, the CPU and NXE, *state* everything else; make the
    former with `AddressSpace.from_state` and they agree. `ValueError` if they do not. An access
    past 2**64 goes on at 0, as addresses do in 64-bit mode.
    """
    if state.mode != space.mode or state.nxe != space.nxe:
        raise ValueError(f"the state has {state.paging.value}, NXE={state.nxe:d}; the space differs")
    if past_segment_limit(state, space.cpu, how):
        raise ValueError("EFER.LMSLE compares data accesses with segment limits, which the state does not hold")
    va = masked(va, state, space.mode, how)
    # Instruction bytes are fetched as they come, so what lies in the lower page is judged first.
    size = 1 if how.kind is Kind.FETCH else how.size
    if (bad := first_non_canonical(space.mode, va, size)) is not None:
        return _not_translated(how, Cause.NON_CANONICAL, Rule.CANONICAL, bad)
    if (bad := first_separated(state, va, how)) is not None:
        return _not_translated(how, Cause.SEPARATED, Rule.LASS, bad)
    pages: list[Mapped] = []
    for piece in _pieces(va, how.size):
        if not space.mode.is_canonical(piece):
            return _not_translated(how, Cause.NON_CANONICAL, Rule.CANONICAL, piece)
        verdict = _page(space, state, piece, how)
        if isinstance(verdict, Fault):
            return verdict
        pages.append(verdict)
    return Allowed(tuple(pages))


def _not_translated(how: Access, cause: Cause, rule: Rule, va: VirtAddr) -> Fault:
    """The fault of an address that no table is asked about."""
    vector = Vector.SS if how.stack and how.kind is not Kind.FETCH else Vector.GP
    return Fault(vector, 0, cause, rule, va, None, ())


def error_code(state: ControlState, how: Access, flags: PageFault) -> int:
    """The error code of a page fault: *flags* (P, RSVD, PK, HLAT, SGX, RMP) and what the access adds to them.

    I is reported only where a fetch can be refused at all: SMEP=1, or PAE and NXE.
    """
    code = int(flags)
    if how.kind is Kind.WRITE:
        code |= PageFault.W
    if is_user(state, how):
        code |= PageFault.U
    if how.shadow:
        code |= PageFault.SS
    if how.kind is Kind.FETCH and (state.cr4 & _SMEP or (state.cr4 & _PAE and state.nxe)):
        code |= PageFault.I
    return int(code)


_NO_BITS: Final = PageFault(0)
_SMEP: Final = int(Cr4.SMEP)
_PAE: Final = int(Cr4.PAE)


def _pieces(va: VirtAddr, size: int) -> Iterator[VirtAddr]:
    """The first byte in each 4 KiB page touched, the lower one first."""
    yield va
    first, last = va >> 12, (va + size - 1) >> 12
    if last != first:
        yield VirtAddr(last << 12 & MASK64)


def _page(space: AddressSpace, state: ControlState, va: VirtAddr, how: Access) -> Mapped | Fault:
    """Decide the part of an access that lies in one page."""
    found = translate(space, va)
    if isinstance(found, Unmapped):
        absent = found.cause is Cause.NOT_PRESENT
        # A reserved-bit fault is one on a present entry: P comes with it.
        flags = _NO_BITS if absent else PageFault.P | PageFault.RSVD
        code = error_code(state, how, flags | (PageFault.HLAT if found.hlat else _NO_BITS))
        rule = Rule.PRESENT if absent else Rule.RESERVED
        return Fault(Vector.PF, code, found.cause, rule, va, found.steps[-1].entry.level, found.steps)
    key_rule = _key_refusal(state, found, how)
    rule_broken = _rights_refusal(state, found, how) or key_rule
    if rule_broken is not None:
        cause = Cause.KEY if rule_broken is key_rule else Cause.PROTECTION
        code = error_code(state, how, PageFault.P | (PageFault.PK if key_rule else _NO_BITS))
        return Fault(Vector.PF, code, cause, rule_broken, va, found.page, found.steps)
    if (refused := space.refused_by_owner(found, how)) is not None:
        rule = Rule[refused.name]
        code = error_code(state, how, PageFault.P | PageFault[refused.name])
        return Fault(Vector.PF, code, Cause.OWNER, rule, va, found.page, found.steps)
    return found


def _rights_refusal(state: ControlState, page: Mapped, how: Access) -> Rule | None:
    """The rule of R/W, U/S, NX, SMEP, SMAP and shadow stacks that *page* breaks, if any."""
    user, rights = is_user(state, how), page.rights
    if user and not rights.user:
        return Rule.USER
    if how.kind is Kind.FETCH:
        if not user and rights.user and state.cr4_has(Cr4.SMEP):
            return Rule.SMEP
        return None if rights.execute else Rule.EXECUTE
    if how.shadow:
        if not user and rights.user:
            return Rule.SHADOW_SIDE
        return None if is_shadow_stack(page) else Rule.SHADOW
    if not user and rights.user and state.cr4_has(Cr4.SMAP) and (how.implicit or not state.ac):
        return Rule.SMAP
    if how.kind is Kind.WRITE and not rights.write and (user or state.wp):
        return Rule.WRITE
    return None


def is_shadow_stack(page: Mapped) -> bool:
    """Whether *page* is a shadow stack's: R/W=0 and D=1 in its leaf, R/W=1 in every entry above.

    It counts as one only while CR4.CET is set, which is not asked here.
    """
    *above, leaf = page.steps
    raw = leaf.entry.raw
    return not raw & Flag.RW and bool(raw & Flag.D) and all(step.entry.raw & Flag.RW for step in above)


def _key_refusal(state: ControlState, page: Mapped, how: Access) -> Rule | None:
    """The protection-key rule that *page* breaks, if any; fetches have none."""
    user = is_user(state, how)
    if how.kind is Kind.FETCH or (user and not page.rights.user):
        return None
    rule = Rule.PKU if page.rights.user else Rule.PKS
    if not state.cr4_has(Cr4.PKE if rule is Rule.PKU else Cr4.PKS):
        return None
    keys = state.pkru if rule is Rule.PKU else state.pkrs
    denied = keys >> 2 * page.leaf.key & 3
    write_denied = how.kind is Kind.WRITE and denied & 2 and (user or state.wp)
    return rule if denied & 1 or write_denied else None

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

from fivefold.arch.entry import Flag
from fivefold.arch.exceptions import Vector
from fivefold.arch.modes import LA48, LA57, Level, PagingMode, extend
from fivefold.arch.state import CR3_LAM_U48, CR3_LAM_U57, ControlState, Cr4
from fivefold.arch.walk import AddressSpace, Cause, Mapped, Step, Unmapped, translate
from fivefold.units import MASK64, PhysAddr, VirtAddr, hex64


class Kind(Enum):
    """What an access does. A read-modify-write is a write."""

    READ = "read"
    WRITE = "write"
    FETCH = "fetch"


@dataclass(frozen=True, slots=True)
class Access:
    """What is done to an address; who does it follows from the privilege level.

    *size* in bytes, 1 to 4096. *implicit*: the CPU's own access to a descriptor table or TSS,
    which is a supervisor's at any privilege level. *stack*: through SS, or a push, pop, call or return.
    """

    kind: Kind
    size: int = 1
    implicit: bool = False
    stack: bool = False

    def __post_init__(self) -> None:
        """Refuse a size that no access has."""
        if not 1 <= self.size <= 4096:
            raise ValueError(f"an access of {self.size} bytes; expected 1 to 4096")


READ: Final = Access(Kind.READ)
WRITE: Final = Access(Kind.WRITE)
FETCH: Final = Access(Kind.FETCH)


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
    SMEP = "supervisor fetch from a user page (SMEP)"
    SMAP = "supervisor access to user data (SMAP)"
    PKU = "the user page's protection key forbids it (PKU)"
    PKS = "the supervisor page's protection key forbids it (PKS)"


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
    if how.kind is not Kind.FETCH:
        va = untagged(va, state, space.mode)
    if (bad := _non_canonical(space.mode, va, how.size)) is not None:
        vector = Vector.SS if how.stack and how.kind is not Kind.FETCH else Vector.GP
        return Fault(vector, 0, Cause.NON_CANONICAL, Rule.CANONICAL, bad, None, ())
    pages: list[Mapped] = []
    for piece in _pieces(va, how.size):
        verdict = _page(space, state, piece, how)
        if isinstance(verdict, Fault):
            return verdict
        pages.append(verdict)
    return Allowed(tuple(pages))


def untagged(va: VirtAddr, state: ControlState, mode: PagingMode) -> VirtAddr:
    """Remove the tag that linear-address masking lets data addresses carry.

    The bits between the tag's top and bit 63 take the value of the highest bit below the tag;
    bit 63 itself stays, so that the canonical check still compares it.
    """
    if va >> 63:
        width = mode.va_bits if state.cr4_has(Cr4.LAM_SUP) else 0
    elif state.cr3 & CR3_LAM_U57:
        width = LA57.va_bits
    else:
        width = LA48.va_bits if state.cr3 & CR3_LAM_U48 else 0
    if not width:
        return va
    return VirtAddr(extend(va, width) & ~_BIT63 | va & _BIT63)


def error_code(state: ControlState, how: Access, flags: PageFault) -> int:
    """The error code of a page fault: *flags* (P, RSVD, PK) and what the access adds to them.

    I is reported only where a fetch can be refused at all: SMEP=1, or PAE and NXE.
    """
    code = int(flags)
    if how.kind is Kind.WRITE:
        code |= PageFault.W
    if _is_user(state, how):
        code |= PageFault.U
    if how.kind is Kind.FETCH and (state.cr4_has(Cr4.SMEP) or (state.cr4_has(Cr4.PAE) and state.nxe)):
        code |= PageFault.I
    return int(code)


def accessed_and_dirty(pages: Allowed, how: Access) -> tuple[tuple[PhysAddr, int], ...]:
    """The entries the CPU rewrites when the access goes ahead: (where, new value).

    A is set in every entry used, D in the leaf of a write; entries that have them are left out.
    """
    changes: dict[PhysAddr, int] = {}
    for page in pages.pages:
        for step in page.steps:
            dirty = Flag.D if how.kind is Kind.WRITE and step.entry == page.leaf else 0
            raw = step.entry.raw | int(Flag.A | dirty)
            if raw != step.entry.raw:
                changes[step.at] = raw
    return tuple(changes.items())


_BIT63: Final = 1 << 63
_NO_BITS: Final = PageFault(0)


def _is_user(state: ControlState, how: Access) -> bool:
    return state.cpl == 3 and not how.implicit


def _non_canonical(mode: PagingMode, va: VirtAddr, size: int) -> VirtAddr | None:
    """The first byte that is not canonical. An access is shorter than the gap: its ends suffice."""
    if not mode.is_canonical(va):
        return va
    if not mode.is_canonical((va + size - 1) & MASK64):
        return VirtAddr(mode.gap.start)
    return None


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
        code = error_code(state, how, _NO_BITS if absent else PageFault.P | PageFault.RSVD)
        rule = Rule.PRESENT if absent else Rule.RESERVED
        return Fault(Vector.PF, code, found.cause, rule, va, found.steps[-1].entry.level, found.steps)
    key_rule = _key_refusal(state, found, how)
    rule_broken = _rights_refusal(state, found, how) or key_rule
    if rule_broken is None:
        return found
    cause = Cause.KEY if rule_broken is key_rule else Cause.PROTECTION
    code = error_code(state, how, PageFault.P | (PageFault.PK if key_rule else _NO_BITS))
    return Fault(Vector.PF, code, cause, rule_broken, va, found.page, found.steps)


def _rights_refusal(state: ControlState, page: Mapped, how: Access) -> Rule | None:
    """The rule of R/W, U/S, NX, SMEP and SMAP that *page* breaks, if any."""
    user, rights = _is_user(state, how), page.rights
    if user and not rights.user:
        return Rule.USER
    if how.kind is Kind.FETCH:
        if not user and rights.user and state.cr4_has(Cr4.SMEP):
            return Rule.SMEP
        return None if rights.execute else Rule.EXECUTE
    if not user and rights.user and state.cr4_has(Cr4.SMAP) and (how.implicit or not state.ac):
        return Rule.SMAP
    if how.kind is Kind.WRITE and not rights.write and (user or state.wp):
        return Rule.WRITE
    return None


def _key_refusal(state: ControlState, page: Mapped, how: Access) -> Rule | None:
    """The protection-key rule that *page* breaks, if any; fetches have none."""
    user = _is_user(state, how)
    if how.kind is Kind.FETCH or (user and not page.rights.user):
        return None
    rule = Rule.PKU if page.rights.user else Rule.PKS
    if not state.cr4_has(Cr4.PKE if rule is Rule.PKU else Cr4.PKS):
        return None
    keys = state.pkru if rule is Rule.PKU else state.pkrs
    denied = keys >> 2 * page.leaf.key & 3
    write_denied = how.kind is Kind.WRITE and denied & 2 and (user or state.wp)
    return rule if denied & 1 or write_denied else None

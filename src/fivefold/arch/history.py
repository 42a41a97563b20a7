"""The accessed and dirty flags after an access: what the CPU must, may and must not set.

After an access that went ahead, A must be set in every entry that was used and D in the leaf of
what was written, and D in nothing else. After a fault, A may be set in entries that the walk used
before it was refused, and D in none of the page that refused; in the lower page of a write over two, of which
the upper one refused, D may be set. An entry that is not present or has
a reserved bit set is never used, so it stays as it is.

Sources: Intel SDM, "Accessed and Dirty Flags"; AMD APM volume 2, "Accessed (A) Bit" and "Dirty (D) Bit".
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from fivefold.arch.access import Allowed, Fault, Rule, Verdict, access
from fivefold.arch.accesses import Access, Kind
from fivefold.arch.entry import Flag
from fivefold.arch.state import ControlState
from fivefold.arch.walk import AddressSpace, Mapped
from fivefold.units import MASK64, PhysAddr, VirtAddr

_A: Final = int(Flag.A)
_D: Final = int(Flag.D)


@dataclass(frozen=True, slots=True)
class History:
    """What becomes of the entry at *at*, which was *before*: *must* and *may* are masks of A and D.

    What is in neither mask must not change.
    """

    at: PhysAddr
    before: int
    must: int
    may: int

    def accepts(self, after: int) -> bool:
        """Whether *after* is a value that the CPU may leave there."""
        return after & ~self.may == (self.before | self.must) & ~self.may

    def __str__(self) -> str:
        """What must and what may be set, by the flags' names."""
        names = {0: "nothing", _A: "A", _D: "D", _A | _D: "A and D"}
        return f"must set {names[self.must & ~self.before]}, may set {names[self.may & ~self.before]}"


def history(space: AddressSpace, state: ControlState, va: VirtAddr, how: Access) -> tuple[History, ...]:
    """A and D of every entry that the access meets, whether it goes ahead or faults."""
    return history_of(space, state, how, access(space, state, va, how), va)


def history_of(
    space: AddressSpace, state: ControlState, how: Access, verdict: Verdict, va: VirtAddr
) -> tuple[History, ...]:
    """`history`, where the verdict on the access to *va* is known already."""
    if isinstance(verdict, Allowed):
        return _merge(part for page in verdict.pages for part in _after_success(page, how))
    if verdict.level is None:
        return ()
    parts = [*_other_page(space, state, how, verdict, va), *_after_fault(verdict)]
    return _merge(parts)


def accessed_and_dirty(pages: Allowed, how: Access) -> tuple[tuple[PhysAddr, int], ...]:
    """The entries the CPU rewrites when the access goes ahead: (where, new value).

    A is set in every entry used, D in the leaf of a write; entries that have them are left out.
    """
    parts = _merge(part for page in pages.pages for part in _after_success(page, how))
    return tuple((part.at, part.before | part.must) for part in parts if part.must & ~part.before)


def _after_success(page: Mapped, how: Access) -> Iterator[History]:
    for step in (*page.restarted, *page.steps):
        dirty = _D if how.kind is Kind.WRITE and step is page.steps[-1] else 0
        yield History(step.at, step.entry.raw, _A | dirty, 0)


def _after_fault(fault: Fault) -> Iterator[History]:
    """The page that refused: all entries were used but one that is not present or malformed."""
    unused = fault.rule in (Rule.PRESENT, Rule.RESERVED)
    for step in fault.steps:
        last = step is fault.steps[-1]
        yield History(step.at, step.entry.raw, 0, 0 if last and unused else _A)


def _other_page(space: AddressSpace, state: ControlState, how: Access, fault: Fault, va: VirtAddr) -> Iterator[History]:
    """The other page of an access over two, of which one refused: it may have been used, in vain."""
    first, last = va >> 12, (va + how.size - 1 & MASK64) >> 12
    if first == last:
        return
    other = VirtAddr(last << 12 if fault.va >> 12 == first else va)
    if not space.mode.is_canonical(other):
        return
    met = access(space, state, other, Access(how.kind, 1, how.implicit, how.stack, how.shadow, how.as_user))
    if isinstance(met, Fault):
        yield from _after_fault(met)
    else:
        # The manuals do not say that a write which is cut in two leaves D alone in the page that allowed it.
        for step in met.pages[0].steps:
            dirty = _D if how.kind is Kind.WRITE and step is met.pages[0].steps[-1] and other == va else 0
            yield History(step.at, step.entry.raw, 0, _A | dirty)


def _merge(parts: Iterator[History] | list[History]) -> tuple[History, ...]:
    """One record an entry: what either page must or may, both must or may."""
    merged: dict[PhysAddr, History] = {}
    for part in parts:
        old = merged.get(part.at, part)
        must = old.must | part.must
        merged[part.at] = History(part.at, part.before, must, (old.may | part.may) & ~must)
    return tuple(merged.values())

"""Cases with steps: an access that fills the caches, a store to the leaf entry, an invalidation or none, an access.

What the second access may give is a set. Where the set has an old translation and the engine gives it, a kernel that
forgets the invalidation is caught there; an engine that always gives the new one cannot decide.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from fivefold.arch import AddressSpace, Cpu, Vector
from fivefold.arch.stale.allowed import WordMemory, allowed_answers
from fivefold.arch.stale.steps import EntryStore, Invlpg, LoadCr3, StaleStep, TogglePge, TranslationUse
from fivefold.conform.cases.case import Case
from fivefold.conform.places import ROOT, pattern
from fivefold.units import PhysAddr, VirtAddr

CACHING: Final = "Intel SDM volume 3, Caching Translation Information"
UNDECIDABLE: Final = "undecidable here: this engine drops the old translation by itself"
_TEXTS: Final = {
    "none": "no invalidation", "invlpg": "INVLPG", "other": "INVLPG of another page", "cr3": "a load of CR3",
    "pge": "a change of CR4.PGE",
}  # fmt: skip


class StaleAnswer(NamedTuple):
    """What the second access gives: vector, error code, CR2 and RAX, as far as it tells."""

    vector: int
    error_code: int = 0
    cr2: int = 0
    value: int = 0


def place_written(case: Case) -> int:
    """The physical address of the leaf entry that is stored to."""
    return next(slot.at for slot in case.path if slot.place == "pt")


def answers(case: Case, cpu: Cpu) -> tuple[StaleAnswer, frozenset[StaleAnswer]]:
    """The new answer, and all that are allowed."""
    space = AddressSpace(WordMemory({}), PhysAddr(ROOT), case.paging, cpu, case.state().nxe)
    before, store = case.stores(), EntryStore(place_written(case), case.new)
    steps: list[StaleStep] = [TranslationUse(case.va), store, *_invalidation(case)]
    if "pge" not in case.flags:  # no entry is global then
        before = {at: raw & ~_GLOBAL for at, raw in before.items()}
    old = {_seen(case, found) for found in allowed_answers(space, VirtAddr(case.va), steps, before)}
    new = allowed_answers(space, VirtAddr(case.va), (), before | {store.at: store.value})
    return _seen(case, new.pop()), frozenset(old)


_GLOBAL: Final = 1 << 8


def _invalidation(case: Case) -> list[StaleStep]:
    match case.what.stale:
        case "invlpg":
            return [Invlpg(case.va)]
        case "other":
            return [Invlpg(case.va ^ 0x1000)]
        case "cr3":
            return [LoadCr3(ROOT)]
        case "pge":
            return [TogglePge(), TogglePge()]
        case _:
            return []


def _seen(case: Case, found: tuple[PhysAddr, object] | None) -> StaleAnswer:
    if found is None:
        return StaleAnswer(int(Vector.PF), 0, case.va)
    return StaleAnswer(int(Vector.BP), value=pattern(found[0] & ~7))


def title(case: Case) -> str:
    """The rule that the answer is held against."""
    return f"which translation is used after a store to its entry and {_after(case)}"


def witness_title(case: Case) -> str:
    """The rule that an engine shows by giving the old translation."""
    forgets = {"none": "forgets to invalidate", "cr3": "relies on a load of CR3 to drop a global page"}
    wrong = forgets.get(case.what.stale or "", f"relies on {_TEXTS[case.what.stale or 'none']}")
    return f"a kernel that {wrong} is caught: the old translation is used"


def _after(case: Case) -> str:
    is_global = "pge" in case.flags and any(place == "pt" and raw & _GLOBAL for place, raw in case.entries)
    return _TEXTS[case.what.stale or "none"] + (", global page" if is_global else "")

"""Cases with steps: an access that fills the caches, a store to the leaf entry, an invalidation or none, an access.

What the second access may give is a set. Where the set has an old translation and the engine gives it, a kernel that
forgets the invalidation is caught there; an engine that always gives the new one cannot decide.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from fivefold.arch import AddressSpace, Cpu, Flag, Vector
from fivefold.arch.stale.allowed import WordMemory, allowed_answers
from fivefold.arch.stale.steps import (
    EntryStore,
    Invlpg,
    Invpcid,
    InvpcidType,
    LoadCr3,
    StaleStep,
    TogglePge,
    TranslationUse,
)
from fivefold.conform.cases.case import Case
from fivefold.conform.places import ROOT, pattern
from fivefold.units import PhysAddr, VirtAddr

CACHING: Final = "Intel SDM volume 3, Caching Translation Information"
UNDECIDABLE: Final = "undecidable here: this engine drops the old translation by itself"
_TEXTS: Final = {
    "none": "no invalidation", "invlpg": "INVLPG", "other": "INVLPG of another page", "cr3": "a load of CR3",
    "pge": "a change of CR4.PGE", "keep": "a load of CR3 with bit 63 set",
    "invpcid0": "INVPCID of the address", "invpcid1": "INVPCID of the PCID",
    "invpcid2": "INVPCID of all PCIDs and global pages", "invpcid3": "INVPCID of all PCIDs but no global pages",
}  # fmt: skip


class StaleAnswer(NamedTuple):
    """What the second access gives: vector, error code, CR2 and RAX, as far as it tells."""

    vector: int
    error_code: int = 0
    cr2: int = 0
    value: int = 0


def place_written(case: Case) -> int:
    """The physical address of the entry that is stored to."""
    place = leaf_place(case) if case.what.then else "pd" if _is_above(case) or _is_large(case) else "pt"
    return next((slot.at for slot in case.path if slot.place == place), 0)


def leaf_place(case: Case) -> str:
    """The place of the entry that maps the address, if all entries lead where they usually do."""
    entries = dict(case.entries)
    return next((place for place in ("pdpt", "pd") if entries.get(place, 0) & Flag.BIT7), "pt")


def _is_above(case: Case) -> bool:
    """Whether the store is to the PD entry, which leads to the leaf entry's table."""
    return (case.what.stale or "").startswith("pd")


def _is_large(case: Case) -> bool:
    """Whether the page is one of 2 MiB, and another address of it is invalidated."""
    return (case.what.stale or "").startswith("big")


def _kind(case: Case) -> str:
    """What follows the store."""
    return (case.what.stale or "none").removeprefix("pd").removeprefix("big")


def answers(case: Case, cpu: Cpu) -> tuple[StaleAnswer, frozenset[StaleAnswer]]:
    """The new answer, and all that are allowed."""
    space = AddressSpace(WordMemory({}), PhysAddr(ROOT), case.paging, cpu, case.state().nxe)
    before, store = case.stores(), EntryStore(place_written(case), case.new)
    steps: list[StaleStep] = [TranslationUse(case.va), store, *_invalidation(case)]
    if "pge" not in case.flags:  # no entry is global then
        before = {at: raw & ~_GLOBAL for at, raw in before.items()}
    pcide = "pcide" in case.flags
    old = {_seen(case, found) for found in allowed_answers(space, VirtAddr(case.va), steps, before, pcide)}
    new = allowed_answers(space, VirtAddr(case.va), (), before | {store.at: store.value})
    return _seen(case, new.pop()), frozenset(old)


_GLOBAL: Final = 1 << 8


def _invalidation(case: Case) -> list[StaleStep]:
    match _kind(case):
        case "invlpg":
            return [Invlpg(case.va ^ 0x1000 if _is_large(case) else case.va)]
        case "other":
            return [Invlpg(case.va ^ 0x1000)]
        case "cr3" | "keep" as kind:
            return [LoadCr3(ROOT, keep=kind == "keep")]
        case "invpcid0" | "invpcid1" | "invpcid2" | "invpcid3" as kind:
            return [Invpcid(InvpcidType(int(kind[-1])), 0, case.va)]
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
    which = (
        "the PD entry above" if _is_above(case) else "the entry of its 2 MiB page" if _is_large(case) else "its entry"
    )
    return f"which translation is used after a store to {which} and {_after(case)}"


def witness_title(case: Case) -> str:
    """The rule that an engine shows by giving the old translation."""
    wrong = f"relies on {_TEXTS[_kind(case)]}" + (" to drop a global page" if _is_global(case) else "")
    if _kind(case) == "none":
        wrong = "forgets to invalidate"
    elif _kind(case) == "other":
        wrong = f"relies on {_TEXTS['other']}"
    if _is_above(case):
        wrong += " after it took a table away"
    if _is_large(case):
        wrong += " a 2 MiB page"
    return f"a kernel that {wrong} is caught: the old translation is used"


def _is_global(case: Case) -> bool:
    return "pge" in case.flags and any(raw & _GLOBAL for place, raw in case.entries)


def _after(case: Case) -> str:
    pcids = ", PCIDE=1" if "pcide" in case.flags and _kind(case) == "cr3" else ""
    part = " of another address in it" if _is_large(case) and _kind(case) == "invlpg" else ""
    return _TEXTS[_kind(case)] + part + pcids + (", global page" if _is_global(case) else "")

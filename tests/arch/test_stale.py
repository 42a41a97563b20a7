"""What may be stale: each case is a paragraph of the manual on invalidation."""

from __future__ import annotations

import pytest

from fivefold.arch import LA48, AddressSpace, Cpu
from fivefold.arch.stale.allowed import WordMemory, allowed_answers, fresh_answer
from fivefold.arch.stale.steps import EntryStore, Invlpg, Invlpgb, Invpcid, InvpcidType, LoadCr3, StaleStep, TogglePge
from fivefold.units import PhysAddr, VirtAddr

VA = VirtAddr(0x123)
PTE, PDE = 0x4000, 0x3000
GLOBAL = 0x100
SPACE = AddressSpace(WordMemory({}), PhysAddr(0x1000), LA48, Cpu(phys_bits=46))


def entries(leaf: int) -> dict[int, int]:
    """Tables for VA; a second root at 0x10000 with a page of its own, and a spare PT at 0x6000."""
    first = {0x1000: 0x2007, 0x2000: 0x3007, PDE: 0x4007, PTE: leaf, 0x6000: 0xC067}
    return first | {0x10000: 0x11007, 0x11000: 0x12007, 0x12000: 0x13007, 0x13000: 0xB067}


def answers(leaf: int, *steps: StaleStep, pcide: bool = False) -> set[str]:
    found = allowed_answers(SPACE, VA, steps, entries(leaf), pcide)
    return {"none" if one is None else f"{one[0] & ~0xFFF:x}{'' if one[1].write else ' ro'}" for one in found}


OLD, NEW, GONE = 0x9067, 0xA067, 0


@pytest.mark.parametrize(
    ("leaf", "steps", "pcide", "want"),
    [
        (OLD, (), False, {"9000"}),
        (OLD, (EntryStore(PTE, NEW),), False, {"9000", "a000"}),
        (OLD, (EntryStore(PTE, NEW), Invlpg(VA)), False, {"a000"}),
        (OLD, (EntryStore(PTE, NEW), Invlpg(VA + 0x1000)), False, {"9000", "a000"}),
        (OLD, (EntryStore(PTE, GONE),), False, {"9000", "none"}),
        (OLD, (EntryStore(PTE, GONE), Invlpg(VA)), False, {"none"}),
        (GONE, (EntryStore(PTE, NEW),), False, {"a000"}),  # what is not present is never cached
        (OLD, (EntryStore(PTE, 0x9065),), False, {"9000", "9000 ro"}),
        (OLD, (EntryStore(PTE, NEW), LoadCr3(0x1000)), False, {"a000"}),
        (OLD | GLOBAL, (EntryStore(PTE, NEW), LoadCr3(0x1000)), False, {"9000", "a000"}),
        (OLD | GLOBAL, (EntryStore(PTE, NEW), Invlpg(VA)), False, {"a000"}),
        (OLD | GLOBAL, (EntryStore(PTE, NEW), TogglePge()), False, {"a000"}),
        (OLD, (EntryStore(PTE, NEW), LoadCr3(0x1000, 0, True)), True, {"9000", "a000"}),
        (OLD, (EntryStore(PTE, NEW), LoadCr3(0x1000, 5)), True, {"a000"}),
        (OLD, (EntryStore(PTE, NEW), LoadCr3(0x1000, 5), LoadCr3(0x1000, 0, True)), True, {"9000", "a000"}),
        (OLD, (EntryStore(PTE, NEW), Invpcid(InvpcidType.ADDRESS, 0, VA)), True, {"a000"}),
        (OLD | GLOBAL, (EntryStore(PTE, NEW), Invpcid(InvpcidType.ADDRESS, 0, VA)), True, {"9000", "a000"}),
        (OLD | GLOBAL, (EntryStore(PTE, NEW), Invpcid(InvpcidType.ALL)), True, {"9000", "a000"}),
        (OLD | GLOBAL, (EntryStore(PTE, NEW), Invpcid(InvpcidType.ALL_GLOBAL)), True, {"a000"}),
        (OLD, (EntryStore(PTE, NEW), Invpcid(InvpcidType.SINGLE, 7)), True, {"9000", "a000"}),
        (OLD, (EntryStore(PTE, NEW), Invlpgb(VA)), False, {"a000"}),
        (OLD | GLOBAL, (EntryStore(PTE, NEW), Invlpgb(VA)), False, {"9000", "a000"}),
        (OLD | GLOBAL, (EntryStore(PTE, NEW), Invlpgb(globals_too=True)), False, {"a000"}),
        # Paging-structure caches: the old PT may be walked until any INVLPG of the PCID.
        (GONE, (EntryStore(PDE, 0x6007),), False, {"none", "c000"}),
        (GONE, (EntryStore(PDE, 0x6007), EntryStore(PTE, NEW)), False, {"c000", "a000"}),
        (GONE, (EntryStore(PDE, 0x6007), Invlpg(0x4000_0000)), False, {"c000"}),
        (OLD, (LoadCr3(0x10000),), False, {"b000"}),
        (OLD | GLOBAL, (LoadCr3(0x10000),), False, {"9000", "b000"}),
    ],
)
def test_what_may_be_answered(leaf: int, steps: tuple[StaleStep, ...], pcide: bool, want: set[str]) -> None:
    assert answers(leaf, *steps, pcide=pcide) == want


def test_what_the_tables_say_is_always_allowed() -> None:
    words = entries(OLD) | {PTE: NEW}
    space = AddressSpace(WordMemory(words), PhysAddr(0x1000), LA48, Cpu(phys_bits=46))
    assert fresh_answer(space, VA) in allowed_answers(SPACE, VA, [EntryStore(PTE, NEW)], entries(OLD))

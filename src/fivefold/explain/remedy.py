"""What would have been legal: the smallest change to entries or registers, each tried before it is said.

A change of an entry is put over the memory and the access asked again; only if it is then allowed
is the change offered. So a path with two faults in it gets no wrong advice.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

from fivefold.arch import LA48, LA57, RFLAGS_AC, Access, Cr0, Cr4, Efer, Flag, Level, Step, TableReader
from fivefold.explain.faults.finding import FaultFinding
from fivefold.explain.rules.ruling import Granted, RuleName, is_unplaced, rule_on
from fivefold.explain.rules.situation import Situation
from fivefold.units import MASK64, PhysAddr, hex64


class Remedy(NamedTuple):
    """A change in words, and the CPU after it."""

    text: str
    here: Situation


@dataclass(frozen=True, slots=True)
class Patched:
    """Memory with a few entries replaced; the guest itself is not touched."""

    under: TableReader
    entries: dict[int, int]

    def read(self, pa: PhysAddr, size: int, /) -> bytes:
        """As the memory below, with the replaced entries; `MemoryReadError` where that has none."""
        if size == 8 and pa in self.entries:
            return self.entries[pa].to_bytes(8, "little")
        return self.under.read(pa, size)


def legal_changes(finding: FaultFinding) -> tuple[str, ...]:
    """The changes after which the refused access would have gone ahead, smallest first."""
    fixed = _WORDS.get(finding.rule)
    if finding.va is None or finding.how is None:
        return (fixed,) if fixed else ()
    allowed = [change.text for change in _changes(finding) if _is_allowed(change, finding.va, finding.how)]
    return tuple(allowed) or ((fixed,) if fixed else ())


_WORDS: Final[dict[RuleName, str]] = {
    "idt-limit": "LIDT with a limit of at least 16 * vector + 15, before the exception can be raised",
    "idt-entry": "a present interrupt or trap gate for this vector, with a 64-bit code segment of the GDT",
    "idt-not-mapped": "an IDT base that is mapped for supervisor reads, in every address space",
    "handler-not-mapped": "a handler in a page that is mapped, present and executable for the supervisor",
    "stack": "a mapped page below RSP, or an IST for the gate, so that the frame goes to a stack of its own",
    "mode-change-refused": "the write in a state that allows it",
    "wrong-depth": "a root of the depth that CR4.LA57 selects",
    "not-present": "a present entry at every level of the path",
}


def _is_allowed(change: Remedy, va: int, how: Access) -> bool:
    return isinstance(rule_on(change.here, va, how), Granted)


def _changes(finding: FaultFinding) -> Iterator[Remedy]:
    here, culprit = finding.here, finding.culprit
    if culprit is not None and here.memory is not None:
        yield from _of_entries(here, finding.steps, culprit, finding.rule)
    yield from _of_registers(here, finding)


def _of_entries(here: Situation, steps: tuple[Step, ...], culprit: Step, rule: RuleName) -> Iterator[Remedy]:
    raw = culprit.entry.raw
    if rule == "not-present" and raw:
        yield _entry(here, {culprit: raw | Flag.P}, "set P")
    if rule == "reserved-bit" and here.space is not None:
        bits = here.space.reserved(culprit.entry)
        yield _entry(here, {culprit: raw & ~bits}, f"clear {hex64(bits)}")
    if rule == "no-execute":
        yield _entry(here, {s: s.entry.raw & ~Flag.NX for s in steps if s.entry.raw & Flag.NX}, "clear XD")
    if rule == "write-protected":
        yield _entry(here, {s: s.entry.raw | Flag.RW for s in steps if not s.entry.raw & Flag.RW}, "set R/W")
    if rule == "user-supervisor":
        yield _entry(here, {s: s.entry.raw | Flag.US for s in steps if not s.entry.raw & Flag.US}, "set U/S")
    if rule in ("smep", "smap"):
        yield _entry(here, {culprit: raw & ~Flag.US}, "clear U/S")
    if rule == "protection-key" and culprit.entry.key:
        yield _entry(here, {culprit: raw & ~(15 << 59)}, "take key 0")


def _entry(here: Situation, values: dict[Step, int], what: str) -> Remedy:
    assert here.memory is not None  # entries come from memory
    memory = Patched(here.memory, {step.at: int(raw) & MASK64 for step, raw in values.items()})
    places = ", ".join(f"the {_place(step)}" for step in values)
    return Remedy(f"{what} in {places}", replace(here, memory=memory))


def _of_registers(here: Situation, finding: FaultFinding) -> Iterator[Remedy]:
    state = here.state
    if finding.rule == "write-protected" and state.cpl < 3:
        yield Remedy("CR0.WP=0", here.with_state(replace(state, cr0=state.cr0 & ~int(Cr0.WP))))
    if finding.rule == "smep":
        yield Remedy("CR4.SMEP=0", here.with_state(replace(state, cr4=state.cr4 & ~int(Cr4.SMEP))))
    if finding.rule == "smap":
        yield Remedy("RFLAGS.AC=1 (STAC)", here.with_state(replace(state, rflags=state.rflags | RFLAGS_AC)))
    if finding.rule == "user-supervisor":
        yield Remedy("the same access at privilege level 0", here.with_state(replace(state, cpl=0)))
    if finding.rule == "no-execute":
        yield Remedy(
            "EFER.NXE=0, if no entry has XD set", here.with_state(replace(state, efer=state.efer & ~int(Efer.NXE)))
        )
    if finding.rule == "protection-key":
        yield Remedy("PKRU or IA32_PKRS that allows the key", here.with_state(replace(state, pkru=0, pkrs=0)))
    if finding.rule in ("wrong-depth", "non-canonical"):
        yield _other_depth(here)


def _other_depth(here: Situation) -> Remedy:
    mode = here.mode
    other = here.with_levels(LA48 if mode is LA57 else LA57)
    wanted = 0 if mode is LA57 else 1
    return Remedy(f"CR4.LA57={wanted}, set before paging is turned on", other)


def missing_link(finding: FaultFinding) -> str | None:
    """For an absent entry: what would have to be there."""
    culprit = finding.culprit
    if finding.rule != "not-present" or culprit is None or finding.va is None:
        return None
    level = culprit.entry.level
    below = f"a {Level(level - 1).name} table" if level > 1 else "a page"
    return f"the {_place(culprit)} pointing to {below} that maps {hex64(finding.va)}"


def _place(step: Step) -> str:
    """An entry by its level and where it lies."""
    if is_unplaced(step):
        return f"{step.entry.level.name} entry {(step.at & 0xFFF) >> 3} of the root"
    return f"{step.entry.level.name} entry at {hex64(step.at)}"

"""One access put to the tables: allowed, refused by which rule at which entry, or not known.

The verdict is `fivefold.arch.access`; here it gets the report's rule names, the entry that
is to blame where rights are folded over several, and an answer where a table is outside of the memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from fivefold.arch import (
    LA57,
    Access,
    Allowed,
    Fault,
    Kind,
    Level,
    Mapped,
    Paging,
    Rule,
    Step,
    Unmapped,
    access,
    first_separated,
    masked,
    translate,
    walk,
)
from fivefold.errors import MemoryReadError
from fivefold.explain.rules.situation import UNKNOWN_ROOT, Situation
from fivefold.units import MASK64, VirtAddr, hex64

RuleName = Literal[
    "not-present", "reserved-bit", "write-protected", "no-execute", "user-supervisor", "smep", "smap",
    "protection-key", "lass", "address-tag", "control-protection", "non-canonical", "mode-change-refused",
    "table-outside-memory", "wrong-depth", "idt-limit",
    "idt-entry", "idt-not-mapped", "handler-not-mapped", "stack", "unknown",
]  # fmt: skip
"""What the report calls a rule; the schema fixes the names."""

RULE_OF: Final[dict[Rule, RuleName]] = {
    Rule.CANONICAL: "non-canonical",
    Rule.PRESENT: "not-present",
    Rule.RESERVED: "reserved-bit",
    Rule.USER: "user-supervisor",
    Rule.WRITE: "write-protected",
    Rule.EXECUTE: "no-execute",
    Rule.SMEP: "smep",
    Rule.SMAP: "smap",
    Rule.PKU: "protection-key",
    Rule.PKS: "protection-key",
    Rule.LASS: "lass",
    Rule.SHADOW: "unknown",
    Rule.SHADOW_SIDE: "unknown",
    Rule.SGX: "unknown",
    Rule.RMP: "unknown",
}

MANUAL: Final[dict[RuleName, str]] = {
    "not-present": 'P=0 in a paging-structure entry (SDM, "Page-Fault Exceptions")',
    "reserved-bit": 'RSVD: a reserved bit is set in a paging-structure entry (SDM, "Page-Fault Exceptions")',
    "write-protected": 'R/W=0, with CR0.WP for supervisor writes (SDM, "Determination of Access Rights")',
    "no-execute": 'XD=1 with EFER.NXE=1 (SDM, "Determination of Access Rights")',
    "user-supervisor": 'U/S=0 and a user-mode access (SDM, "Determination of Access Rights")',
    "smep": 'supervisor-mode execution prevention, CR4.SMEP (SDM, "Determination of Access Rights")',
    "smap": 'supervisor-mode access prevention, CR4.SMAP (SDM, "Determination of Access Rights")',
    "protection-key": 'protection keys (SDM, "Protection Keys")',
    "lass": 'linear-address-space separation, CR4.LASS (SDM, "Linear-Address-Space Separation (LASS)")',
    "address-tag": 'metadata in an address that the mode does not ignore (SDM, "Linear-Address Masking"; APM, UAI)',
    "control-protection": 'shadow stacks and indirect branches (SDM volume 1, "Control-Flow Enforcement Technology")',
    "non-canonical": 'canonical addressing (SDM volume 1, "Canonical Addressing")',
    "mode-change-refused": 'a control-register write that the state forbids (SDM, "Control Registers")',
    "table-outside-memory": "the entry points outside the machine's memory; what is read there is undefined",
    "wrong-depth": 'CR3 must hold a table of the depth that CR4.LA57 selects (SDM, "Paging Modes and Control Bits")',
    "idt-limit": 'the gate lies beyond the IDT\'s limit (SDM, "Interrupt Descriptor Table")',
    "idt-entry": 'the gate cannot be used (SDM, "64-Bit Mode IDT")',
    "idt-not-mapped": 'the gate could not be read (SDM, "Interrupt Descriptor Table")',
    "handler-not-mapped": 'the first instruction of the handler could not be fetched (SDM, "64-Bit Mode IDT")',
    "stack": "a push failed, and which rule refused it is not known",
    "unknown": "which rule it was is not known",
}
"""Each rule in the words of the manual, with the section's title."""

_RIGHT: Final = {Rule.USER: 1, Rule.WRITE: 0, Rule.EXECUTE: 2}
"""Rules that follow from a right which some entry took away: its place in `Rights`."""


@dataclass(frozen=True, slots=True)
class Granted:
    """The tables allow the access."""

    verdict: Allowed

    @property
    def steps(self) -> tuple[Step, ...]:
        """The entries read, from the root down; for an access over two pages those of the first."""
        return self.verdict.pages[0].steps


@dataclass(frozen=True, slots=True)
class Refusal:
    """The tables refuse it: *rule*, by the entry in *culprit*, with *code* as the CPU would report it.

    *va* is the first byte that is refused. *culprit* is None where no entry is to blame. *vector* is 14, or 13
    or 12 for an address that is not canonical.
    """

    rule: RuleName
    va: int
    how: Access
    culprit: Step | None
    steps: tuple[Step, ...]
    vector: int
    code: int

    @property
    def level(self) -> Level | None:
        """The level of the refusing entry."""
        return self.culprit.entry.level if self.culprit else None


@dataclass(frozen=True, slots=True)
class Outside:
    """A table on the path lies where the memory has nothing; *pointer* is the entry that leads there.

    *pointer* is None where CR3 does.
    """

    va: int
    how: Access
    at: int
    steps: tuple[Step, ...]

    @property
    def pointer(self) -> Step | None:
        """The entry that holds the address of the missing table."""
        return self.steps[-1] if self.steps else None


Ruling = Granted | Refusal | Outside


def rule_on(here: Situation, va: int, how: Access) -> Ruling | None:
    """What the tables say to an access, None without tables to ask.

    Without memory an address can still be refused for its form.
    """
    if (refused := _by_form(here, va, how)) is not None:
        return refused
    space = here.space
    if space is None:
        return None
    try:
        verdict = access(space, here.state, VirtAddr(va), how)
    except MemoryReadError as hole:
        return _outside(here, va, how, hole)
    if isinstance(verdict, Allowed):
        return Granted(verdict)
    return _refusal(verdict, how)


def _by_form(here: Situation, va: int, how: Access) -> Refusal | None:
    mode = here.mode
    if mode is None:
        if here.known_mode or here.state.paging not in (Paging.LONG4, Paging.LONG5):
            return None
        # What is not canonical in 57 bits is not canonical at all.
        mode = LA57
    plain = masked(VirtAddr(va), here.state, mode, how)
    last = plain + how.size - 1 & MASK64
    if mode.is_canonical(plain) and mode.is_canonical(last):
        apart = first_separated(here.state, plain, how)
        return None if apart is None else Refusal("lass", apart, how, None, (), _form_vector(how), 0)
    # An access that begins well runs into the gap at its start.
    first = mode.gap.start if mode.is_canonical(plain) else plain
    # Where masking is on for this half, and the address carries a tag, it is the tag that does not fit.
    rule: RuleName = "address-tag" if plain != va else "non-canonical"
    return Refusal(rule, first, how, None, (), _form_vector(how), 0)


def _form_vector(how: Access) -> int:
    """The exception for an address that no table is asked about: #SS for the stack, #GP else."""
    return 12 if how.stack and how.kind is not Kind.FETCH else 13


def _refusal(fault: Fault, how: Access) -> Refusal:
    rule = RULE_OF[fault.rule]
    return Refusal(rule, fault.va, how, _culprit(fault), fault.steps, int(fault.vector), fault.error_code)


def _culprit(fault: Fault) -> Step | None:
    """The entry to blame: the topmost one that takes the right away, else the last one read."""
    place = _RIGHT.get(fault.rule)
    if place is not None:
        return next(step for step in fault.steps if not step.rights[place])
    return fault.steps[-1] if fault.steps else None


def _outside(here: Situation, va: int, how: Access, hole: MemoryReadError) -> Outside:
    """Walk again to keep the steps, up to the table that cannot be read."""
    space = here.space
    assert space is not None  # the caller has walked it
    for page in dict.fromkeys((va, va + how.size - 1 & ~0xFFF)):
        steps: list[Step] = []
        try:
            for step in walk(space, VirtAddr(page & MASK64)):
                steps.append(step)
        except MemoryReadError as again:
            return Outside(page, how, again.pa, tuple(steps))
    return Outside(va, how, hole.pa, ())


def read_virtual(here: Situation, va: int, size: int) -> bytes | None:
    """Bytes at *va* as the CPU itself reads them, None where they cannot be had.

    A fetch past the end of what is mapped or in memory gives what comes before it.
    """
    space = here.space
    if space is None:
        return None
    found = bytearray()
    while len(found) < size:
        at = va + len(found) & MASK64
        part = min(size - len(found), 0x1000 - (at & 0xFFF))
        try:
            # Who may read does not matter here, only whether there is something.
            page = translate(space, VirtAddr(at))
            if isinstance(page, Unmapped):
                break
            found += space.memory.read(page.pa, part)
        except MemoryReadError:
            break
    return bytes(found) if found else None


def physical(here: Situation, va: int) -> int | None:
    """Where *va* lies in physical memory, None if that is not known."""
    space = here.space
    if space is None:
        return None
    try:
        found = translate(space, VirtAddr(va))
    except MemoryReadError:
        return None
    return found.pa if isinstance(found, Mapped) else None


def describe_entry(step: Step) -> str:
    """An entry by level, index, place and value."""
    index = (step.at & 0xFFF) >> 3
    where = "" if is_unplaced(step) else f" at {hex64(step.at)}"
    return f"{step.entry.level.name} entry {index}{where} ({hex64(step.entry.raw)})"


def is_unplaced(step: Step) -> bool:
    """Whether it is not known where the entry lies: in the root, where CR3 is not known."""
    return step.at & ~0xFFF == UNKNOWN_ROOT

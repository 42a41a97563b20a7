"""Top-level tables in a memory, found without registers, with what speaks for each of them.

Roots of one kernel share what they map in the upper half, so they form groups. With page-table
isolation the page after a root holds the user's: the same lower half, and little of the kernel.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

import numpy as np
import numpy.typing as npt

from fivefold import _arguments
from fivefold.arch import FRAME_BITS, AddressSpace, Cr4, Flag, Level, Mapped, TableReader, translate
from fivefold.errors import MemoryReadError, NotKnownError
from fivefold.memory import Source
from fivefold.memory.source import Progress
from fivefold.survey.guest.cpu.encryption import cpu_with
from fivefold.survey.guest.identify import (
    MODES,
    GivenPaging,
    encryption_mask,
    other_paging,
    roots_in_registers,
    table_reader,
)
from fivefold.survey.guest.level_evidence import level_evidence
from fivefold.survey.guest.table_pages import TablePages
from fivefold.survey.guest.vmcoreinfo import KERNEL_WINDOW
from fivefold.survey.space import PTI_USER_BIT
from fivefold.units import MIB, PhysAddr, VirtAddr, hex64

Words = npt.NDArray[np.uint64]
_HALF: Final = 256
_LAST: Final = 511

MAX_ASKED: Final = 256
"""Kernels, or roots without one, that are looked into at most: memory may hold forged ones without end."""

_WINDOW_STEPS: Final = range(KERNEL_WINDOW, KERNEL_WINDOW + (1 << 30), 2 * MIB)


class Confidence(IntEnum):
    """How sure it is that a table is, or was, in use as a root."""

    LOW = 0
    MEDIUM = 1
    HIGH = 2


@dataclass(frozen=True, slots=True)
class Root:
    """A top-level table, or what looks like one; *reasons* are for people.

    *group* numbers roots of one kernel. *pair* is the other half's root under page-table isolation, and
    *is_user_half* says which of the two this is. *cpus*: those whose CR3 it is. *label* says what it is for, by
    evidence (see `fivefold.survey.guest.root_labels`).
    """

    root: PhysAddr
    levels: int
    confidence: Confidence
    reasons: tuple[str, ...]
    group: int
    pair: PhysAddr | None = None
    is_user_half: bool = False
    cpus: tuple[int, ...] = ()
    label: str | None = None
    label_known_from: str | None = None


@dataclass(slots=True)
class _Candidate:
    root: PhysAddr
    levels: int
    entries: Words
    pair: PhysAddr | None = None
    is_user_half: bool = False

    @property
    def kernel_key(self) -> int:
        """The table behind the last slot, where every kernel maps its image; 0 without one."""
        last = int(self.entries[_LAST])
        return last & FRAME_BITS if last & Flag.P else 0

    def half(self, upper: bool) -> Words:
        """Where the present entries of one half lead."""
        part = self.entries[_HALF:] if upper else self.entries[:_HALF]
        return np.where(part & np.uint64(1) != 0, part & np.uint64(FRAME_BITS), np.uint64(0))


def find_roots(
    source: Source,
    levels: int | None = None,
    phys_bits: int | None = None,
    c_bit: int | None = None,
    *,
    progress: Progress | None = None,
) -> list[Root]:
    """The roots in *source*'s memory, labelled, those of most use first. All that may be written of it is read once.

    *levels* keeps roots of 4 or 5 levels. *phys_bits* is MAXPHYADDR where it is known. `NotKnownError` where every CPU
    that pages is outside long mode, unless *levels* are given: what looks like a root would be chance. *c_bit* as in
    `GivenPaging`. *progress* is called with bytes read and bytes in all.
    """
    _arguments.opened("source", source, Source)
    for name, value in (("levels", levels), ("phys_bits", phys_bits), ("c_bit", c_bit)):
        if value is not None:
            _arguments.integer(name, value)
    if levels is None and (other := other_paging(source)) is not None:
        raise NotKnownError(
            f"{source.name}: {other}; expected 4- or 5-level paging: give --levels to look for such roots all the same"
        )
    given = GivenPaging(c_bit=c_bit)
    in_registers, memory = roots_in_registers(source, given), table_reader(source, given)
    mask = encryption_mask(source, given)
    pages = TablePages(source.memory, phys_bits or 48, not_address=mask, progress=progress)
    found = _candidates(memory, pages, _may_have_five(source, in_registers) or levels == 5)
    _add_registers(source, pages, found, in_registers)
    _pair_up(found)
    _add_user_halves(pages, found)
    groups = _groups(found.values())
    code = _CodeFinder(memory)
    # Data may look like a root of five; a kernel below it does not come by chance.
    five = any(c.levels == 5 and code.is_below(c) for c in found.values())
    roots = [_describe(code, c, groups, in_registers.get(c.root, ()), five) for c in found.values()]
    kept = [root for root in roots if levels in (None, root.levels)]
    from fivefold.survey.guest.root_labels import labelled  # which has the class from here

    return labelled(source, kept, cpu_with(c_bit, None))


def _may_have_five(source: Source, in_registers: Mapping[PhysAddr, tuple[int, ...]]) -> bool:
    """Whether roots may have five levels: not where every CPU that has a root walks four."""
    known = [source.cpus[numbers[0]].cr4 for numbers in in_registers.values()]
    return not known or any(cr4 is None or cr4 & Cr4.LA57 for cr4 in known)


def _candidates(memory: TableReader, pages: TablePages, may_have_five: bool) -> dict[PhysAddr, _Candidate]:
    """Tables that could be roots and that no other root has below it."""
    fit = pages.of_level[Level.PML5] if may_have_five else np.empty(0, np.uint64)
    five = _really_five(memory, pages, fit)
    five = np.setdiff1d(five, _below(pages, five, Level.PML5))
    four = np.setdiff1d(pages.of_level[Level.PML4], five)
    four = np.setdiff1d(four, _below(pages, five, Level.PML5))
    four = np.setdiff1d(four, _below(pages, four, Level.PML4))
    found = {}
    for frames, levels in ((five, 5), (four, 4)):
        for frame, entries in zip(map(PhysAddr, frames.tolist()), pages.entries(frames), strict=True):
            found[frame] = _Candidate(frame, levels, entries)
    return found


def _really_five(memory: TableReader, pages: TablePages, frames: Words) -> Words:
    """Those of the pages whose tables do not speak for four levels: one for all that share a kernel is asked."""
    answers: dict[int, bool] = {}
    kept = []
    for frame, entries in zip(map(PhysAddr, frames.tolist()), pages.entries(frames), strict=True):
        key = int(entries[_LAST]) or -frame
        if key not in answers:
            answers[key] = len(answers) >= MAX_ASKED or level_evidence(memory, frame).levels != 4
        if answers[key]:
            kept.append(frame)
    return np.array(kept, np.uint64)


def _below(pages: TablePages, roots: Words, top: Level) -> Words:
    """All tables that hang below *roots*."""
    found: list[Words] = []
    tables = roots
    for number in range(top, Level.PT, -1):
        tables = pages.children(tables, Level(number))
        found.append(tables)
    return np.unique(np.concatenate(found))


def _add_registers(
    source: Source, pages: TablePages, found: dict[PhysAddr, _Candidate], roots: Mapping[PhysAddr, tuple[int, ...]]
) -> None:
    """What a register names is a root, with the levels that its CPU walks, whatever its tables look like."""
    for root, cpus in roots.items():
        entries = pages.entries_at(root)
        cr4 = source.cpus[cpus[0]].cr4
        if entries is None or (root in found and cr4 is None):
            continue
        levels = 5 if cr4 is not None and cr4 & Cr4.LA57 else 4
        found[root] = _Candidate(root, levels, entries)


def _pair_up(found: Mapping[PhysAddr, _Candidate]) -> None:
    """Join the two roots of a process under page-table isolation: neighbours with one lower half."""
    for root, kernel in found.items():
        user = found.get(PhysAddr(root | PTI_USER_BIT))
        if user is None or root & PTI_USER_BIT or user.levels != kernel.levels:
            continue
        if (user.half(False) == kernel.half(False)).all() and _upper(user) < _upper(kernel):
            kernel.pair, user.pair, user.is_user_half = user.root, kernel.root, True


def _add_user_halves(pages: TablePages, found: dict[PhysAddr, _Candidate]) -> None:
    """Find user halves by their company: one that nearly nothing hangs below, as where Linux patches code, is no table.

    All user halves of one kernel have the same entry in the last slot.
    """
    last = {(c.levels, int(c.entries[_LAST])) for c in found.values() if c.is_user_half}
    for root, kernel in [(root, c) for root, c in found.items() if c.pair is None and not root & PTI_USER_BIT]:
        entries = pages.entries_at(PhysAddr(root | PTI_USER_BIT))
        if entries is None or (kernel.levels, int(entries[_LAST])) not in last:
            continue
        user = _Candidate(PhysAddr(root | PTI_USER_BIT), kernel.levels, entries)
        if (user.half(False) == kernel.half(False)).all() and _upper(user) < _upper(kernel):
            kernel.pair, user.pair, user.is_user_half = user.root, root, True
            found[user.root] = user


def _upper(candidate: _Candidate) -> int:
    return int(np.count_nonzero(candidate.half(True)))


def _groups(candidates: Iterable[_Candidate]) -> dict[PhysAddr, tuple[int, int]]:
    """The number of each root's group, and how many roots are in it; the largest group is number 0."""
    members: dict[tuple[int, int], list[PhysAddr]] = {}
    users: list[_Candidate] = []
    for candidate in candidates:
        if candidate.is_user_half:
            users.append(candidate)
        else:
            key = (candidate.kernel_key, candidate.levels) if candidate.kernel_key else (-1, candidate.root)
            members.setdefault(key, []).append(candidate.root)
    ordered = sorted(members.values(), key=lambda roots: (-len(roots), roots))
    numbers = {root: (number, len(roots)) for number, roots in enumerate(ordered) for root in roots}
    return numbers | {user.root: numbers[user.pair] for user in users if user.pair is not None}


def _describe(
    code: _CodeFinder, c: _Candidate, groups: Mapping[PhysAddr, tuple[int, int]], cpus: tuple[int, ...], five: bool
) -> Root:
    group, members = groups[c.root]
    reasons = [f"CR3 of CPU {number}" for number in cpus]
    if members > 1 and not c.is_user_half:
        reasons.append(f"shares the kernel's tables with {members - 1} other root{'s' if members > 2 else ''}")
    if c.pair is not None:
        role = "user half" if c.is_user_half else "kernel half"
        reasons.append(f"{role} of an isolated pair with {hex64(c.pair)}")
    in_window = code.is_below(c)
    if in_window:
        reasons.append("maps code in the kernel's window")
    stray = five and c.levels == 4 and not cpus
    if stray:
        reasons.append("four levels beside roots of five: may be a P4D table that nothing leads to")
    entries = int(np.count_nonzero(c.entries & np.uint64(1)))
    lead = "entry leads" if entries == 1 else "entries lead"
    reasons.append(f"{entries} {lead} to well-formed tables of {c.levels} levels")
    linked = members > 1 or c.pair is not None
    sure = bool(cpus) or (in_window and linked and not stray)
    confidence = Confidence.HIGH if sure else Confidence.MEDIUM if in_window and not stray else Confidence.LOW
    return Root(c.root, c.levels, confidence, tuple(reasons), group, c.pair, c.is_user_half, cpus)


class _CodeFinder:
    """Whether anything executable is mapped in the gibibyte where kernels lie; asked once for a last slot."""

    def __init__(self, memory: TableReader) -> None:
        self._memory = memory
        self._known: dict[tuple[int, int], bool] = {}

    def is_below(self, candidate: _Candidate) -> bool:
        """The answer for a root; no, where tables are missing on the way."""
        last = int(candidate.entries[_LAST])
        key = (last, candidate.levels)
        if key not in self._known:
            self._known[key] = bool(last & 1) and len(self._known) < MAX_ASKED and self._look(candidate)
        return self._known[key]

    def _look(self, candidate: _Candidate) -> bool:
        space = AddressSpace(self._memory, candidate.root, MODES[candidate.levels])
        try:
            found = (translate(space, VirtAddr(va)) for va in _WINDOW_STEPS)
            return any(isinstance(one, Mapped) and one.rights.execute for one in found)
        except MemoryReadError:
            return False

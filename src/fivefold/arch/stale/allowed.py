"""The set of answers that a CPU may give for an address after a list of steps.

A CPU may cache the translation of any present, well-formed path at any time, by itself or entry by entry in
its paging-structure caches. So the model keeps, for one address, every value that each entry on its path may still be
taken to have, and every whole translation that a TLB may hold; an invalidation shrinks them. An
entry that is not present, or malformed, is never cached.

Source: Intel SDM volume 3, "Caching Translation Information".
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from fivefold.arch.entry import Flag
from fivefold.arch.modes import Level
from fivefold.arch.stale.steps import EntryStore, Invlpg, Invlpgb, Invpcid, InvpcidType, LoadCr3, StaleStep, TogglePge
from fivefold.arch.walk import AddressSpace, Mapped, Rights, Translation, Unmapped, slot_of, span_of, translate
from fivefold.units import PhysAddr, VirtAddr


class Cached(NamedTuple):
    """A translation that a TLB may hold: of *pcid*, or of all if *is_global*."""

    pcid: int
    is_global: bool
    pa: PhysAddr
    rights: Rights
    page: Level


@dataclass
class StaleModel:
    """One address of one CPU. *entries* of memory are what stores change; *pge* and *pcide* are CR4's bits."""

    space: AddressSpace
    va: VirtAddr
    entries: dict[int, int]
    pcid: int = 0
    pge: bool = True
    pcide: bool = False
    tlb: set[Cached] = field(default_factory=set)
    paths: set[tuple[int, Level, int, Rights]] = field(default_factory=set)
    """Paging-structure caches: of a PCID, the table that entries of a level lead to, with the rights down to it."""

    def __post_init__(self) -> None:
        """Take in what may be cached before the first step."""
        self._fill()

    def step(self, what: StaleStep) -> None:
        """Carry out one step, and take in what may be cached after it."""
        if isinstance(what, EntryStore):
            self.entries[what.at] = what.value
        elif isinstance(what, LoadCr3):
            self.space = AddressSpace(
                self.space.memory, PhysAddr(what.root), self.space.mode, self.space.cpu, self.space.nxe
            )
            self.pcid = what.pcid if self.pcide else 0
            if not (what.keep and self.pcide):
                self._drop(self.pcid, False)
        elif isinstance(what, TogglePge):
            self.tlb.clear()
            self.paths.clear()
            self.pge = not self.pge
        else:
            self._invalidate(what)
        self._fill()

    def _invalidate(self, what: StaleStep) -> None:
        match what:
            case Invlpg(va):
                self.paths = {path for path in self.paths if path[0] != self.pcid}
                self.tlb = {one for one in self.tlb if not (_meets(one, va, self.va) and self._is_of(one, self.pcid))}
            case Invpcid(InvpcidType.ADDRESS, pcid, va):
                self.paths = {path for path in self.paths if path[0] != pcid}
                self.tlb = {
                    one for one in self.tlb if one.is_global or one.pcid != pcid or not _meets(one, va, self.va)
                }
            case Invpcid(InvpcidType.SINGLE, pcid, _):
                self._drop(pcid, False)
            case Invpcid(kind, _, _):
                self.paths.clear()
                self.tlb = {one for one in self.tlb if one.is_global and kind is InvpcidType.ALL}
            case Invlpgb(address, of, globals_too):
                self.paths = {path for path in self.paths if of is not None and path[0] != of}
                self.tlb = {one for one in self.tlb if not self._broadcast(one, address, of, globals_too)}

    def _broadcast(self, one: Cached, va: int | None, pcid: int | None, globals_too: bool) -> bool:
        hit = va is None or _meets(one, va, self.va)
        return hit and (globals_too if one.is_global else pcid is None or one.pcid == pcid)

    @staticmethod
    def _is_of(one: Cached, pcid: int) -> bool:
        return one.is_global or one.pcid == pcid

    def _drop(self, pcid: int, globals_too: bool) -> None:
        """Drop all of *pcid*, and global translations if asked."""
        self.tlb = {
            one for one in self.tlb if (one.is_global and not globals_too) or (one.pcid != pcid and not one.is_global)
        }
        self.paths = {path for path in self.paths if path[0] != pcid}

    def _fill(self) -> None:
        """Everything that a CPU may cache now: from the root, and from every table that it may have cached."""
        while True:
            before = len(self.paths), len(self.tlb)
            starts = [(self.space.mode.top, int(self.space.root), Rights())]
            starts += [
                (Level(level - 1), table, rights) for pcid, level, table, rights in self.paths if pcid == self.pcid
            ]
            for level, table, rights in starts:
                self._note(level, table, rights)
            if (len(self.paths), len(self.tlb)) == before:
                return

    def _note(self, level: Level, table: int, rights: Rights) -> None:
        entry = self.space.entry_at(slot_of(table, level, self.va), level)
        if not entry.is_present or self.space.reserved(entry):
            return
        through = rights.through(entry)
        frame = self.space.cpu.frame(entry)
        if not entry.is_leaf:
            self.paths.add((self.pcid, level, frame, through))
            return
        is_global = self.pge and bool(entry.raw & Flag.G)
        pa = PhysAddr(frame | self.va & (level.span - 1))
        self.tlb.add(Cached(self.pcid, is_global, pa, through, level))

    def answers(self) -> set[tuple[PhysAddr, Rights] | None]:
        """Every answer that is allowed now: (address, rights), or None for not present or malformed."""
        found: set[tuple[PhysAddr, Rights] | None] = {
            (one.pa, one.rights) for one in self.tlb if self._is_of(one, self.pcid)
        }
        starts = [(self.space.mode.top, int(self.space.root))]
        starts += [(Level(level - 1), table) for pcid, level, table, _ in self.paths if pcid == self.pcid]
        for level, table in starts:
            entry = self.space.entry_at(slot_of(table, level, self.va), level)
            if not entry.is_present or self.space.reserved(entry):
                found.add(None)
        return found


def _meets(one: Cached, va: int, cached_va: int) -> bool:
    """Whether INVLPG of *va* drops the page of *cached_va*; of a page that is cached in pieces, all pieces."""
    return va in span_of(cached_va, one.page)


class WordMemory:
    """Entries by physical address; what is not there is 0."""

    def __init__(self, entries: dict[int, int]) -> None:
        self.entries = entries

    def read(self, pa: PhysAddr, size: int, /) -> bytes:
        """The 8 bytes at *pa*."""
        return self.entries.get(pa, 0).to_bytes(size, "little")


def allowed_answers(
    space: AddressSpace, va: VirtAddr, steps: Iterable[StaleStep], entries: dict[int, int], pcide: bool = False
) -> set[tuple[PhysAddr, Rights] | None]:
    """The answers that a CPU may give for *va* after *steps*; *entries* are the tables before them.

    *space*'s memory is not used: the tables are *entries*, by physical address, which the steps change in a copy.
    """
    words = dict(entries)
    here = AddressSpace(WordMemory(words), space.root, space.mode, space.cpu, space.nxe)
    model = StaleModel(here, va, words, pcide=pcide)
    for step in steps:
        model.step(step)
    return model.answers()


def fresh_answer(space: AddressSpace, va: VirtAddr) -> tuple[PhysAddr, Rights] | None:
    """What the tables say now, as `allowed_answers` has it."""
    found: Translation = translate(space, va)
    if isinstance(found, Unmapped):
        return None
    assert isinstance(found, Mapped)
    return found.pa, found.rights

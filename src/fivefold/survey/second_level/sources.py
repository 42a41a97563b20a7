"""Sources behind second-level tables: the guest's memory, and the tables themselves as an address space."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from fivefold.arch import LA48, TABLE_SIZE, Flag, Level, TableReader
from fivefold.errors import FormatError, MemoryReadError, NotKnownError
from fivefold.memory import Bank, BankedMemory, Source
from fivefold.survey.second_level.collect import (
    Collected,
    SecondLevelKind,
    SecondLevelRoot,
    collect,
    ept_instead,
    kind_seen,
    runs,
    wrong_kind,
)
from fivefold.units import PhysAddr, hex64

SAMPLE = 256
"""Tables that are read to tell which kind they are."""


def _collected(source: Source, root: SecondLevelRoot) -> Collected:
    found = collect(source.memory, root)
    if why := wrong_kind(root, found):
        raise NotKnownError(why)
    return found


def _notes(source: Source, root: SecondLevelRoot, found: Collected) -> tuple[str, ...]:
    told: tuple[str, ...] = (f"read through {root.option}",)
    if found.missing:
        told += (f"{found.missing} tables of {root.option} are not in memory, and what they map is left out",)
    return source.notes + told


def guest_source(source: Source, root: SecondLevelRoot) -> Source:
    """The memory of the guest whose physical addresses *root* translates, in place, without registers.

    Closing it closes *source*. `NotKnownError` where the tables are of another kind, `FormatError` where *source*
    cannot be read in place.
    """
    if not isinstance(source.memory, BankedMemory):
        raise FormatError(f"{source.name} cannot be read in place, which {root.option} needs; save it to a file first")
    found = _collected(source, root)
    host = source.memory.banks()
    banks = []
    for guest, start, size in runs(found.pages):
        for bank in host:
            low, high = max(start, bank.start), min(start + size, bank.end)
            if low < high:
                banks.append(Bank(guest + low - start, bank.data[low - bank.start : high - bank.start]))
    if not banks:
        raise NotKnownError(f"{root.option} maps no memory of {source.name}")
    memory = BankedMemory(banks, f"{source.name} through {root.option}", on_close=source.close)
    return replace(source, memory=memory, cpus=(), vmcoreinfo={}, notes=_notes(source, root, found))


def tables_source(source: Source, root: SecondLevelRoot) -> tuple[Source, SecondLevelRoot]:
    """The tables of *root* alone, as ordinary ones: an address space from the guest's addresses to the host's.

    With it comes the root to read them by. A guest's physical address is not sign-extended, so where four levels map
    its upper half they are put below a fifth one, made for that, in which the address keeps its zeros.
    """
    if root.levels not in (4, 5):
        raise NotKnownError(f"{root.option}: tables of {root.levels} levels are shown by no command; give --cr3 too")
    found = _collected(source, root)
    notes = _notes(source, root, found)
    if root.levels == Level.PML4 and any(guest >> (LA48.va_bits - 1) for guest, _, _ in found.pages):
        root = _with_fifth(found, root)
        notes += (f"shown below a fifth level, made at {hex64(root.root)}: a guest's address is not sign-extended",)
    banks = [Bank(at, memoryview(words.tobytes())) for at, words in found.tables.items()]
    memory = BankedMemory(banks, f"{source.name}: {root.option}", on_close=source.close)
    return replace(source, memory=memory, cpus=(), vmcoreinfo={}, notes=notes), root


def _with_fifth(found: Collected, root: SecondLevelRoot) -> SecondLevelRoot:
    """Add a table of a fifth level to *found*, whose first entry leads to *root*."""
    at = max(found.tables) + TABLE_SIZE
    words = np.zeros(TABLE_SIZE // 8, np.uint64)
    words[0] = int(root.root) | int(Flag.P | Flag.RW | Flag.US | Flag.A)
    found.tables[at] = words
    return SecondLevelRoot(root.kind, at, int(Level.PML5))


def refuse_ept(memory: TableReader, root: PhysAddr, levels: int) -> None:
    """Raise `NotKnownError` where the tables at *root*, given as ordinary ones, are EPT's."""
    try:
        found = collect(memory, SecondLevelRoot(SecondLevelKind.npt, int(root), levels), SAMPLE)
    except (FormatError, MemoryReadError):
        return
    if kind_seen(found) is SecondLevelKind.ept:
        raise NotKnownError(ept_instead(root, levels))


def root_of(kind: str, raw: int, levels: int | None, source: Source) -> SecondLevelRoot:
    """The root that an option of NPT or VT-d names; NPT's levels are the host's, by its registers."""
    if levels is None and kind == SecondLevelKind.npt and source.cpus and source.cpus[0].cr4 is not None:
        levels = 5 if source.cpus[0].cr4 >> 12 & 1 else 4
    if levels is None:
        raise NotKnownError(f"--{kind} {hex64(raw)} does not say how many levels; give --{kind} {raw:#x}:{LA48.top}")
    return SecondLevelRoot(SecondLevelKind(kind), raw, int(Level(levels)))

"""All page tables under a root, level by level, on whole columns.

A table is read once for each level that it is met at, however often it is linked: cost follows the
number of distinct tables.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from fivefold.arch import ENTRIES, TABLE_SIZE, Cpu, Entry, Flag, Level
from fivefold.errors import MemoryReadError
from fivefold.memory import SourceMemory
from fivefold.survey.scan.scan_result import Flags, Words
from fivefold.survey.space import Space
from fivefold.units import PhysAddr

_CHUNK: Final = 4096
"""Tables that are looked at together: 16 MiB of them."""

Entries = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class LevelCensus:
    """The distinct tables of one level, and their entries counted.

    *tables* ascend; *links* says how many entries of the level above (of distinct tables) point to
    each; *used* and *leaves* how many of its 512 entries are present, and how many of those are pages.
    """

    level: Level
    tables: Words
    links: Words
    used: Words
    leaves: Words
    malformed: int
    missing: Words
    """Tables that are linked and not in memory."""

    @property
    def size(self) -> int:
        """Bytes of tables."""
        return TABLE_SIZE * len(self.tables)


def census(space: Space) -> list[LevelCensus]:
    """The levels from the root down to the PT."""
    found: list[LevelCensus] = []
    tables, links = np.array([space.root.value], np.uint64), np.ones(1, np.uint64)
    for number in range(space.levels, 0, -1):
        counted, tables, links = _count(space, Level(number), tables, links)
        found.append(counted)
    return found


def table_frames(space: Space) -> Words:
    """The frames that are page tables of this root, ascending, each once."""
    return np.unique(np.concatenate([counted.tables for counted in census(space)]))


def _count(space: Space, level: Level, tables: Words, links: Words) -> tuple[LevelCensus, Words, Words]:
    """Count one level; the tables of the next and how often each is linked come second and third."""
    used, leaves, readable, malformed = [], [], [], 0
    below: list[Words] = []
    for chosen, entries in _read(space.source.memory, tables):
        here = _Sorted.of(entries, level, space.cpu, space.tables.nxe)
        readable.append(chosen)
        used.append(here.present.sum(1, np.uint64))
        leaves.append(here.leaf.sum(1, np.uint64))
        malformed += int(here.malformed.sum())
        below.append(entries[here.link] & np.uint64(space.cpu.frame_mask(TABLE_SIZE)))
    known = np.concatenate([np.zeros(0, np.int64), *readable])
    next_tables, next_links = np.unique(np.concatenate([np.zeros(0, np.uint64), *below]), return_counts=True)
    counted = LevelCensus(
        level,
        tables[known],
        links[known],
        np.concatenate([np.zeros(0, np.uint64), *used]),
        np.concatenate([np.zeros(0, np.uint64), *leaves]),
        malformed,
        np.delete(tables, known),
    )
    return counted, next_tables, next_links.astype(np.uint64)


@dataclass(frozen=True)
class _Sorted:
    """Entries by what they are: present ones are malformed, pages or links, one of the three."""

    present: Flags
    malformed: Flags
    leaf: Flags
    link: Flags

    @classmethod
    def of(cls, entries: Entries, level: Level, cpu: Cpu, nxe: bool) -> _Sorted:
        present = entries & np.uint64(Flag.P) != 0
        large = (entries & np.uint64(Flag.BIT7) != 0) & (1 < level <= 3)
        reserved = np.where(
            large,
            np.uint64(cpu.must_be_zero(Entry(int(Flag.BIT7), level), nxe)),
            np.uint64(cpu.must_be_zero(Entry(0, level), nxe)),
        )
        malformed = present & (entries & reserved != 0)
        leaf = present & ~malformed & (large | (level == 1))
        return cls(present, malformed, leaf, present & ~malformed & ~leaf)


def _read(memory: SourceMemory, tables: Words) -> Iterator[tuple[npt.NDArray[np.int64], Entries]]:
    """The entries of *tables* in chunks, with the places of those that are in memory."""
    for at in range(0, len(tables), _CHUNK):
        places, pages = [], []
        for place, table in enumerate(tables[at : at + _CHUNK].tolist(), at):
            page = _page(memory, table)
            if page is not None:
                places.append(place)
                pages.append(page)
        entries = np.frombuffer(b"".join(pages), "<u8").reshape(-1, ENTRIES)
        yield np.array(places, np.int64), entries


def _page(memory: SourceMemory, table: int) -> bytes | None:
    try:
        return memory.read(PhysAddr(table), TABLE_SIZE)
    except MemoryReadError:
        return None

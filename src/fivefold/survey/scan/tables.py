"""Page tables, read and distinguished: the one place in `survey/` that goes from a table to the tables below it.

Two orders of descent serve all that is asked of tables here. `in_order` goes through the address space from low to
high, a table at every place where it is linked. `by_level` goes level by level and reads a table once for each level
that it is met at, however often it is linked, so that its cost follows the number of distinct tables.

What an entry is, `classify` says for whole columns. With a `Cpu` it follows the manual: a present entry with a reserved
bit set is malformed. Without one it reads entries as dumpers do, which know P and the page-size bit alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from fivefold.arch import ENTRIES, FRAME_BITS, TABLE_SIZE, Cpu, Entry, Flag, Level, PagingMode, TableReader
from fivefold.errors import MemoryReadError
from fivefold.units import PhysAddr

Words = npt.NDArray[np.uint64]
Marks = npt.NDArray[np.bool_]

CHUNK: Final = 4096
"""Tables of one level that are looked at together: 16 MiB of them."""
REMEMBERED: Final = 1 << 12
"""Tables that are kept in case they are linked again."""

P: Final = np.uint64(int(Flag.P))
PS: Final = np.uint64(int(Flag.BIT7))


class Classes(NamedTuple):
    """What entries are, as columns: a present one is malformed, a leaf or a link to a table, one of the three."""

    present: Marks
    malformed: Marks
    leaf: Marks
    link: Marks


def classify(entries: Words, level: Level, cpu: Cpu | None = None, *, nxe: bool = True) -> Classes:
    """Tell *entries* of *level* apart, in any shape; *nxe* is EFER.NXE, which counts only with *cpu*.

    Without *cpu* no bit is reserved but the page-size bit above the PDPT.
    """
    present = entries & P != 0
    large = (entries & PS != 0) & (level > Level.PT)
    if cpu is None:
        malformed = present & large & (level > Level.PDPT)
    else:
        allowed = large & (level <= Level.PDPT)
        reserved = np.where(
            allowed,
            np.uint64(cpu.must_be_zero(Entry(int(Flag.BIT7), level), nxe)),
            np.uint64(cpu.must_be_zero(Entry(0, level), nxe)),
        )
        malformed = present & (entries & reserved != 0)
    leaf = present & ~malformed & (large | (level == Level.PT))
    return Classes(present, malformed, leaf, present & ~malformed & ~leaf)


class Table(NamedTuple):
    """One table at one place: its 512 *entries* translate from *va* on, which is canonical."""

    va: int
    level: Level
    frame: PhysAddr
    entries: Words

    def address(self, index: int, mode: PagingMode) -> int:
        """The first address that entry *index* translates."""
        at = self.va + index * self.level.span
        return int(mode.sign_extend(at)) if self.level == mode.top else at


class Tables:
    """The tables of one memory: remembered while there is room, and those that are not in memory noted."""

    def __init__(self, memory: TableReader, cpu: Cpu | None = None, *, nxe: bool = True) -> None:
        self.memory, self.cpu, self.nxe = memory, cpu, nxe
        self._missing: dict[PhysAddr, None] = {}
        self._known: dict[int, Words | None] = {}

    @property
    def missing(self) -> list[PhysAddr]:
        """The tables that were asked for so far and are not in memory, each once."""
        return list(self._missing)

    def read(self, frame: int) -> Words | None:
        """Return the 512 entries of the table at *frame*, None where it is not in memory."""
        if frame not in self._known:
            if len(self._known) == REMEMBERED:
                self._known.clear()
            self._known[frame] = self.fetch(frame)
        return self._known[frame]

    def fetch(self, frame: int) -> Words | None:
        """Read like `read`, and remember nothing but that a table is missing."""
        try:
            return np.frombuffer(self.memory.read(PhysAddr(frame), TABLE_SIZE), "<u8")
        except MemoryReadError:
            self._missing[PhysAddr(frame)] = None
            return None

    def classes(self, entries: Words, level: Level) -> Classes:
        """Tell *entries* of *level* apart as the CPU of these tables does."""
        return classify(entries, level, self.cpu, nxe=self.nxe)

    def frames(self, links: Words) -> Words:
        """The frames of the tables that entries point to."""
        mask = FRAME_BITS if self.cpu is None else self.cpu.frame_mask(TABLE_SIZE)
        return links & np.uint64(mask)

    def in_order(self, root: PhysAddr, mode: PagingMode, window: range) -> Iterator[tuple[Table, Words]]:
        """Yield the leaves that touch *window*, ascending: a table and the indices of leaves in it.

        A table that holds links as well comes once for each of its leaves, so that what is below a link comes
        between the leaves beside it. *window* counts addresses as they are in 64 bits.
        """
        yield from self._in_order(Table(0, mode.top, root, np.empty(0, np.uint64)), mode, window)

    def _in_order(self, place: Table, mode: PagingMode, window: range) -> Iterator[tuple[Table, Words]]:
        words = self.read(place.frame)
        if words is None:
            return
        table = place._replace(entries=words)
        classes = self.classes(words, table.level)
        if not classes.link.any():
            inside = _inside(window, table.va, table.level)
            leaves = np.flatnonzero(classes.leaf)
            leaves = leaves[(leaves >= inside.start) & (leaves < inside.stop)]
            if len(leaves):
                yield table, leaves.astype(np.uint64)
            return
        for index in np.flatnonzero(classes.leaf | classes.link).tolist():
            at = table.address(index, mode)
            if at >= window.stop or at + table.level.span <= window.start:
                continue
            if classes.leaf[index]:
                yield table, np.array([index], np.uint64)
            else:
                frame = PhysAddr(int(self.frames(words[index])))
                yield from self._in_order(Table(at, Level(table.level - 1), frame, words), mode, window)

    def by_level(self, root: PhysAddr, top: Level) -> Iterator[LevelChunk]:
        """Yield the distinct tables of each level from *top* down to the PT, ascending, some at a time."""
        frames, links, paths = (np.array([one], np.uint64) for one in (root, 1, 1))
        for number in range(top, 0, -1):
            below: list[tuple[Words, Words]] = [(np.zeros(0, np.uint64), np.zeros(0, np.uint64))]
            for chunk in self._chunks(Level(number), frames, links, paths):
                yield chunk
                rows, _ = np.nonzero(chunk.classes.link)
                below.append((self.frames(chunk.entries[chunk.classes.link]), chunk.paths[rows]))
            targets, weights = (np.concatenate(part) for part in zip(*below, strict=True))
            frames, inverse, counts = np.unique(targets, return_inverse=True, return_counts=True)
            links, paths = counts.astype(np.uint64), np.zeros(len(frames), np.uint64)
            np.add.at(paths, inverse.reshape(-1), weights)

    def _chunks(self, level: Level, frames: Words, links: Words, paths: Words) -> Iterator[LevelChunk]:
        for at in range(0, max(len(frames), 1), CHUNK):
            part = slice(at, at + CHUNK)
            pages = [self.fetch(frame) for frame in frames[part].tolist()]
            there = np.array([page is not None for page in pages], np.bool_)
            entries = np.array([page for page in pages if page is not None], np.uint64).reshape(-1, ENTRIES)
            kept, linked, reached = (column[part][there] for column in (frames, links, paths))
            missing = frames[part][~there]
            yield LevelChunk(level, kept, linked, reached, missing, entries, self.classes(entries, level))


@dataclass(frozen=True)
class LevelChunk:
    """Some distinct tables of one level, in ascending order of their frames.

    *links*: how many entries of the level above, of distinct tables, point to each; *paths*: on how many ways from the
    root each is reached. *entries* has a row of 512 for each. *missing*: tables that are linked and not in memory.
    """

    level: Level
    frames: Words
    links: Words
    paths: Words
    missing: Words
    entries: Words
    classes: Classes


def _inside(window: range, va: int, level: Level) -> range:
    """Which entries of a table that begins at *va* touch *window*."""
    first = max(window.start - va, 0) >> level.shift
    return range(first, max(-(-(window.stop - va) >> level.shift), 0))

"""Who maps this memory: the way back from physical to virtual addresses, over any number of roots."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from math import prod
from operator import attrgetter
from typing import Final, NamedTuple

import numpy as np

from fivefold import _arguments
from fivefold.arch import ENTRIES, Level, Rights, TooManyRuns
from fivefold.memory import Extent, SourceMemory
from fivefold.memory.source import Progress
from fivefold.notebook import SHOWN, html_table
from fivefold.survey.scan.frame_sets import LeafRuns
from fivefold.survey.scan.info_word import level_of
from fivefold.survey.scan.regions import PAGE_NAMES, Stride
from fivefold.survey.scan.scan import MAX_RANGES
from fivefold.survey.scan.scan_result import Contiguity, RegionKind, ScanResult, ScanSettings, column
from fivefold.survey.scan.table_census import census
from fivefold.survey.space import Space
from fivefold.units import MASK64, PhysAddr, VirtAddr, format_size, hex64

SEARCH_STEP: Final = 4 << 20
"""Bytes that are searched together."""

MAX_SHARED: Final = 1 << 16
"""Shared tables that are looked into; tables that share each other without end are refused beyond it."""


MAX_PLACES: Final = 1 << 18
"""Places of one range of memory in one space that are listed; more are refused."""

SHARED_ABOVE: Final = 16
"""A shared table with more ranges than this is searched once; its places are listed with how often they repeat."""


class Place(NamedTuple):
    """A run of virtual addresses that leads to *phys*, in one space.

    *strides* say where it is there again, through tables that are mapped in a row, as in `Region.strides`.
    """

    root: PhysAddr
    levels: int
    va: VirtAddr
    size: int
    phys: PhysAddr
    level: Level
    rights: Rights
    area: str | None
    strides: tuple[Stride, ...] = ()
    symbol: str | None = None

    @property
    def repeats(self) -> int:
        """How many times more it is there."""
        return prod(stride.times for stride in self.strides) - 1

    @property
    def every(self) -> int:
        """How many bytes further each time, where one stride describes all; else 0."""
        return self.strides[0].bytes if len(self.strides) == 1 else 0

    @property
    def page(self) -> str:
        """``4K``, ``2M`` or ``1G``."""
        return PAGE_NAMES[self.level]


class TableUse(NamedTuple):
    """The page at *frame* is a page table of *root*, at *level*."""

    frame: PhysAddr
    root: PhysAddr
    levels: int
    level: Level


@dataclass(slots=True)
class Answer:
    """What is known of *target*, a run of physical memory: where it is mapped, and for what root it is a table."""

    target: range
    places: list[Place] = field(default_factory=list)
    tables: list[TableUse] = field(default_factory=list)

    def _repr_html_(self) -> str:
        rows: list[tuple[object, ...]] = [
            (hex64(one.va), format_size(one.size), hex64(one.phys), str(one.rights), one.area, one.symbol)
            for one in self.places
        ]
        uses = ", ".join(f"a {one.level.name} table of root {hex64(one.root)}" for one in self.tables)
        caption = f"where {hex64(self.target.start)}-{hex64(self.target.stop)} is mapped"
        more = f"it is {uses}" if uses else "it is no table of these spaces"
        return html_table(caption, ("from", "size", "phys", "rights", "area", "symbol"), rows[:SHOWN], left_out=more)


def find_mappings(spaces: Iterable[Space], targets: Sequence[range]) -> list[Answer]:
    """Where each of *targets* is mapped in each of *spaces*; ranges of physical addresses, ends exclusive.

    Each space is scanned once. `TooManyRuns` where one unfolds beyond bounds.
    """
    _arguments.instance("spaces", spaces, Iterable, expected="several Spaces")
    _arguments.instance("targets", targets, Sequence, expected="several ranges")
    for target in targets:
        _arguments.instance("one of targets", target, range)
    answers = [Answer(target) for target in targets]
    for space in spaces:
        _arguments.opened("one of spaces", space, Space)
        finder = _Finder(space)
        levels = [(one.level, one.tables) for one in census(space)]
        for answer in answers:
            answer.places += finder.places(answer.target)
            for level, tables in levels:
                bounds = np.array([answer.target.start & ~0xFFF, answer.target.stop], np.uint64)
                low, high = np.searchsorted(tables, bounds)
                found = tables[low:high].tolist()
                answer.tables += [TableUse(PhysAddr(frame), space.root.value, space.levels, level) for frame in found]
    return answers


class _Finder:
    """One space, scanned, with what lies behind its shared tables as far as it was asked for."""

    def __init__(self, space: Space) -> None:
        self.space = space
        self._behind: dict[tuple[int, int], tuple[int, ScanResult]] = {}
        self._whole = self._scan(0, MASK64)

    def _scan(self, first: int, last: int) -> ScanResult:
        space = self.space
        settings = ScanSettings.for_cpu(
            space.cpu,
            space.tables.nxe,
            contiguity=Contiguity.BREAK,
            first=first,
            last=last,
            repeat_above=SHARED_ABOVE,
        )
        return space.run(settings, MAX_RANGES)

    def places(self, target: range) -> list[Place]:
        """Every place of *target*, ascending."""
        found = self._at_most(self._in(self._whole, target, {}))
        return sorted(found, key=lambda place: place.va)

    def _at_most(self, places: Iterator[Place]) -> list[Place]:
        found = list(islice(places, MAX_PLACES + 1))
        if len(found) > MAX_PLACES:
            raise TooManyRuns(self.space.root.value, MAX_PLACES)
        return found

    def _in(self, result: ScanResult, target: range, known: dict[tuple[int, int], list[Place]]) -> Iterator[Place]:
        yield from self._mapped(result, target)
        rows = result.rows[result.kind == RegionKind.REPEAT]
        columns = [column(rows, name).tolist() for name in ("start", "last", "phys", "info")]
        for start, last, phys, info in zip(*columns, strict=True):
            span = Level(level_of(info)).span * ENTRIES
            first, behind = self._table(phys, info, start, span)
            if (phys, info) not in known:
                known[phys, info] = self._at_most(self._in(behind, target, known))
            times = (last - start + 1) // span
            again = (Stride(times, span),) if times > 1 else ()
            for place in known[phys, info]:
                moved = VirtAddr(place.va - first + start)
                yield place._replace(va=moved, strides=(*place.strides, *again))

    def _table(self, phys: int, info: int, start: int, span: int) -> tuple[int, ScanResult]:
        """What a shared table maps, listed from the place where it was looked at first."""
        key = (phys, info)
        if key not in self._behind:
            if len(self._behind) == MAX_SHARED:
                raise TooManyRuns(self.space.root.value, MAX_SHARED)
            self._behind[key] = (start, self._scan(start, start + span - 1))
        return self._behind[key]

    def _mapped(self, result: ScanResult, target: range) -> Iterator[Place]:
        leaves = LeafRuns.of_rows(result.rows)
        low, high = np.uint64(target.start), np.uint64(target.stop)
        hit = leaves.where((leaves.phys < high) & (leaves.phys + leaves.size > low))
        columns = (hit.start, hit.phys, hit.size, hit.level, hit.writable, hit.user, hit.executable)
        for va, pa, size, level, w, u, x in zip(*(part.tolist() for part in columns), strict=True):
            skipped = max(target.start - pa, 0)
            end = min(pa + size, target.stop)
            yield Place(
                self.space.root.value,
                self.space.levels,
                VirtAddr(va + skipped),
                end - pa - skipped,
                PhysAddr(pa + skipped),
                Level(level),
                Rights(w, u, x),
                self.space.areas.name_at(va + skipped),
                symbol=self.space.symbols.at(va + skipped),
            )


def _worth_searching(memory: SourceMemory, pattern: bytes) -> list[Extent]:
    """Where *pattern* can stand: around what is written, as far as its own zeros reach out of it."""
    if not any(pattern):
        return memory.extents
    over = len(pattern) - 1
    wide = [Extent(run.start - over, run.end + over) for run in memory.written()]
    found: list[Extent] = []
    for extent in memory.extents:
        for number in range(bisect_left(wide, extent.start, key=attrgetter("end")), len(wide)):
            run = wide[number]
            if run.start >= extent.end:
                break
            low, high = max(run.start, extent.start), min(run.end, extent.end)
            if found and low <= found[-1].end and found[-1].start >= extent.start:
                found[-1] = Extent(found[-1].start, max(high, found[-1].end))
            elif low < high:
                found.append(Extent(low, high))
    return found


def search_memory(
    memory: SourceMemory, pattern: bytes, limit: int, *, progress: Progress | None = None
) -> list[PhysAddr]:
    """The first *limit* physical addresses at which *pattern* stands, overlapping ones too; holes part memory.

    Where a file is sparse nothing but zeros is looked for; a damaged page is a hole. *progress* is called with bytes
    searched and bytes in all.
    """
    if not hasattr(memory, "extents"):
        raise TypeError(f"memory is {memory!r}; expected memory, such as Space.source.memory")
    if getattr(memory, "closed", False):
        raise ValueError(f"memory is closed: {memory.name}; expected it open")
    _arguments.instance("pattern", pattern, bytes)
    _arguments.integer("limit", limit)
    if not pattern:
        raise ValueError("nothing to search for; expected one byte or more")
    return list(islice(_places_of(memory, pattern, progress), max(limit, 0)))


def _places_of(memory: SourceMemory, pattern: bytes, progress: Progress | None) -> Iterator[PhysAddr]:
    searched = _worth_searching(memory, pattern)
    done, total = 0, sum(extent.end - extent.start for extent in searched)
    for extent in searched:
        for at in range(extent.start, extent.end, SEARCH_STEP):
            # The last bytes of a step are the beginning of what may end in the next.
            size = min(SEARCH_STEP + len(pattern) - 1, extent.end - at)
            for start, data in memory.readable(PhysAddr(at), size):
                place = data.find(pattern)  # takes time with the size of both, not with their product
                while place >= 0:
                    yield PhysAddr(start + place)
                    place = data.find(pattern, place + 1)
            done += min(SEARCH_STEP, extent.end - at)
            if progress is not None:
                progress(done, total)

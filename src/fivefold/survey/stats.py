"""How much memory page tables take, how full they are, and what they map."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from typing import Final

import numpy as np

from fivefold import _arguments
from fivefold.arch import ENTRIES, Level, Rights
from fivefold.notebook import html_table
from fivefold.survey.scan.frame_sets import LeafRuns
from fivefold.survey.scan.regions import PAGE_NAMES, spell
from fivefold.survey.scan.scan import MAX_RANGES
from fivefold.survey.scan.scan_result import Contiguity, RegionKind, ScanCounts, ScanSettings, Words
from fivefold.survey.scan.select import HALF
from fivefold.survey.scan.table_census import LevelCensus, census
from fivefold.survey.space import Space
from fivefold.units import MASK64, format_size

SHARED_ABOVE: Final = 0
"""Every table is looked at once for each set of rights."""


@dataclass(frozen=True, slots=True)
class LevelStats:
    """The tables of one level. *shared* ones are linked more than once; *fill* is how much of their entries is used.

    *leaves* are pages that their entries map, each table counted once, however often it is mapped.
    """

    level: Level
    tables: int
    bytes: int
    shared: int
    links: int
    used: int
    fill: float
    leaves: int
    malformed: int
    missing: int


@dataclass(frozen=True, slots=True)
class MappedBytes:
    """Virtual bytes, by what they are: all places count, also of memory that is mapped again."""

    by_page: dict[str, int]
    by_half: dict[str, int]
    by_rights: dict[str, int]
    by_area: dict[str, int]


@dataclass(frozen=True, slots=True)
class Stats:
    """One space in numbers; sizes in bytes. *physical*: memory that is mapped at all, each frame once."""

    space: Space
    levels: tuple[LevelStats, ...]
    counts: ScanCounts
    mapped: MappedBytes
    physical: int
    mapped_twice: int
    """Of `physical`, what is mapped at two addresses or more; a shared table counts once for each set of rights."""

    @property
    def tables(self) -> int:
        """Distinct frames that are tables; one that serves two levels counts once."""
        return self.counts.tables_met

    def _repr_html_(self) -> str:
        rows = [
            (one.level.name, one.tables, format_size(one.bytes), one.shared, one.links, f"{one.fill:.0%}", one.leaves)
            for one in self.levels
        ]
        caption = f"{self.space.source.name}: {self.tables} tables, {format_size(self.table_bytes)}"
        columns = ("level", "tables", "memory", "shared", "links", "entries used", "pages mapped")
        return html_table(caption, columns, rows)

    @property
    def is_complete(self) -> bool:
        """Whether `mapped` has all; it leaves out what shared tables unfold into beyond bounds."""
        return sum(self.mapped.by_half.values()) == self.counts.mapped_bytes

    @property
    def table_bytes(self) -> int:
        """Memory that the tables take."""
        return self.tables * 4096


def stats(space: Space) -> Stats:
    """Count everything under the root of *space*. `TooManyRuns` where it unfolds beyond bounds."""
    _arguments.opened("space", space, Space)
    settings = ScanSettings.for_cpu(space.cpu, space.tables.nxe, contiguity=Contiguity.BREAK, repeat_above=SHARED_ABOVE)
    apart = space.run(settings, MAX_RANGES)
    leaves = LeafRuns.of(apart)
    physical = leaves.frames.size
    return Stats(
        space,
        tuple(_level(one) for one in census(space)),
        apart.counts,
        mapped_bytes(space),
        physical,
        _twice(leaves),
    )


def _level(one: LevelCensus) -> LevelStats:
    used, tables = int(one.used.sum()), len(one.tables)
    return LevelStats(
        one.level,
        tables,
        one.size,
        int((one.links > np.uint64(1)).sum()),
        int(one.links.sum()),
        used,
        used / (tables * ENTRIES) if tables else 0.0,
        int(one.leaves.sum()),
        one.malformed,
        len(one.missing),
    )


def _twice(leaves: LeafRuns) -> int:
    """Bytes of memory that two or more of the runs cover."""
    points = np.concatenate([leaves.phys, leaves.phys + leaves.size])
    steps = np.concatenate([np.ones(len(leaves.phys), np.int64), -np.ones(len(leaves.phys), np.int64)])
    order = np.argsort(points, kind="stable")
    depth = np.cumsum(steps[order])[:-1]
    lengths = np.diff(points[order])
    return int(lengths[depth > 1].sum())


def mapped_bytes(space: Space) -> MappedBytes:
    """Count bytes by page size, half, rights and area, from the merged scan, where shared tables are unfolded."""
    result = space.scan()
    chosen = result.kind == RegionKind.MAPPED
    start, last, size, level = (part[chosen] for part in (result.start, result.last, result.size, result.level))
    rights = [Rights(*word) for word in product((False, True), repeat=3)]
    columns = [part[chosen] for part in (result.writable, result.user, result.executable)]
    by_rights = {
        spell(one): size[np.logical_and.reduce([part == right for part, right in zip(columns, one, strict=True)])]
        for one in rights
    }
    by_area = {
        area.name: _overlap(start, last, area.start, area.end - 1)
        for area in space.areas.areas
        if area.kind != "unknown"
    }
    unknown = [(area.start, area.end - 1) for area in space.areas.areas if area.kind == "unknown"]
    if not space.areas.areas:
        unknown = [(0, MASK64)]
    by_area["unnamed"] = np.concatenate([_overlap(start, last, *ends) for ends in unknown] or [size[:0]])
    return MappedBytes(
        _sums({name: size[level == np.uint64(number)] for number, name in PAGE_NAMES.items()}),
        _sums({"user": size[start < np.uint64(HALF)], "kernel": size[start >= np.uint64(HALF)]}),
        _sums(by_rights),
        _sums(by_area),
    )


def _overlap(start: Words, last: Words, low: int, high: int) -> Words:
    """Bytes of each run between *low* and *high*, both inclusive."""
    first, final = np.maximum(start, np.uint64(low)), np.minimum(last, np.uint64(high))
    inside = first <= final
    return final[inside] - first[inside] + np.uint64(1)


def _sums(parts: Mapping[str, Words]) -> dict[str, int]:
    """The sum of each, without those that are empty."""
    sums = {name: int(part.sum()) for name, part in parts.items()}
    return {name: total for name, total in sums.items() if total}

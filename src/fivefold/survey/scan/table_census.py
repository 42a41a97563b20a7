"""All page tables under a root, level by level, on whole columns.

A table is read once for each level that it is met at, however often it is linked: cost follows the
number of distinct tables.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter

import numpy as np

from fivefold.arch import TABLE_SIZE, Level
from fivefold.survey.scan.tables import LevelChunk, Tables, Words
from fivefold.survey.space import Space
from fivefold.units import PhysAddr


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
    tables = Tables(space.source.memory, space.cpu, nxe=space.tables.nxe)
    chunks = tables.by_level(PhysAddr(space.root.value), Level(space.levels))
    return [_total(level, list(map(_counted, group))) for level, group in groupby(chunks, attrgetter("level"))]


def table_frames(space: Space) -> Words:
    """The frames that are page tables of this root, ascending, each once."""
    return np.unique(np.concatenate([counted.tables for counted in census(space)]))


def _counted(chunk: LevelChunk) -> LevelCensus:
    """Count a chunk, whose entries are let go."""
    return LevelCensus(
        chunk.level,
        chunk.frames,
        chunk.links,
        chunk.classes.present.sum(1, np.uint64),
        chunk.classes.leaf.sum(1, np.uint64),
        int(chunk.classes.malformed.sum()),
        chunk.missing,
    )


def _total(level: Level, parts: list[LevelCensus]) -> LevelCensus:
    tables, links, used, leaves, missing = (
        np.concatenate([getattr(part, name) for part in parts])
        for name in ("tables", "links", "used", "leaves", "missing")
    )
    return LevelCensus(level, tables, links, used, leaves, sum(part.malformed for part in parts), missing)

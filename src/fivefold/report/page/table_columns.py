"""The page tables of a space as packed columns, so that a page can walk them by itself."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple

import numpy as np

from fivefold.arch import ENTRIES, Level
from fivefold.report.page.packed import Packed, Words, pack
from fivefold.survey.scan.tables import Tables
from fivefold.survey.space import Space

MAX_TABLES: Final = 1 << 14
MAX_TEXT: Final = 2 << 20
"""Characters that the tables may take on a page; PTs beyond that are left out, and said."""


class TableColumns(NamedTuple):
    """*frames* by number and, in the same order, the 512 *entries* of each; *left_out* tables are not among them."""

    frames: Packed
    entries: Packed
    left_out: int


def table_columns(spaces: Iterable[Space], most: int = MAX_TABLES, text: int = MAX_TEXT) -> TableColumns:
    """The distinct tables of all *spaces*, from the roots down; a table that is not in memory is not on the page."""
    found: dict[Level, dict[int, Words]] = {level: {} for level in sorted(Level, reverse=True)}
    for space in spaces:
        tables = space.plain_tables
        for chunk in Tables(tables.memory, tables.cpu, nxe=tables.nxe).by_level(space.root.value, space.mode.value.top):
            found[chunk.level].update(zip(chunk.frames.tolist(), chunk.entries, strict=True))
    entries: dict[int, Words] = {}
    for level in found.values():
        for frame, row in level.items():
            entries.setdefault(frame, row)  # a frame that serves two levels is one table
    ordered = list(entries)
    kept = ordered[:most]
    packed = _packed(kept, entries)
    while len(packed.entries.text) > text and len(kept) > 1:
        kept = kept[: max(1, int(len(kept) * 0.9 * text / len(packed.entries.text)))]
        packed = _packed(kept, entries)
    return packed._replace(left_out=len(ordered) - len(kept))


def _packed(frames: list[int], entries: dict[int, Words]) -> TableColumns:
    words = np.concatenate([entries[frame] for frame in frames]) if frames else np.empty(0, np.uint64)
    numbers = np.array(frames, np.uint64) >> np.uint64(12)
    return TableColumns(pack({"frame": numbers}), pack({"entry": words}, restart=ENTRIES), 0)

"""Page tables for dump.py to read: five levels, up to 65,536 leaf tables, with what the scan must find in them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np

BASE: Final = 0x1000_0000
"""Physical address of the first table."""
MAPPED_FROM: Final = 0x10_0000_0000
LEAF: Final = np.uint64(0x8000_0000_0000_0063)
TABLE: Final = np.uint64(0x67)
PRESENT_RUN: Final = 126
ABSENT_RUN: Final = 31
"""Mean lengths of runs, in entries: 27 M leaves in 214,000 ranges."""
BLOCK: Final = 1024
"""Tables that are written at a time."""


@dataclass(frozen=True)
class Image:
    """Tables in one array of rows, the root last, and what is in them."""

    tables: Any
    leaves: int
    ranges: int

    @property
    def root(self) -> int:
        """Physical address of the root."""
        return BASE + 4096 * (len(self.tables) - 1)

    @property
    def banks(self) -> list[tuple[int, Any]]:
        """As the scan takes it."""
        return [(BASE, self.tables)]


def upper(tables: Any, leaf_order: Any) -> None:
    """Write the tables above, behind the leaf tables, which come in *leaf_order*; the root is the last row."""
    numbers, at = leaf_order.astype(np.uint64), len(leaf_order)
    for _level in range(2, 6):
        entries = np.uint64(BASE) + (numbers << np.uint64(12)) | TABLE
        rows = -(-len(entries) // 512)
        tables[at : at + rows].reshape(-1)[: len(entries)] = entries
        numbers = np.arange(at, at + rows, dtype=np.uint64)
        at += rows


def empty(leaf_tables: int) -> Any:
    """Room for *leaf_tables* and those above them, touched once so that no bench meets its pages first."""
    rows, total = leaf_tables, leaf_tables
    for _level in range(2, 6):
        rows = -(-rows // 512)
        total += rows
    tables = np.empty((total, 512), "<u8")
    tables[:] = 0
    return tables


def runs(leaf_tables: int = 65_536, shuffled: bool = False) -> Image:
    """Runs of pages that follow on, and gaps between them; *shuffled*: the leaf tables lie anywhere."""
    rng = np.random.default_rng(5)
    total = 512 * leaf_tables
    count = total // (PRESENT_RUN + ABSENT_RUN) * 2
    lengths = np.empty(2 * count, np.int64)
    lengths[0::2] = rng.integers(1, 2 * ABSENT_RUN, count)
    lengths[1::2] = rng.integers(1, 2 * PRESENT_RUN, count)
    ends = np.minimum(np.cumsum(lengths), total)
    present = np.repeat(np.arange(2 * count) % 2 == 1, np.diff(ends, prepend=0))
    order = rng.permutation(leaf_tables) if shuffled else np.arange(leaf_tables)
    tables = empty(leaf_tables)
    for first in range(0, leaf_tables, BLOCK):
        pages = np.arange(512 * first, min(512 * (first + BLOCK), total), dtype=np.uint64)
        entries = np.uint64(MAPPED_FROM) + (pages << np.uint64(12)) | LEAF
        tables[order[first : first + BLOCK]] = np.where(present[pages], entries, np.uint64(0)).reshape(-1, 512)
    upper(tables, order)
    return Image(tables, int(present.sum()), int(np.count_nonzero(present & ~np.roll(present, 1))))


def scattered(leaf_tables: int, leaves: int = 1_000_000) -> Image:
    """Leaves anywhere, all of one page, so that none follows on from another."""
    tables = empty(leaf_tables)
    places = np.random.default_rng(6).choice(512 * leaf_tables, leaves, replace=False)
    tables[:leaf_tables].reshape(-1)[places] = np.uint64(MAPPED_FROM) | LEAF
    upper(tables, np.arange(leaf_tables))
    return Image(tables, leaves, leaves)


def alternating(leaves: int = 1_000_000) -> Image:
    """Leaves one beside the other whose flags alternate."""
    leaf_tables = -(-leaves // 512)
    tables = empty(leaf_tables)
    pages = np.arange(leaves, dtype=np.uint64)
    flat = tables[:leaf_tables].reshape(-1)
    flat[:leaves] = np.uint64(MAPPED_FROM) + (pages << np.uint64(12)) | LEAF ^ (pages & np.uint64(1)) << np.uint64(1)
    upper(tables, np.arange(leaf_tables))
    return Image(tables, leaves, leaves)

"""Every leaf of an address space, one by one and in order, with the tables that they come from.

Entries are read as dumpers read them, by P and the page-size bit: a leaf whose reserved bits are set is listed too.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from fivefold.arch import AddressSpace, Level
from fivefold.survey.scan.tables import Tables, Words
from fivefold.units import PhysAddr


class LeafTable(NamedTuple):
    """Leaves in one table, which begins at address *va*: *indices* and raw *entries*, equally long."""

    va: int
    level: Level
    table: PhysAddr
    indices: Words
    entries: Words


class Leaves:
    """The leaves under one root; `missing` fills up with tables that are not in memory."""

    def __init__(self, space: AddressSpace) -> None:
        self.space = space
        self._tables = Tables(space.memory)

    @property
    def missing(self) -> list[PhysAddr]:
        """The tables that were asked for so far and are not in memory, each once."""
        return self._tables.missing

    def count(self) -> int:
        """How many leaves there are, shared tables counted at every place."""
        chunks = self._tables.by_level(self.space.root, self.space.mode.top)
        return sum(int((chunk.paths * chunk.classes.leaf.sum(1, np.uint64)).sum()) for chunk in chunks)

    def count_in(self, window: range, enough: int) -> int:
        """How many leaves touch *window*; the count may stop once it is past *enough*."""
        total = 0
        for table in self.tables(window):
            total += len(table.indices)
            if total > enough:
                break
        return total

    def tables(self, window: range) -> Iterator[LeafTable]:
        """The leaves that touch *window*, ascending: table by table, large leaves between them."""
        for table, indices in self._tables.in_order(self.space.root, self.space.mode, window):
            yield LeafTable(table.va, table.level, table.frame, indices, table.entries[indices.astype(np.intp)])

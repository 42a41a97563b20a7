"""Leaves as QEMU's monitor prints them for ``info tlb``: a line each.

Letters, as far as set: no-execute (X), G, large page (P), D, A, PCD (C), PWT (T), U, W. Addresses of physical
memory are cut to 50 bits, as there. Source: QEMU 7.2, *target/i386/monitor.c*, and its output.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final, TextIO

from fivefold.arch import Flag, Level
from fivefold.survey.scan.leaves import LeafTable

MAX_LINES: Final = 10_000_000
"""More are printed only if asked for."""

_LETTERS: Final = (
    (Flag.NX, "X"),
    (Flag.G, "G"),
    (Flag.BIT7, "P"),
    (Flag.D, "D"),
    (Flag.A, "A"),
    (Flag.PCD, "C"),
    (Flag.PWT, "T"),
    (Flag.US, "U"),
    (Flag.RW, "W"),
)
_FRAME: Final = (1 << 50) - 1
_CACHED: Final = 1 << 10


def write_leaves(tables: Iterable[LeafTable], out: TextIO) -> None:
    """A line for each leaf, as the tables come."""
    known: dict[tuple[int, Level, int, int], list[tuple[int, str]]] = {}
    for table in tables:
        key = (table.table, table.level, int(table.indices[0]), len(table.indices))
        if key not in known:
            if len(known) == _CACHED:
                known.clear()
            known[key] = list(_endings(table))
        out.writelines(f"{table.va + offset:016x}{ending}" for offset, ending in known[key])


def _endings(table: LeafTable) -> Iterator[tuple[int, str]]:
    """What follows the address in each line, with the address's distance from the table's first."""
    frame = _FRAME & ~(table.level.span - 1)
    # Bit 7 is PAT in a PT entry, and QEMU leaves it out.
    barred = int(Flag.BIT7) if table.level == Level.PT else 0
    for index, entry in zip(table.indices.tolist(), table.entries.tolist(), strict=True):
        yield index * table.level.span, f": {entry & frame:016x} {letters(entry & ~barred)}\n"


def letters(entry: int) -> str:
    """Nine letters, a dash for each bit that is clear.

    >>> letters(0x8000000000000163)
    'XG-DA---W'
    """
    return "".join(letter if entry & bit else "-" for bit, letter in _LETTERS)

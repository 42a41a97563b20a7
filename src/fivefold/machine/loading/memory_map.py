"""Which physical addresses a guest has: the firmware's map and the RAM behind it."""

from __future__ import annotations

from itertools import pairwise
from typing import Final

from fivefold.errors import MachineError
from fivefold.machine.base import MapRow
from fivefold.memory import Extent
from fivefold.units import GIB, MIB, PAGE, format_size, hex64

RAM: Final = 1
RESERVED: Final = 2
PC_SPLIT: Final = 3 * GIB
"""QEMU's "pc" machine: RAM beyond this is moved above 4 GiB (hw/i386/pc_piix, measured on 7.2)."""
EBDA: Final = 0x9FC00
VGA_HOLE: Final = Extent(0xA0000, 0xC0000)
MINIMUM: Final = MIB


def pc_map(memory: int) -> tuple[MapRow, ...]:
    """The map a PC's firmware would give for *memory* bytes of RAM.

    >>> [hex(row.start) for row in pc_map(8 << 30) if row.kind == RAM]
    ['0x0', '0x100000', '0x100000000']
    """
    _check_size(memory)
    low, high = min(memory, PC_SPLIT), max(memory - PC_SPLIT, 0)
    rows = [MapRow(0, EBDA), MapRow(EBDA, MIB, RESERVED)]
    if low > MIB:
        rows.append(MapRow(MIB, low))
    rows.append(MapRow(0xFFFC0000, 4 * GIB, RESERVED))
    if high:
        rows.append(MapRow(4 * GIB, 4 * GIB + high))
    return tuple(rows)


def memory_map(memory: int | tuple[MapRow, ...]) -> tuple[MapRow, ...]:
    """The rows for a guest's *memory*; an explicit map is checked and sorted by address."""
    if isinstance(memory, int):
        return pc_map(memory)
    rows = tuple(sorted(memory))
    for row in rows:
        if not 0 <= row.start < row.end <= 1 << 52:
            raise MachineError(f"memory map row {hex64(row.start)} to {hex64(row.end)} is not a range of 52 bits")
    for low, high in pairwise(rows):
        if high.start < low.end:
            raise MachineError(f"memory map rows overlap at {hex64(high.start)}")
    if not any(row.kind == RAM for row in rows):
        raise MachineError("the memory map has no RAM")
    return rows


def ram_extents(rows: tuple[MapRow, ...]) -> list[Extent]:
    """Where bytes are: RAM rows out to whole pages, neighbours joined (the page of the EBDA is RAM too)."""
    found: list[Extent] = []
    for row in rows:
        if row.kind != RAM:
            continue
        start, end = row.start & ~(PAGE - 1), -(-row.end // PAGE) * PAGE
        if found and start <= found[-1].end:
            found[-1] = Extent(found[-1].start, max(end, found[-1].end))
        else:
            found.append(Extent(start, end))
    return found


def split_extents(memory: int, split: int) -> list[tuple[Extent, int]]:
    """Where QEMU puts *memory* bytes of one backing file: (extent, offset in the file).

    The file has bytes for the VGA hole too, but the guest does not see them there.
    """
    _check_size(memory)
    low = min(memory, split)
    parts = [(Extent(0, VGA_HOLE.start), 0), (Extent(VGA_HOLE.end, low), VGA_HOLE.end)]
    if memory > split:
        parts.append((Extent(4 * GIB, 4 * GIB + memory - split), split))
    return parts


def _check_size(memory: int) -> None:
    if memory < MINIMUM or memory % PAGE:
        raise MachineError(
            f"{format_size(max(memory, 0))} of memory cannot be: expected whole pages, {format_size(MINIMUM)} or more"
        )
    if memory > 1 << 51:
        raise MachineError(f"{format_size(memory)} of memory does not fit 52 physical address bits")

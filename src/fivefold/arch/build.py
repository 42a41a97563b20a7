"""Build page tables: frames and memory are the caller's, nothing is overwritten, links come last.

For bootloaders and for tests. A table is complete before the entry that points to it is written.
"""

from __future__ import annotations

from typing import Final, Protocol

from fivefold.arch.entry import Entry, Flag
from fivefold.arch.modes import TABLE_SIZE, Level
from fivefold.arch.walk import AddressSpace, Step, TableReader, slot_of, span_of, walk
from fivefold.errors import FivefoldError
from fivefold.units import PhysAddr, VirtAddr, hex64

TABLE: Final = int(Flag.P | Flag.RW | Flag.US)
"""The flags of an entry that points to a table: everything is allowed, the leaf decides."""


class TableMemory(TableReader, Protocol):
    """What a builder needs of memory."""

    def write(self, pa: PhysAddr, data: bytes, /) -> None:
        """Write all of *data*, or raise `MemoryReadError` having written nothing."""
        ...


class FrameSource(Protocol):
    """Where tables come from."""

    def take(self) -> PhysAddr:
        """Hand over a zeroed, 4 KiB aligned frame that nobody else holds."""
        ...


class MappingConflict(FivefoldError):  # noqa: N818 - named for what happened
    """Something is already mapped, or a table hangs, where the page would go."""

    def __init__(self, va: VirtAddr, found: Step) -> None:
        super().__init__(
            f"cannot map {hex64(va)}: {found.entry.level.name} entry at "
            f"{hex64(found.at)} already holds {hex64(found.entry.raw)}"
        )
        self.va = va
        self.found = found


class OutOfFrames(FivefoldError):  # noqa: N818 - likewise
    """The frames for tables are used up."""

    def __init__(self, start: PhysAddr, count: int) -> None:
        super().__init__(f"all {count} table frames from {hex64(start)} are taken")
        self.start = start
        self.count = count


class Frames:
    """Frames in order from *start*, zeroed as they are taken, *count* at the most."""

    def __init__(self, memory: TableMemory, start: PhysAddr, count: int) -> None:
        if start % TABLE_SIZE:
            raise ValueError(f"table frames from {hex64(start)}; expected a multiple of 4096")
        self.memory = memory
        self.start = start
        self.count = count
        self.taken = 0

    def take(self) -> PhysAddr:
        """The next frame, or `OutOfFrames`."""
        if self.taken == self.count:
            raise OutOfFrames(self.start, self.count)
        frame = PhysAddr(self.start + TABLE_SIZE * self.taken)
        self.memory.write(frame, bytes(TABLE_SIZE))
        self.taken += 1
        return frame


def map_page(memory: TableMemory, space: AddressSpace, va: VirtAddr, leaf: Entry, frames: FrameSource) -> None:
    """Make *leaf* the entry that translates *va*, adding tables as needed.

    `MappingConflict`, having written no entry, if the place is taken; `ValueError` if *leaf* is
    not a leaf that this CPU accepts, or *va* does not fit it.
    """
    _check_leaf(space, va, leaf)
    *_, last = walk(space, va)
    if last.entry.is_present or last.entry.level < leaf.level:
        raise MappingConflict(va, last)
    raw = leaf.raw
    for number in range(leaf.level, last.entry.level):
        table = frames.take()
        memory.write(slot_of(table, Level(number), va), raw.to_bytes(8, "little"))
        raw = table | TABLE
    memory.write(last.at, raw.to_bytes(8, "little"))  # link last


def _check_leaf(space: AddressSpace, va: VirtAddr, leaf: Entry) -> None:
    """Refuse a leaf that would not map the page that its caller means."""
    if not (leaf.is_present and leaf.is_leaf):
        raise ValueError(f"{hex64(leaf.raw)} is not a present leaf at {leaf.level.name}")
    if bits := space.reserved(leaf):
        raise ValueError(f"{hex64(leaf.raw)} at {leaf.level.name} sets reserved bits {hex64(bits)}")
    if not space.mode.is_canonical(va) or va != span_of(va, leaf.level).start:
        raise ValueError(f"{hex64(va)} is not the canonical start of a {leaf.level.name} page")

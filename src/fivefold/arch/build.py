"""Build page tables: frames and memory are the caller's, nothing is overwritten, links come last.

For bootloaders and for tests. A table is complete before the entry that points to it is written.
"""

from __future__ import annotations

from typing import Final, Protocol

from fivefold.arch.entry import FRAME_BITS, Entry, Flag
from fivefold.arch.modes import ENTRIES, TABLE_SIZE, Level
from fivefold.arch.walk import AddressSpace, Rights, Step, TableReader, slot_of, span_of, walk
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
        """Hand over a zeroed, 4 KiB aligned frame that is not in use."""
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
    last = _place(space, va, leaf.level)
    if last.entry.is_present:
        raise MappingConflict(va, last)
    raw = leaf.raw
    for number in range(leaf.level, last.entry.level):
        table = frames.take()
        memory.write(slot_of(table, Level(number), va), raw.to_bytes(8, "little"))
        raw = table | TABLE
    memory.write(last.at, raw.to_bytes(8, "little"))  # link last


def _place(space: AddressSpace, va: VirtAddr, level: Level) -> Step:
    """The entry of *level* on the path of *va*, or the one above it that ends the path."""
    steps = walk(space, va)
    step = next(steps)
    while step.entry.level > level and (below := next(steps, None)):
        step = below
    return step


def _check_leaf(space: AddressSpace, va: VirtAddr, leaf: Entry) -> None:
    """Refuse a leaf that would not map the page that its caller means."""
    if not (leaf.is_present and leaf.is_leaf):
        raise ValueError(f"{hex64(leaf.raw)} is not a present leaf at {leaf.level.name}")
    if bits := space.reserved(leaf):
        raise ValueError(f"{hex64(leaf.raw)} at {leaf.level.name} sets reserved bits {hex64(bits)}")
    if not space.mode.is_canonical(va) or va != span_of(va, leaf.level).start:
        raise ValueError(f"{hex64(va)} is not the canonical start of a {leaf.level.name} page")


def map_range(
    memory: TableMemory,
    space: AddressSpace,
    window: range,
    raw: int,
    frames: FrameSource,
    largest: Level = Level.PDPT,
) -> None:
    """Map *window* to consecutive physical memory, in the largest pages that fit.

    *window* holds the addresses, its end exclusive; *raw* is the physical address of the first
    byte and the flags of every leaf, without bit 7: the page size is set where it is due. Pages are
    as large as alignment, *largest* and the CPU allow. `MappingConflict` before the first write
    if any page's place is taken, `ValueError` for a window or flags that cannot be. Where
    frames run out, what is linked stays, and no entry points to an unfinished table.
    """
    if not space.cpu.gib_pages:
        largest = min(largest, Level.PD)
    job = _RangeJob(memory, space, window, raw, frames, largest)
    job.check()
    job.fill(space.root, space.mode.top, 0, fresh=False)


class _RangeJob:
    """One `map_range`, while it descends. Addresses are cut to what the tables index."""

    def __init__(
        self,
        memory: TableMemory,
        space: AddressSpace,
        window: range,
        raw: int,
        frames: FrameSource,
        largest: Level,
    ) -> None:
        _check_window(space, window, raw)
        low_bits = (1 << space.mode.va_bits) - 1
        start = window.start & low_bits
        self.memory, self.space, self.frames, self.largest = memory, space, frames, largest
        self.start, self.end, self.window = start, start + len(window), window
        self.pa = raw & FRAME_BITS
        self.flags = raw & ~FRAME_BITS

    def check(self) -> None:
        """Raise `MappingConflict` if a page's place is taken. Reads existing tables only."""
        self._check(self.space.root, self.space.mode.top, 0)

    def fill(self, table: PhysAddr, level: Level, base: int, fresh: bool) -> None:
        """Write the entries of *window* in the table at *table*, which spans from *base*.

        A fresh table is written in one go: nothing points to it yet.
        """
        entries = bytearray(TABLE_SIZE) if fresh else bytearray(self.memory.read(table, TABLE_SIZE))
        for index in self._slots(level, base):
            slot = slice(8 * index, 8 * index + 8)
            old = int.from_bytes(entries[slot], "little")
            if old & 1:
                child = PhysAddr(self.space.cpu.frame(Entry(old, level)))
                self.fill(child, Level(level - 1), base + index * level.span, fresh=False)
                continue
            entries[slot] = self._entry(level, base + index * level.span).to_bytes(8, "little")
            if not fresh:
                self.memory.write(PhysAddr(table + 8 * index), bytes(entries[slot]))
        if fresh:
            self.memory.write(table, bytes(entries))

    def _entry(self, level: Level, first: int) -> int:
        """The new entry that spans from *first*: a leaf, or a link to a finished table."""
        if self._is_page(level, first):
            size_bit = int(Flag.BIT7) if level > Level.PT else 0
            return self.pa + first - self.start | self.flags | size_bit
        table = self.frames.take()
        self.fill(table, Level(level - 1), first, fresh=True)
        return table | TABLE

    def _is_page(self, level: Level, first: int) -> bool:
        """Whether one page of *level* goes at *first*."""
        inside = self.start <= first and first + level.span <= self.end
        aligned = (self.pa + first - self.start) % level.span == 0
        return level == Level.PT or (level <= self.largest and inside and aligned)

    def _slots(self, level: Level, base: int) -> range:
        """The indices of the entries that meet the window in a table spanning from *base*."""
        low = max(self.start - base, 0) // level.span
        high = -(-(self.end - base) // level.span)
        return range(low, min(high, ENTRIES))

    def _check(self, table: PhysAddr, level: Level, base: int) -> None:
        for index in self._slots(level, base):
            at = PhysAddr(table + 8 * index)
            entry = self.space.entry_at(at, level)
            if not entry.is_present:
                continue
            first = base + index * level.span
            if entry.is_leaf or self.space.reserved(entry) or self._is_page(level, first):
                va = self.space.mode.sign_extend(max(first, self.start))
                raise MappingConflict(va, Step(at, entry, Rights()))
            self._check(PhysAddr(self.space.cpu.frame(entry)), Level(level - 1), first)


def _check_window(space: AddressSpace, window: range, raw: int) -> None:
    """Refuse a window, or leaves, that cannot be."""
    if not window or window.start % TABLE_SIZE or window.stop % TABLE_SIZE:
        raise ValueError(f"{hex64(window.start)} to {hex64(window.stop)}: expected whole pages, at least one")
    ends = (window.start, window.stop - 1)
    crosses = window.start < space.mode.gap.start < window.stop
    if crosses or not all(space.mode.is_canonical(end) for end in ends):
        raise ValueError(f"{hex64(window.start)} to {hex64(window.stop)} is not canonical throughout")
    last = Entry(raw + len(window) - TABLE_SIZE, Level.PT)
    bad = space.reserved(Entry(raw, Level.PT)) | space.reserved(last) | raw & Flag.BIT7
    if not raw & Flag.P or bad:
        raise ValueError(f"{hex64(raw)} for {len(window) >> 12} pages: not present, or bits {hex64(bad)} set")

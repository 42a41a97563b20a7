"""Worlds that a loader may leave: where its tables, its information and what it took lie, and what the map says.

Each is drawn from a seed and is as unkind as the contract of the 64-bit entry allows. `World.why_not` is the answer
that the kernel must agree with: it is made while the world is built, from no code of the kernel.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final

from fivefold.arch import LA48, LA57, PagingMode
from fivefold.units import GIB, KIB, MIB

PAGE = 4096
LARGE = 2 * MIB
RAM, RESERVED, ACPI, NVS, BAD = 1, 2, 3, 4, 5
START_MAGIC = 0x336E_C578
TABLE = "a page table"
PRESENT, FRAME, NX = 1, 0xF_FFFF_FFFF_F000, 1 << 63
READ_EARLY = ("the image", "the start information", "the memory map", "the command line")
Row = tuple[int, int, int]
"""Start, size and type."""


@dataclass
class World:
    """What is in memory, and which of it may not be written."""

    mode: PagingMode
    info: int
    root: int
    load: int
    image_end: int
    rows: list[Row]
    cmdline: str
    memory: dict[int, bytes] = field(default_factory=dict)
    """What lies where: each run of bytes by its address."""
    used: list[tuple[int, int, str]] = field(default_factory=list)
    """Ranges in use, with what they hold."""

    registers: LoaderRegisters | None = None
    """What the loader leaves on, in a world that is booted."""
    leave: int = 0
    """The page of the loader's last instructions, its GDT and stack, in a world that is booted."""
    tables: list[tuple[int, int]] = field(default_factory=list)
    """Page tables of 4 KiB pages: where each lies, and the first byte of the 2 MiB that it maps."""

    def why_not(self, start: int, end: int, walked: bool = True) -> str:
        """What is wrong with writing to [start, end); "" if nothing is. *walked*: the CPU still walks the tables."""
        used = self.used if walked else [row for row in self.used if row[2] != TABLE]
        for low, high, what in used:
            if low < end and start < high:
                return f"{start:#x} to {end:#x} meets {what}, {low:#x} to {high:#x}"
        for at, first in self.tables if walked else ():
            if end <= at or at + PAGE <= start:
                continue
            needed = any(low < first + LARGE and first < high for low, high in [*self.read, (start, end)])
            if needed:
                return f"{start:#x} to {end:#x} meets the page table at {at:#x} for {first:#x}"
        for low, size, kind in self.rows:
            if kind != RAM and size and low < end and start < min(low + size, 1 << 64):
                return f"{start:#x} to {end:#x} meets a row of type {kind} at {low:#x}"
        at = start
        while at < end:  # every byte in some row of RAM
            beyond = [low + size for low, size, kind in self.rows if kind == RAM and low <= at < low + size]
            if not beyond:
                return f"{at:#x} is not RAM"
            at = max(beyond)
        return ""

    @cached_property
    def end(self) -> int:
        """Exclusive end of the highest page that is all memory."""
        at = max(low + size for low, size, kind in self.rows if kind == RAM) & ~(PAGE - 1)
        while any(kind != RAM and size and low < at and at - PAGE < low + size for low, size, kind in self.rows):
            at -= PAGE
        return at

    def maps_memory(self, start: int, end: int) -> str:
        """Which table of 4 KiB pages lies in [start, end) and maps memory; "" if none does."""
        for at, first in self.tables:
            if at < end and start < at + PAGE and first < self.end:
                return f"{start:#x} to {end:#x} meets the page table at {at:#x}, which maps {first:#x}"
        return ""

    @cached_property
    def read(self) -> list[tuple[int, int]]:
        """What the boot code reads or runs at its own address."""
        return [(low, high) for low, high, what in self.used if what in READ_EARLY]


@dataclass(frozen=True)
class Wish:
    """What a world that is booted must have: an image of *size* bytes, *words*, a *module* if that is not empty."""

    size: int
    words: str
    module: bytes = b""
    high: bool = False
    """Memory above 4 GiB as well, where anything but the image may lie."""
    largest: int = LARGE
    """The largest page that the CPU has."""


HIGH: Final = (4 * GIB, 4 * GIB + 48 * MIB)


class Builder:
    """Puts things where nothing lies yet."""

    def __init__(self, dice: random.Random, spans: tuple[tuple[int, int], ...]) -> None:
        self.dice = dice
        self.spans = spans
        self.taken: list[tuple[int, int, str]] = []

    def take(self, size: int, what: str, near: tuple[int, ...] = (), align: int = 16) -> int:
        """A free place for *size* bytes: beside one of *near*, in the middle, at the top, or low; noted as used."""
        for _attempt in range(200):
            at = self._draw(size, near) & ~(align - 1)
            if at >= PAGE and self.fits(at, at + size):
                self.taken.append((at, at + size, what))
                return at
        raise AssertionError(f"no room for {what}")

    def _draw(self, size: int, near: tuple[int, ...]) -> int:
        how = self.dice.randrange(5)
        if how == 0 and near:
            return self.dice.choice(near) + self.dice.choice((-size, -size - 64, 0, 64, -PAGE - size, PAGE))
        if how == 1:
            return self.dice.randrange(PAGE, 0x9_F000 - PAGE)
        if how == 2:
            return self.dice.choice(self.spans)[1] - size - self.dice.choice((0, 16, PAGE, 3 * PAGE))
        start, end = self.dice.choice(self.spans)
        low = max(start, MIB if how == 3 else 16 * MIB)
        return self.dice.randrange(low, max(low + LARGE, end - size))

    def fits(self, start: int, end: int) -> bool:
        inside = end <= 0x9_F000 or any(low <= start and end <= high for low, high in self.spans)
        return inside and not any(low < end and start < high for low, high, _ in self.taken)


def draw_world(seed: int, wish: Wish | None = None) -> World:
    """The world of *seed*: a loader's 64-bit hand-over; a *wish* decides what a world that is booted must have.

    `AssertionError` if there is no room for all that the loader has.
    """
    dice = random.Random(seed)
    mode = dice.choice((LA48, LA57))
    top = dice.choice((24, 32, 48, 64, 100, 200)) * MIB
    image_size = dice.choice((0x8_3000, 0x48_3000))
    image_size = image_size if wish is None else wish.size
    builder = Builder(dice, ((MIB, top), HIGH) if wish is not None and wish.high else ((MIB, top),))
    load = LARGE * dice.randrange(1, (top - image_size) // LARGE)
    image_end = load + image_size
    builder.taken.append((load, image_end, "the image"))
    near = (load, image_end, 16 * MIB, top)
    world = World(mode, 0, 0, load, image_end, [], "")
    rows = draw_rows(dice, top, builder)
    if len(builder.spans) > 1 and dice.random() < 0.8:  # else what lies there lies in no memory of the map
        rows.insert(dice.randrange(len(rows)), (HIGH[0], HIGH[1] - HIGH[0], RAM))
    words = draw_words(dice, builder, near) if wish is None else wish.words
    write_info(world, builder, rows, words, near, wish)
    map_all(world, builder, near, wish)
    world.used = [row for row in builder.taken if row[0] not in dict(world.tables)]
    world.rows = rows
    world.cmdline = words
    return world


def draw_rows(dice: random.Random, top: int, builder: Builder) -> list[Row]:
    """A memory map: sometimes unsorted, overlapping, of 511 rows, with rows of one page, empty or wrapping ones."""
    rows: list[Row] = [(0, 0x9_FC00, RAM), (0x9_FC00, KIB, RESERVED), (0xF_0000, 64 * KIB, RESERVED)]
    at = MIB
    while at < top:
        size = min(dice.choice((PAGE, 5 * PAGE, MIB, 3 * MIB, 40 * MIB, top)), top - at)
        rows.append((at, size, RAM))
        at += size
    holes = dice.choice((0, 1, 5, 40))
    if dice.random() < 0.05:
        holes = 511 - len(rows)
    for _ in range(max(holes, 0)):
        size = dice.choice((PAGE, PAGE, 100, 3 * PAGE, MIB)) if holes < 50 else PAGE
        start = dice.randrange(MIB, top - size) & ~(dice.choice((1, PAGE)) - 1)
        page, end = start & ~(PAGE - 1), start + size + PAGE - 1 & ~(PAGE - 1)
        if not any(low < end and page < high for low, high, _ in builder.taken):
            rows.append((start, size, dice.choice((RESERVED, ACPI, NVS, BAD, 7))))
            builder.taken.append((page, end, "firmware's"))
    if dice.random() < 0.2:
        rows.append((dice.randrange(top), 0, RESERVED))
    if dice.random() < 0.1:
        rows.append((top, (1 << 64) - top + dice.choice((0, PAGE)) - PAGE, RESERVED))
    if dice.random() < 0.4:
        dice.shuffle(rows)
    return rows[:512]


def draw_words(dice: random.Random, builder: Builder, near: tuple[int, ...]) -> str:
    """A command line that asks for a random place, after none, one or three earlier kernels."""
    words = []
    for _ in range(dice.choice((0, 0, 1, 3))):
        size = dice.choice((0x8_3000, 0x41_000, MIB))
        try:
            at = builder.take(size, "an earlier kernel", near, LARGE)
        except AssertionError:
            break
        words.append(f"previous={at:#x} previous_end={at + size:#x}")
    return " ".join([*words, f"kaslr={dice.getrandbits(32)}"])


def write_info(
    world: World, builder: Builder, rows: list[Row], words: str, near: tuple[int, ...], wish: Wish | None
) -> None:
    """The start information and all that it points to, each somewhere else; if *wish*, some in reserved rows."""
    dice, modules = builder.dice, []
    if wish is not None and wish.module:
        modules.append((builder.take(len(wish.module), "a module", near, PAGE), len(wish.module)))
        world.memory[modules[0][0]] = wish.module
    for _ in range(dice.choice((0, 0, 1, 3))):
        size = dice.choice((1, PAGE, 100_000, 3 * MIB))
        try:
            modules.append((builder.take(size, "a module", near, PAGE), size))
        except AssertionError:
            break
    info = builder.take(56, "the start information", near)
    rows_at = builder.take(24 * (len(rows) + 2 * (wish is not None)), "the memory map", near)
    cmdline_at = builder.take(len(words) + 1, "the command line", near)
    listed = builder.take(32 * len(modules), "the list of modules", near) if modules else 0
    if wish is not None and dice.random() < 0.3 and len(rows) < 500:
        rows += [row for row in (reserved(info, 56, builder), reserved(cmdline_at, len(words), builder)) if row]
    head = struct.pack("<IIIIQQQQII", START_MAGIC, 1, 0, len(modules), listed, cmdline_at, 0, rows_at, len(rows), 0)
    world.info = info
    world.memory[info] = head
    world.memory[rows_at] = b"".join(struct.pack("<QQII", *row, 0) for row in rows)
    world.memory[cmdline_at] = words.encode() + b"\0"
    if modules:
        world.memory[listed] = b"".join(struct.pack("<QQQQ", *module, 0, 0) for module in modules)


def reserved(at: int, size: int, builder: Builder) -> Row | None:
    """A row that calls the pages of [at, at + size) reserved, as a ROM's are; None where something else lies there."""
    start, end = at & ~(PAGE - 1), at + size + PAGE - 1 & ~(PAGE - 1)
    met = [low for low, high, _ in builder.taken if low < end and start < high]
    return (start, end - start, RESERVED) if met == [at] else None


def map_all(world: World, builder: Builder, near: tuple[int, ...], wish: Wish | None) -> None:
    """Tables that map all memory at itself, each table anywhere, with 4 KiB pages for some of it."""
    tables: dict[int, dict[int, int]] = {}

    def table(near: tuple[int, ...]) -> int:
        at = builder.take(PAGE, TABLE, near, PAGE)
        tables[at] = {}
        return at

    def table_for(at: int, level: int) -> int:
        """The table of *level* that maps *at*, made if there is none."""
        found = world.root
        for above in range(len(world.mode.levels), level, -1):
            index = at >> 3 + 9 * above & 511
            if index not in tables[found]:
                tables[found][index] = table(near) | 0x67
            found = tables[found][index] & ~(PAGE - 1)
        return found

    dice = builder.dice
    world.root = table(near)
    habits = Habits(world, builder, wish)
    if 0 not in habits.huge:
        table_for(0, 2)
    small = dice.choice((0.0, 0.1, 0.5, 1.0))
    for at in (at for start, end in builder.spans for at in range(start & -LARGE, end, LARGE)):
        if at & -GIB in habits.huge:
            tables[table_for(at, 3)][at >> 30 & 511] = at & -GIB | 0xE3 | habits.extra
        elif dice.random() < small:
            ptes = table((at,) if dice.random() < 0.3 else near)
            world.tables.append((ptes, at))
            tables[table_for(at, 2)][at >> 21 & 511] = ptes | 0x67
            tables[ptes] = {k: at | k << 12 | 0x63 | habits.extra for k in range(512)}
        else:
            tables[table_for(at, 2)][at >> 21 & 511] = at | 0xE3 | habits.extra
    if wish is not None:
        world.leave = builder.take(PAGE, "the loader's last page", near, PAGE)
        needed = [*((low, high) for low, high, _ in builder.taken), (0, MIB)]
        for at in [at for at in tables if at not in dict(world.tables)]:
            for index, entry in tables[at].items():
                tables[at][index] = habits.narrowed(entry, needed)
    for at, entries in tables.items():
        data = bytearray(PAGE)
        for index, entry in entries.items():
            struct.pack_into("<Q", data, 8 * index, entry)
        world.memory[at] = bytes(data)


class Habits:
    """How a loader fills its entries; in a world that is only asked about: as plainly as can be."""

    def __init__(self, world: World, builder: Builder, wish: Wish | None) -> None:
        self.dice, self.extra, self.huge = builder.dice, 0, set[int]()
        self.bad: tuple[int, ...] = (0,)
        if wish is None:
            return
        dice = self.dice
        world.registers = draw_registers(dice)
        self.extra = dice.choice((0, 0x100, 0xE00, 1 << 52))
        self.bad = dice.choice(((0,), (0, 2, PRESENT, NX if world.registers.nxe else 2)))
        if wish.largest > LARGE and dice.random() < 0.5:
            self.huge = {gib for start, _ in builder.spans for gib in (start & -GIB,) if dice.random() < 0.7}

    def narrowed(self, entry: int, needed: list[tuple[int, int]]) -> int:
        """A large leaf *entry*, sometimes absent, read-only or not executable where nothing of the loader lies."""
        start, size = entry & FRAME, LARGE if entry & FRAME not in self.huge else GIB
        if not entry & 0x80 or any(low < start + size and start < high for low, high in needed):
            return entry
        return entry ^ self.dice.choice((0, 0, 0, *self.bad))


@dataclass(frozen=True)
class LoaderRegisters:
    """What a loader leaves on beside paging."""

    cr0: int
    cr4: int
    nxe: bool


def draw_registers(dice: random.Random) -> LoaderRegisters:
    """CR0 with WP, NE and MP or not, CR4 with DE, MCE, PGE and OSFXSR or not; PAE, LA57, PE, PG, ET are added."""
    cr0 = sum(bit for bit in (1 << 16, 1 << 5, 1 << 1) if dice.random() < 0.5)
    cr4 = sum(bit for bit in (1 << 3, 1 << 6, 1 << 7, 1 << 9) if dice.random() < 0.5)
    return LoaderRegisters(cr0, cr4, dice.random() < 0.5)


def worlds(first: int, count: int) -> Iterator[tuple[int, World]]:
    """*count* worlds from seed *first*; seeds that leave no room for a loader's things are passed over."""
    seed = first
    while count:
        try:
            world = draw_world(seed)
        except AssertionError:
            seed += 1
            continue
        yield seed, world
        count -= 1
        seed += 1

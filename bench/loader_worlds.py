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

from fivefold.arch import LA48, LA57, PagingMode
from fivefold.units import KIB, MIB

PAGE = 4096
LARGE = 2 * MIB
RAM, RESERVED, ACPI, NVS, BAD = 1, 2, 3, 4, 5
START_MAGIC = 0x336E_C578
TABLE = "a page table"
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
    def read(self) -> list[tuple[int, int]]:
        """What the boot code reads or runs at its own address."""
        return [(low, high) for low, high, what in self.used if what in READ_EARLY]


class Builder:
    """Puts things where nothing lies yet."""

    def __init__(self, dice: random.Random, tops: tuple[int, ...]) -> None:
        self.dice = dice
        self.tops = tops
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
            return self.dice.choice(self.tops) - size - self.dice.choice((0, 16, PAGE, 3 * PAGE))
        low = MIB if how == 3 else 16 * MIB
        return self.dice.randrange(low, max(low + LARGE, self.dice.choice(self.tops) - size))

    def fits(self, start: int, end: int) -> bool:
        inside = end <= 0x9_F000 or any(end <= top and start >= MIB for top in self.tops)
        return inside and not any(low < end and start < high for low, high, _ in self.taken)


def draw_world(seed: int) -> World:
    """The world of *seed*: a loader's 64-bit hand-over, 1 GiB mapped at itself at most."""
    dice = random.Random(seed)
    mode = dice.choice((LA48, LA57))
    top = dice.choice((24, 32, 48, 64, 100, 200)) * MIB
    image_size = dice.choice((0x8_3000, 0x48_3000))
    builder = Builder(dice, (top,))
    load = LARGE * dice.randrange(1, (top - image_size) // LARGE)
    image_end = load + image_size
    builder.taken.append((load, image_end, "the image"))
    near = (load, image_end, 16 * MIB, top)
    world = World(mode, 0, 0, load, image_end, [], "")
    rows = draw_rows(dice, top, builder)
    words = draw_words(dice, builder, near)
    write_info(world, dice, builder, rows, words, near)
    map_all(world, dice, builder, near, top)
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
    world: World, dice: random.Random, builder: Builder, rows: list[Row], words: str, near: tuple[int, ...]
) -> None:
    """The start information and all that it points to, each somewhere else."""
    modules = []
    for _ in range(dice.choice((0, 0, 1, 3))):
        size = dice.choice((1, PAGE, 100_000, 3 * MIB))
        try:
            modules.append((builder.take(size, "a module", near, PAGE), size))
        except AssertionError:
            break
    info = builder.take(56, "the start information", near)
    rows_at = builder.take(24 * len(rows), "the memory map", near)
    cmdline_at = builder.take(len(words) + 1, "the command line", near)
    listed = builder.take(32 * len(modules), "the list of modules", near) if modules else 0
    head = struct.pack("<IIIIQQQQII", START_MAGIC, 1, 0, len(modules), listed, cmdline_at, 0, rows_at, len(rows), 0)
    world.info = info
    world.memory[info] = head
    world.memory[rows_at] = b"".join(struct.pack("<QQII", *row, 0) for row in rows)
    world.memory[cmdline_at] = words.encode() + b"\0"
    if modules:
        world.memory[listed] = b"".join(struct.pack("<QQQQ", *module, 0, 0) for module in modules)


def map_all(world: World, dice: random.Random, builder: Builder, near: tuple[int, ...], top: int) -> None:
    """Tables that map [0, top) at itself, each table anywhere, with 4 KiB pages for some of it."""
    tables: dict[int, dict[int, int]] = {}

    def table(near: tuple[int, ...]) -> int:
        at = builder.take(PAGE, TABLE, near, PAGE)
        tables[at] = {}
        return at

    root = at = table(near)
    for _ in range(len(world.mode.levels) - 2):
        below = table(near)
        tables[at][0] = below | 0x67
        at = below
    small = dice.choice((0.0, 0.1, 0.5, 1.0))
    for i in range((top + LARGE - 1) // LARGE):
        if dice.random() < small:
            ptes = table((i * LARGE,) if dice.random() < 0.3 else near)
            world.tables.append((ptes, i * LARGE))
            tables[at][i] = ptes | 0x67
            tables[ptes] = {k: i << 21 | k << 12 | 0x63 for k in range(512)}
        else:
            tables[at][i] = i << 21 | 0xE3
    world.root = root
    for at, entries in tables.items():
        data = bytearray(PAGE)
        for index, entry in entries.items():
            struct.pack_into("<Q", data, 8 * index, entry)
        world.memory[at] = bytes(data)


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

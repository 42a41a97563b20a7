"""The scan against a witness that remembers nothing: every entry under every path, then merged."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache

import pytest

from fivefold.arch import LA48, LA57, AddressSpace, Cpu, Entry, Level, PagingMode, Rights
from fivefold.errors import MemoryReadError
from fivefold.kernel.modes import mode_bindings
from fivefold.kernel.scan import scan as kernel_scan
from fivefold.kernel.scan import scan_ranges
from fivefold.memory import Extent, Ram
from fivefold.metal.program import Program
from fivefold.metal.run import host, interpreter
from fivefold.metal.run.instance import Instance
from fivefold.survey.scan import scan as host_scan
from fivefold.survey.scan import scan_buffers
from fivefold.survey.scan.scan_result import Contiguity, ScanSettings
from fivefold.units import MASK64, PhysAddr

MODES = (LA48, LA57)
FRAME = 0x000F_FFFF_FFFF_F000
P, W, U, A, D, PS, NX = 1, 2, 4, 1 << 5, 1 << 6, 1 << 7, 1 << 63
WINDOW = 0x4000_0000_0000
"""Where the running code sees physical address 0."""


@dataclass(frozen=True)
class Asked:
    """What to look at, and what tells ranges apart."""

    flags: int = 0x8000_0000_0000_119F
    contiguity: int = scan_ranges.BREAK
    first: int = 0
    last: int = MASK64
    memo: bool = True
    capacity: int = 1 << 12
    growing: bool = False


@dataclass(frozen=True)
class Range:
    """A range as both sides tell it."""

    start: int
    last: int
    kind: int
    level: int
    rights: Rights
    flags: int
    phys: int
    contiguous: bool = True


def witness(space: AddressSpace, asked: Asked) -> list[Range]:
    """Every range, from `arch` alone."""
    table = space.memory.read(space.root, 4096)
    return list(merged(in_table(space, asked, table, space.mode.top, 0, Rights()), asked.contiguity))


def in_table(
    space: AddressSpace, asked: Asked, table: bytes, level: Level, base: int, rights: Rights
) -> Iterator[Range]:
    for i, raw in enumerate(struct.unpack("<512Q", table)):
        start = space.mode.sign_extend(base + i * level.span)
        if raw & P and start <= asked.last and start + level.span - 1 >= asked.first:
            yield from behind(space, asked, Entry(raw, level), start, rights)


def behind(space: AddressSpace, asked: Asked, entry: Entry, start: int, rights: Rights) -> Iterator[Range]:
    last = start + entry.level.span - 1
    told = entry.raw & asked.flags & ~(FRAME if entry.level == 1 else FRAME & ~0x1000)
    wrong = space.reserved(entry)
    narrowed = rights.through(entry)
    phys = space.cpu.frame(entry)
    if wrong:
        none = Rights(False, False, False)
        yield Range(start, last, scan_ranges.MALFORMED, entry.level, none, told | wrong, entry.raw & FRAME)
    elif entry.is_leaf:
        yield Range(start, last, scan_ranges.MAPPED, entry.level, narrowed, told, phys)
    else:
        try:
            table = space.memory.read(PhysAddr(phys), 4096)
        except MemoryReadError:
            yield Range(start, last, scan_ranges.UNREADABLE, entry.level - 1, narrowed, 0, phys)
        else:
            yield from in_table(space, asked, table, Level(entry.level - 1), start, narrowed)


def merged(ranges: Iterator[Range], contiguity: int) -> Iterator[Range]:
    opened, after = None, 0
    for found in ranges:
        if opened is not None and joins(opened, found, after, contiguity):
            jumped = found.kind == scan_ranges.MAPPED and contiguity == scan_ranges.NOTE and found.phys != after
            opened = replace(opened, last=found.last, contiguous=opened.contiguous and not jumped)
        else:
            if opened is not None:
                yield opened
            opened = found
        after = found.phys + (found.last - found.start + 1)
    if opened is not None:
        yield opened


def joins(opened: Range, found: Range, after: int, contiguity: int) -> bool:
    if found.start != opened.last + 1 or (found.kind, found.level) != (opened.kind, opened.level):
        return False
    if (found.rights, found.flags) != (opened.rights, opened.flags):
        return False
    if found.kind == scan_ranges.UNREADABLE:
        return found.phys == opened.phys
    return found.kind != scan_ranges.MAPPED or contiguity != scan_ranges.BREAK or found.phys == after


def bindings(mode: PagingMode) -> dict[str, int]:
    return mode_bindings(int(mode.top))


class Scanner:
    """The kernel's scan as plain Python, reading tables as the booted kernel does."""

    def __init__(self, mode: PagingMode) -> None:
        self.code = interpreter.load(
            Program(("fivefold.kernel.scan.scan", "fivefold.kernel.paging.memblock"), bindings(mode))
        )
        self.code.set("phys.phys_window", WINDOW)
        self.mapped: int | None = None

    def run(self, space: AddressSpace, ram: Ram, asked: Asked) -> list[Range]:
        """All ranges; those of every buffer that was taken out before."""
        self.prepare(space, ram, asked)
        taken: list[Range] = []
        status = self.code.call("scan.scan", space.root)
        while status == kernel_scan.FULL:
            if asked.growing:
                self.grow()
            else:
                ready = self.ranges()[:-1]
                assert self.code.call("scan.drain") == len(ready)
                taken += ready
            status = self.code.call("scan.scan_resume")
        assert status == kernel_scan.DONE
        return taken + self.ranges()

    def prepare(self, space: AddressSpace, ram: Ram, asked: Asked) -> None:
        """Map memory, and hand over buffers and settings."""
        code = self.code
        if self.mapped is not None:
            code.unmap(self.mapped)
        code.set("memblock.memory_count", 0)
        for extent in ram.extents:
            code.call("memblock.add", extent.start, extent.end - extent.start)
        self.mapped = code.map_physical(ram, ram.extents[-1].end, at=WINDOW)
        code.set("scan_entries.flags_mask", asked.flags)
        code.set("scan_ranges.contiguity", asked.contiguity)
        code.set("scan_stack.first", asked.first)
        code.set("scan_stack.last", asked.last)
        code.set("scan_entries.reserved", space.cpu.must_be_zero(Entry(0, Level.PT), space.nxe))
        code.set("scan_entries.gib_pages", int(space.cpu.gib_pages))
        self.capacity = asked.capacity
        self.records = code.map(bytearray(48 * asked.capacity))
        frames = ram.extents[-1].end >> 12 if asked.memo else 0
        index, walks = code.map(bytearray(4 * frames + 4)), code.map(bytearray(64 * 4096))
        code.call("scan.scan_init", self.records, asked.capacity, index, frames, walks, 4096 if asked.memo else 0)

    def grow(self) -> None:
        """Move to a buffer with room for one range more."""
        larger = self.code.map(bytearray(48 * (self.capacity + 1)))
        self.code.write(larger, self.code.read(self.records, 48 * self.capacity))
        self.capacity += 1
        self.records = larger
        self.code.call("scan.grow", self.records, self.capacity)

    def ranges(self) -> list[Range]:
        """What is in the buffer."""
        size = 48 * self.code.get("scan_ranges.count")
        return [told(words) for words in struct.iter_unpack("<6Q", self.code.read(self.records, size))]


def told(words: tuple[int, ...]) -> Range:
    start, last, phys, flags, info, jump = words
    rights = info >> 8
    spelled = Rights(bool(rights & 1), bool(rights & 2), bool(rights & 4))
    return Range(start, last, info & 7, info >> 4 & 15, spelled, flags, phys, jump == 0)


@pytest.fixture(scope="module")
def scanners() -> dict[PagingMode, Scanner]:
    return {mode: Scanner(mode) for mode in MODES}


def random_ram(seed: int) -> tuple[Ram, int]:
    """A few tables full of what real ones never have, in one extent or in several."""
    rng = random.Random(seed)
    frames = rng.choice(([0x10, 0x11, 0x12, 0x13, 0x14], [0x10, 0x11, 0x40, 0x41, 0x42, 0x80], [0x33]))
    ram = Ram([Extent(frame << 12, (frame + 1) << 12) for frame in frames])
    for frame in frames:
        table = bytearray(4096)
        places = rng.sample(range(512), rng.choice((0, 1, 2, 3)))
        places += rng.choice(([], [0], [511], [255, 256], [0, 511], [0, 1, 2, 3]))
        for place in places:
            length = rng.choice((1, 1, 1, 2, 3, 9))
            raw = random_entry(rng, frames)
            for i in range(place, min(place + length, 512)):
                struct.pack_into("<Q", table, 8 * i, raw)
                raw += rng.choice((0, 0x1000, 0x1000, 0x20_0000))
        ram.write(PhysAddr(frame << 12), bytes(table))
    return ram, rng.choice(frames) << 12


def random_entry(rng: random.Random, frames: list[int]) -> int:
    flags = P | rng.choice((W, W | U, 0)) | rng.choice((0, 0, PS, PS, NX, A | D))
    if rng.random() < 0.1:
        flags |= rng.choice((1 << 13, 1 << 12, 1 << 46, 1 << 51, 1 << 63, 1 << 9))
    if rng.random() < 0.05:
        flags &= ~P
    target = rng.choice(frames) if rng.random() < 0.7 else rng.choice((0x7F, 0x4_0000, 0x8_0000, FRAME >> 12))
    return target << 12 | flags


CPUS = (Cpu(), Cpu(phys_bits=46), Cpu(phys_bits=40, gib_pages=False))


def random_case(seed: int) -> tuple[AddressSpace, Ram, Asked]:
    rng = random.Random(~seed)
    ram, root = random_ram(seed)
    space = AddressSpace(ram, PhysAddr(root), rng.choice(MODES), rng.choice(CPUS), rng.random() < 0.8)
    first, last = 0, MASK64
    if rng.random() < 0.3:
        first, last = sorted(rng.choice((0, 0xFFFF_8000_0000_0000, 1 << 60)) + rng.randrange(1 << 47) for _ in range(2))
    asked = Asked(
        flags=rng.choice((0x8000_0000_0000_119F, 0x8000_0000_0000_1FFF, 0)),
        contiguity=rng.choice((scan_ranges.IGNORE, scan_ranges.NOTE, scan_ranges.BREAK)),
        first=first,
        last=last,
        memo=rng.random() < 0.8,
        capacity=rng.choice((2, 3, 7, 1 << 12, 1 << 12)),
        growing=rng.random() < 0.5,
    )
    return space, ram, asked


BOUND = 1_500
"""Graphs that unfold into more entries than this take the witness too long."""


def unfolds(space: AddressSpace) -> int:
    """How many present entries the witness would meet, or `BOUND`."""

    def below(table: int, level: int, budget: int) -> int:
        met = 0
        for raw in struct.unpack("<512Q", space.memory.read(PhysAddr(table), 4096)):
            entry = Entry(raw, Level(level))
            if not entry.is_present:
                continue
            met += 1
            if met >= budget:
                return met
            if not entry.is_leaf and not space.reserved(entry):
                try:
                    met += below(space.cpu.frame(entry), level - 1, budget - met)
                except MemoryReadError:
                    continue
        return met

    return below(space.root, space.mode.top, BOUND)


@pytest.mark.parametrize("seed", range(15))
def test_as_the_booted_kernel_runs_it(seed: int, scanners: dict[PagingMode, Scanner]) -> None:
    space, ram, asked = random_case(seed)
    if unfolds(space) < BOUND:
        assert scanners[space.mode].run(space, ram, asked) == witness(space, asked)


@cache
def native(description: str) -> list[Instance]:
    """One instance for each program: loading it anew for each graph would take longer than all of them."""
    return []


def loaded(program: Program) -> Instance:
    kept = native(program.describe())
    if not kept:
        kept.append(host.load(program))
    return kept[0]


def on_host(space: AddressSpace, ram: Ram, asked: Asked, monkeypatch: pytest.MonkeyPatch) -> list[list[Range]]:
    """What native code finds: in a buffer that grows, and in chunks."""
    settings = ScanSettings.for_cpu(
        space.cpu,
        space.nxe,
        flags=asked.flags,
        contiguity=Contiguity(asked.contiguity),
        first=asked.first,
        last=asked.last,
    )
    monkeypatch.setattr(host_scan, "FIRST_RANGES", asked.capacity)
    if not asked.memo:
        monkeypatch.setattr(scan_buffers, "MAX_REMEMBERED", 1)
    with host_scan.TableScanner(ram.banks(), load=loaded) as scanner:
        whole = scanner.scan(space.root, space.mode.top, settings).rows
        chunks = list(scanner.stream(space.root, space.mode.top, settings, chunk=asked.capacity))
    assert all(0 < len(chunk) <= asked.capacity for chunk in chunks)
    return [[told(row) for row in whole.tolist()], [told(row) for chunk in chunks for row in chunk.tolist()]]


@pytest.mark.parametrize("batch", range(5))
def test_as_native_code(batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    compared = 0
    for seed in range(1000 + 20 * batch, 1020 + 20 * batch):
        space, ram, asked = random_case(seed)
        if unfolds(space) < BOUND:
            expected = witness(space, asked)
            assert on_host(space, ram, asked, monkeypatch) == [expected, expected], f"seed {seed}"
            compared += 1
    assert compared > 10

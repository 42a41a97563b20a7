"""Captures of real guests, and small spaces that are built page by page."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from fivefold.arch import (
    LA48,
    AddressSpace,
    Cpu,
    Entry,
    Flag,
    Frames,
    Level,
    PagingMode,
    map_page,
    map_range,
)
from fivefold.memory import Bank, BankedMemory, CpuState, Ram, Source
from fivefold.survey.space import Space, open_space
from fivefold.units import MIB, PhysAddr, VirtAddr

GUESTS = Path(__file__).parents[1] / "data" / "guests"
NAMES = sorted(path.name.removesuffix(".facts.json") for path in GUESTS.glob("*.facts.json"))
OTHERS = Path(__file__).parents[1] / "data" / "others"
VECTORS = Path(__file__).parent / "vectors"
ROOT = 0x10_0000
LA57_BIT = 1 << 12

Page = tuple[int, int, Level]
"""Address, raw entry without the page-size bit, level."""


@cache
def facts_of(name: str) -> Any:
    return json.loads((GUESTS / f"{name}.facts.json").read_text())


@cache
def guest(name: str, cr3: int | None = None) -> Space:
    """The space of a capture; one for all tests, since it is only read."""
    return open_space(str(GUESTS / f"{name}.elf.xz"), cr3=cr3)


def rows(name: str) -> list[list[str]]:
    text = (VECTORS / f"{name}.txt").read_text(encoding="utf-8")
    lines = (line.partition("#")[0].strip() for line in text.splitlines())
    found = [[column.strip() for column in line.split("|")] for line in lines if line]
    assert found, f"{name}.txt has no vectors"
    return found


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    for fixture in metafunc.fixturenames:
        if fixture.endswith("_row"):
            found = rows(fixture.removesuffix("_row"))
            metafunc.parametrize(fixture, found, ids=[" ".join(row)[:60] for row in found])
        elif fixture == "name" and "captures" in metafunc.fixturenames:
            metafunc.parametrize("name", NAMES)


@pytest.fixture
def captures() -> Path:
    return GUESTS


@pytest.fixture
def others() -> Path:
    """Guests that are not Linux with four or five levels."""
    return OTHERS


@pytest.fixture
def look() -> Callable[..., Space]:
    return guest


@pytest.fixture
def facts() -> Callable[[str], Any]:
    return facts_of


def source_of(ram: Ram, cpus: tuple[CpuState, ...] = (), **about: Any) -> Source:
    """A source over *ram*; the banks are shared, so writing to *ram* shows."""
    memory = BankedMemory([Bank(start, memoryview(data)) for start, data in ram.banks()], ram.name)
    return Source(memory, "test memory", cpus, **about)


@pytest.fixture
def sourced() -> Callable[..., Source]:
    return source_of


@pytest.fixture
def built() -> Iterator[Callable[..., Ram]]:
    """Build tables for *pages* under a root at 0x100000, in 4 MiB of memory from 1 MiB."""

    def build(mode: PagingMode, pages: Iterable[Page], root: int = ROOT) -> Ram:
        ram = Ram.of_size(4 * MIB, start=1 * MIB, name="toy")
        space = AddressSpace(ram, PhysAddr(root), mode)
        frames = Frames(ram, PhysAddr(root + 0x1000), 512)
        for va, raw, level in pages:
            map_page(ram, space, VirtAddr(va), Entry(raw | (0x80 if level > 1 else 0), level), frames)
        return ram

    yield build


BUILT_ROOT = PhysAddr(0x1000)
TABLES = 200
P, W, U, NX, G = (int(flag) for flag in (Flag.P, Flag.RW, Flag.US, Flag.NX, Flag.G))


@dataclass
class Builder:
    """Tables from 0x1000 on, in *mode*; `space` opens them as a source with registers."""

    mode: PagingMode = LA48
    ram: Ram = field(default_factory=lambda: Ram.of_size(0x1000 * (TABLES + 1), start=BUILT_ROOT))

    def __post_init__(self) -> None:
        self.tables = AddressSpace(self.ram, BUILT_ROOT, self.mode, Cpu())
        self.frames = Frames(self.ram, PhysAddr(BUILT_ROOT + 0x1000), TABLES)

    def page(self, va: int, raw: int, level: Level = Level.PT) -> Builder:
        """Map one page: *raw* is its entry, without bit 7 for a large one."""
        large = int(Flag.BIT7) if level > Level.PT else 0
        map_page(self.ram, self.tables, VirtAddr(va), Entry(raw | large, level), self.frames)
        return self

    def pages(self, va: int, size: int, raw: int, largest: Level = Level.PDPT) -> Builder:
        """Map consecutive memory from the address in *raw* on."""
        map_range(self.ram, self.tables, range(va, va + size), raw, self.frames, largest)
        return self

    def entry(self, table: int, index: int, raw: int) -> Builder:
        """Write an entry as it is."""
        self.ram.write(PhysAddr(table + 8 * index), raw.to_bytes(8, "little"))
        return self

    def linux(self) -> Builder:
        """A direct map of 64 MiB and a kernel image, as Linux has them; areas get names then."""
        base = {4: 0xFFFF_8880_0000_0000, 5: 0xFF11_0000_0000_0000}[int(self.mode.top)]
        self.pages(base, 16 * MIB, P | W | NX | G)
        self.pages(base + 16 * MIB, 2 * MIB, 16 * MIB | P | NX | G)
        self.pages(base + 18 * MIB, 46 * MIB, 18 * MIB | P | W | NX | G)
        return self.pages(0xFFFF_FFFF_8100_0000, 2 * MIB, 16 * MIB | P | G)

    def space(self) -> Space:
        """Open it; the memory may still be written afterwards."""
        cr4 = 0x30_0020 | (0x1000 if int(self.mode.top) == 5 else 0)
        cpu = CpuState("test", cr0=0x8001_0033, cr3=BUILT_ROOT, cr4=cr4)
        banks = [Bank(start, memoryview(data).toreadonly()) for start, data in self.ram.banks()]
        return Space(Source(BankedMemory(banks, "built"), "test", (cpu,)))


@pytest.fixture
def build() -> Iterator[Callable[..., Builder]]:
    """Make a `Builder`."""
    yield Builder

"""Small address spaces with whatever a test wants in them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

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
from fivefold.survey.space import Space
from fivefold.units import MIB, PhysAddr, VirtAddr

ROOT = PhysAddr(0x1000)
TABLES = 200
P, W, U, NX, G = (int(flag) for flag in (Flag.P, Flag.RW, Flag.US, Flag.NX, Flag.G))


@dataclass
class Builder:
    """Tables from 0x1000 on, in *mode*; `space` opens them as a source with registers."""

    mode: PagingMode = LA48
    ram: Ram = field(default_factory=lambda: Ram.of_size(0x1000 * (TABLES + 1), start=ROOT))

    def __post_init__(self) -> None:
        self.tables = AddressSpace(self.ram, ROOT, self.mode, Cpu())
        self.frames = Frames(self.ram, PhysAddr(ROOT + 0x1000), TABLES)

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
        cr4 = 0x20 | (0x1000 if int(self.mode.top) == 5 else 0)
        cpu = CpuState("test", cr0=0x8000_0033, cr3=ROOT, cr4=cr4)
        banks = [Bank(start, memoryview(data).toreadonly()) for start, data in self.ram.banks()]
        return Space(Source(BankedMemory(banks, "built"), "test", (cpu,)))


@pytest.fixture
def build() -> Iterator[Callable[..., Builder]]:
    """Make a `Builder`."""
    yield Builder

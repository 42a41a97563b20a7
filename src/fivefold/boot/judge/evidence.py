"""What is looked at from outside: the registers that the machine has, its memory, and what should be so."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from struct import Struct
from typing import Final

from fivefold.arch import (
    Access,
    AddressSpace,
    Allowed,
    ControlState,
    Cpu,
    Fault,
    PageRun,
    access,
    distinct_tables,
    regions,
)
from fivefold.boot.image.elf_image import Image
from fivefold.boot.result import Bounds
from fivefold.layout import Area, area_named
from fivefold.memory import PhysReader
from fivefold.units import PAGE, PhysAddr, VirtAddr

_MAP_ROW: Final = Struct("<QQII")
LOW_MEMORY_LIMIT: Final = {4: 1 << 46, 5: 1 << 52}
"""MAXMEM by levels (Linux Documentation, x86_64 memory management, "Complete virtual memory map")."""


@dataclass(frozen=True)
class Evidence:
    """What is looked at: the registers that the machine has, its memory, and what should be so."""

    state: ControlState
    memory: PhysReader
    cpu: Cpu
    areas: tuple[Area, ...]
    image: Image
    load: int
    start_info: int
    expected_levels: int
    has_shadow: bool = False

    @cached_property
    def space(self) -> AddressSpace:
        """The address space that the registers select."""
        return AddressSpace.from_state(self.memory, self.state, self.cpu)

    @cached_property
    def runs(self) -> tuple[PageRun, ...]:
        """Everything that is mapped, in runs that are contiguous in physical memory too.

        With the shadow they are not: most of it is one page, over and over.
        """
        return tuple(regions(self.space, contiguous=not self.has_shadow))

    @cached_property
    def table_count(self) -> int:
        """Distinct tables that the root leads to."""
        frames = {frame for level in distinct_tables(self.space).values() for frame in level}
        return len(frames)

    @cached_property
    def ram(self) -> tuple[Bounds, ...]:
        """Memory by the loader's map: whole pages, ascending, cut at what mode and CPU reach."""
        limit = min(LOW_MEMORY_LIMIT[self.expected_levels], 1 << self.cpu.phys_bits)
        return tuple(_ram(self.memory, self.start_info, limit))

    def area(self, name: str) -> Area:
        """An area of the layout by name."""
        return area_named(self.areas, name)

    def runs_in(self, area: Area) -> list[PageRun]:
        """What is mapped between the bounds of *area*, in contiguous runs but for the shadow; cut at the bounds."""
        apart = area.name != "kasan_shadow"
        return list(regions(self.space, range(area.start, area.end), contiguous=apart))

    def try_access(self, va: int, how: Access) -> Allowed | Fault:
        """Would the CPU allow this access?"""
        return access(self.space, self.state, VirtAddr(va), how)


def _ram(memory: PhysReader, start_info: int, limit: int) -> Iterator[Bounds]:
    """RAM in the map behind *start_info* (PVH's structure), ascending and joined.

    Firmware lies: rows may overlap, wrap, or be empty. A page that any row calls something else is not RAM.
    """
    head = memory.read(PhysAddr(start_info), 56)
    at, count = int.from_bytes(head[40:48], "little"), int.from_bytes(head[48:52], "little")
    rows = list(_MAP_ROW.iter_unpack(memory.read(PhysAddr(at), _MAP_ROW.size * count)))
    ram = [
        Bounds(-(-start // PAGE) * PAGE, (start + size) // PAGE * PAGE) for start, size, kind, _ in rows if kind == 1
    ]
    other = [
        Bounds(start // PAGE * PAGE, -(-(start + size) // PAGE) * PAGE)
        for start, size, kind, _ in rows
        if kind != 1 and size
    ]
    borders = sorted({limit, *(min(at, limit) for bounds in (*ram, *other) for at in bounds)})
    begun: int | None = None
    for low, high in pairwise((*borders, limit)):
        is_ram = low < high and _in_any(low, ram) and not _in_any(low, other)
        if is_ram and begun is None:
            begun = low
        elif not is_ram and begun is not None:
            yield Bounds(begun, low)
            begun = None


def _in_any(at: int, ranges: list[Bounds]) -> bool:
    return any(start <= at < end for start, end in ranges)

"""A map of 4 PiB given to the native build of the direct map: whole in five levels, cut at MAXMEM in four."""

from __future__ import annotations

import struct
from typing import Any

import pytest

from fivefold.arch import LA48, LA57, AddressSpace, Cpu, Level, Mapped, PagingMode, translate
from fivefold.kernel.modes import mode_bindings
from fivefold.layout import linux_constants
from fivefold.memory import Extent, Ram
from fivefold.metal.extents import attach, check_misses
from fivefold.metal.program import Program
from fivefold.metal.run import host
from fivefold.units import GIB, MIB, PIB, TIB, PhysAddr, VirtAddr

KERNEL = "fivefold.kernel"
TABLES = (MIB, 64 * MIB)


def native(mode: PagingMode) -> Any:
    """The direct map as native code; physical memory is what `attach` gives."""
    names = ("areas.direct_map.direct_map_init", "areas.direct_map.cut_memory", "paging.layout.layout_init")
    memblock = tuple(f"paging.memblock.{name}" for name in ("add", "reserve", "allocate_table"))
    return host.load(
        Program(
            (f"{KERNEL}.areas.direct_map", "fivefold.metal.extents"),
            mode_bindings(int(mode.top)),
            replace={f"{KERNEL}.paging.phys.phys_to_virt": "fivefold.metal.extents.phys_to_virt"},
            roots=tuple(f"{KERNEL}.{name}" for name in (*names, *memblock)),
        )
    )


@pytest.mark.parametrize("mode", [LA57, LA48], ids=["la57", "la48"])
def test_four_pib(mode: PagingMode) -> None:
    code = native(mode)
    ram = Ram([Extent(*TABLES)])
    (seen_at,) = attach(code, ram.banks()).addresses[:1]
    code.call("layout.layout_init", 0)
    code.call("memblock.add", 0, 4 * PIB)
    code.call("memblock.reserve", 0, TABLES[0])
    constants = linux_constants("6.1", len(mode.levels))
    cut = code.call("direct_map.cut_memory", 52)
    assert cut == 4 * PIB - constants.maxmem
    root = code.call("memblock.allocate_table")
    assert code.call("direct_map.direct_map_init", seen_at + root - TABLES[0], 3, 16 * MIB, 17 * MIB) == 0
    check_misses(code)
    space = AddressSpace(ram, PhysAddr(root), mode, Cpu())
    for pa in (0, MIB, 16 * MIB, GIB, 512 * GIB - 1, 63 * TIB, constants.maxmem - 1):
        found = translate(space, VirtAddr(constants.page_offset + pa))
        assert isinstance(found, Mapped)
        assert found.pa == pa
        assert found.page is Level.PDPT or pa < GIB
        assert found.rights.write == (not 16 * MIB <= pa < 17 * MIB) and not found.rights.execute
    assert not isinstance(translate(space, VirtAddr(constants.page_offset + constants.maxmem)), Mapped)
    tables = [PhysAddr(root)]
    for _ in range(len(mode.levels) - 4):
        tables = [below for table in tables for below in links(ram, table)]
    assert sum(len(links(ram, table)) for table in tables) == constants.maxmem // (512 * GIB)


def links(ram: Ram, table: PhysAddr) -> list[PhysAddr]:
    """Tables that the entries of *table* lead to."""
    entries = struct.unpack("<512Q", ram.read(table, 4096))
    return [PhysAddr(entry & 0x000F_FFFF_FFFF_F000) for entry in entries if entry & 1]

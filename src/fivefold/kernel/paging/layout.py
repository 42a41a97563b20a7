"""What lies where in the kernel's half, in each mode [proposal: parts 2 and 4].

Area bounds are tables with a column for each map: today's (since 4.20) and the
proposal's own, in four and in five levels. The bases that KASLR may move are variables,
set here from the mode before anything uses them; no other file has the numbers.

The designers kept the same top-level slot for the same area in both modes, and from
0xfffffc0000000000 up the maps are identical.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from fivefold.kernel.paging.pgtable import l5_column
from fivefold.metal.lang import u64
from fivefold.units import VirtAddr

LINUX: Final = 0
PROPOSAL: Final = 1
LAYOUT_NAMES: Final = ("linux", "proposal")

TIB: Final = 1 << 40


@dataclass(frozen=True)
class AreaRow:
    """An area in each map; a start of 0 where the map does not have it. Ends are exclusive.

    Columns: today's with four and five levels, the proposal's with four and five levels. The shadow has one
    offset for all of them, as the discussion of the proposal asked for.
    """

    name: str
    start: tuple[int, int, int, int]
    end: tuple[int, int, int, int]
    movable: int = 0


FIXED: Final = 0
DIRECT_MAP: Final = 1
VMALLOC: Final = 2
VMEMMAP: Final = 3
SHADOW: Final = 4
GUARD: Final = 5
"""What a row's `movable` says: the bounds are those of the table, or variables; the shadow's row may be absent."""


def _same(name: str, start: int, end: int) -> AreaRow:
    return AreaRow(name, (start,) * 4, (end,) * 4)


AREAS: Final = (
    AreaRow(
        "guard_hole",
        (0xFFFF_8000_0000_0000, 0xFF00_0000_0000_0000, 0xFFFF_8000_0000_0000, 0xFF00_0000_0000_0000),
        (0xFFFF_8800_0000_0000, 0xFF10_0000_0000_0000, 0xFFFF_8800_0000_0000, 0xFF10_0000_0000_0000),
        GUARD,
    ),
    AreaRow(
        "ldt_remap",
        (0xFFFF_8800_0000_0000, 0xFF10_0000_0000_0000, 0, 0),
        (0xFFFF_8880_0000_0000, 0xFF11_0000_0000_0000, 0, 0),
    ),
    AreaRow(
        "direct_map",
        (0xFFFF_8880_0000_0000, 0xFF11_0000_0000_0000, 0xFFFF_8800_0000_0000, 0xFF10_0000_0000_0000),
        (0xFFFF_C880_0000_0000, 0xFF91_0000_0000_0000, 0xFFFF_C800_0000_0000, 0xFF90_0000_0000_0000),
        DIRECT_MAP,
    ),
    AreaRow(
        "vmalloc",
        (0xFFFF_C900_0000_0000, 0xFFA0_0000_0000_0000, 0xFFFF_C900_0000_0000, 0xFF92_0000_0000_0000),
        (0xFFFF_E900_0000_0000, 0xFFD2_0000_0000_0000, 0xFFFF_E900_0000_0000, 0xFFD2_0000_0000_0000),
        VMALLOC,
    ),
    AreaRow(
        "vmemmap",
        (0xFFFF_EA00_0000_0000, 0xFFD4_0000_0000_0000, 0xFFFF_EA00_0000_0000, 0xFFD4_0000_0000_0000),
        (0xFFFF_EB00_0000_0000, 0xFFD6_0000_0000_0000, 0xFFFF_EB00_0000_0000, 0xFFD6_0000_0000_0000),
        VMEMMAP,
    ),
    AreaRow(
        "kasan_shadow",
        (0xFFFF_EC00_0000_0000, 0xFFDF_FC00_0000_0000, 0xFFFF_EC00_0000_0000, 0xFFDF_FC00_0000_0000),
        (0xFFFF_FC00_0000_0000, 0xFFFF_FC00_0000_0000, 0xFFFF_FC00_0000_0000, 0xFFFF_FC00_0000_0000),
        SHADOW,
    ),
    AreaRow(
        "cpu_entry_area",
        (0xFFFF_FE00_0000_0000, 0xFFFF_FE00_0000_0000, 0, 0),
        (0xFFFF_FE80_0000_0000, 0xFFFF_FE80_0000_0000, 0, 0),
    ),
    _same("espfix", 0xFFFF_FF00_0000_0000, 0xFFFF_FF80_0000_0000),
    _same("efi_runtime", 0xFFFF_FFEF_0000_0000, 0xFFFF_FFFF_0000_0000),
    _same("kernel_image", 0xFFFF_FFFF_8000_0000, 0xFFFF_FFFF_A000_0000),
    _same("modules", 0xFFFF_FFFF_A000_0000, 0xFFFF_FFFF_FF00_0000),
    _same("fixmap", 0xFFFF_FFFF_FF00_0000, 0xFFFF_FFFF_FF60_0000),
    AreaRow(
        "vsyscall",
        (0xFFFF_FFFF_FF60_0000,) * 4,
        (0xFFFF_FFFF_FF60_1000, 0xFFFF_FFFF_FF60_1000, 0xFFFF_FFFF_FFE0_0000, 0xFFFF_FFFF_FFE0_0000),
    ),
)
"""Ascending in every column."""


def _column(name: str, bounds: str) -> tuple[int, int, int, int]:
    row = next(row for row in AREAS if row.name == name)
    value: tuple[int, int, int, int] = getattr(row, bounds)
    return value


PAGE_OFFSET: Final = _column("direct_map", "start")
PAGE_OFFSET_END: Final = _column("direct_map", "end")
VMALLOC_START: Final = _column("vmalloc", "start")
VMALLOC_END: Final = _column("vmalloc", "end")
VMEMMAP_START: Final = _column("vmemmap", "start")
VMEMMAP_END: Final = _column("vmemmap", "end")
SHADOW_START: Final = _column("kasan_shadow", "start")
SHADOW_END: Final = _column("kasan_shadow", "end")
LDT_BASE: Final = _column("ldt_remap", "start")
CPU_ENTRY_AREA: Final = _column("cpu_entry_area", "start")

ESPFIX_BASE: Final = 0xFFFF_FF00_0000_0000
EFI_VA_END: Final = 0xFFFF_FFEF_0000_0000
MODULES_VADDR: Final = 0xFFFF_FFFF_A000_0000
FIXADDR_TOP: Final = 0xFFFF_FFFF_FF60_0000
VSYSCALL: Final = 0xFFFF_FFFF_FF60_0000
GUARD_HOLE_FIRST_SLOT: Final = 256
GUARD_HOLE_END_SLOT: Final = 272

STRUCT_PAGE_SIZE: Final = 64
"""Bytes of vmemmap that describe one 4 KiB page."""

choice: u64 = LINUX
"""Which map: `LINUX` or `PROPOSAL`."""
page_offset_base: u64 = PAGE_OFFSET[0]
vmalloc_base: u64 = VMALLOC_START[0]
vmemmap_base: u64 = VMEMMAP_START[0]
"""Valid before any code runs: the folded mode's, as the mode itself."""
direct_map_size: u64 = PAGE_OFFSET_END[0] - PAGE_OFFSET[0]
vmalloc_size: u64 = VMALLOC_END[0] - VMALLOC_START[0]
vmemmap_size: u64 = VMEMMAP_END[0] - VMEMMAP_START[0]
randomised: bool = False
has_shadow: bool = False
"""Whether the KASAN shadow is in use; when it is not, randomised areas may lie where it would be."""


def layout_init(which: u64) -> None:
    """Set the bases and sizes for the map *which* in the mode that is set."""
    global choice, page_offset_base, vmalloc_base, vmemmap_base, direct_map_size, vmalloc_size, vmemmap_size
    choice = which
    page_offset_base = PAGE_OFFSET[column()]
    vmalloc_base = VMALLOC_START[column()]
    vmemmap_base = VMEMMAP_START[column()]
    direct_map_size = PAGE_OFFSET_END[column()] - page_offset_base
    vmalloc_size = VMALLOC_END[column()] - vmalloc_base
    vmemmap_size = VMEMMAP_END[column()] - vmemmap_base


def column() -> u64:
    """Column of the tables for the chosen map and the mode."""
    return 2 * choice + l5_column()


def vmalloc_end() -> VirtAddr:
    """Exclusive end of the vmalloc area."""
    return VirtAddr(vmalloc_base + vmalloc_size)


def area_start(movable: u64, fixed: u64) -> u64:
    """Where the area of a row starts now; 0 where there is none."""
    if movable == DIRECT_MAP:
        return page_offset_base
    if movable == VMALLOC:
        return vmalloc_base
    if movable == VMEMMAP:
        return vmemmap_base
    if movable == SHADOW and randomised and not has_shadow:
        return 0
    return fixed


def area_end(movable: u64, fixed: u64) -> u64:
    """Exclusive end of the area of a row now."""
    if movable == DIRECT_MAP:
        return page_offset_base + direct_map_size
    if movable == VMALLOC:
        return vmalloc_base + vmalloc_size
    if movable == VMEMMAP:
        return vmemmap_base + vmemmap_size
    return fixed

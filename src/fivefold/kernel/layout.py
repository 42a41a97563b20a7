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

from fivefold.kernel.pgtable import l5_column
from fivefold.metal.lang import u64

LINUX: Final = 0
PROPOSAL: Final = 1
LAYOUT_NAMES: Final = ("linux", "proposal")

TIB: Final = 1 << 40


@dataclass(frozen=True)
class AreaRow:
    """An area in each map; a start of 0 where the map does not have it. Ends are exclusive.

    Columns: today's with four and five levels, the proposal's with four and five levels.
    """

    name: str
    start: tuple[int, int, int, int]
    end: tuple[int, int, int, int]


def _same(name: str, start: int, end: int) -> AreaRow:
    return AreaRow(name, (start,) * 4, (end,) * 4)


AREAS: Final = (
    AreaRow(
        "guard_hole",
        (0xFFFF_8000_0000_0000, 0xFF00_0000_0000_0000, 0xFFFF_8000_0000_0000, 0xFF00_0000_0000_0000),
        (0xFFFF_8800_0000_0000, 0xFF10_0000_0000_0000, 0xFFFF_8800_0000_0000, 0xFF10_0000_0000_0000),
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
    ),
    AreaRow(
        "vmalloc",
        (0xFFFF_C900_0000_0000, 0xFFA0_0000_0000_0000, 0xFFFF_C900_0000_0000, 0xFF92_0000_0000_0000),
        (0xFFFF_E900_0000_0000, 0xFFD2_0000_0000_0000, 0xFFFF_E900_0000_0000, 0xFFD2_0000_0000_0000),
    ),
    AreaRow(
        "vmemmap",
        (0xFFFF_EA00_0000_0000, 0xFFD4_0000_0000_0000, 0xFFFF_EA00_0000_0000, 0xFFD4_0000_0000_0000),
        (0xFFFF_EB00_0000_0000, 0xFFD6_0000_0000_0000, 0xFFFF_EB00_0000_0000, 0xFFD6_0000_0000_0000),
    ),
    AreaRow(
        "kasan_shadow",
        (0xFFFF_EC00_0000_0000, 0xFFDF_FC00_0000_0000, 0xFFFF_EC00_0000_0000, 0xFFD8_0000_0000_0000),
        (0xFFFF_FC00_0000_0000, 0xFFFF_FC00_0000_0000, 0xFFFF_FC00_0000_0000, 0xFFF8_0000_0000_0000),
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
VMALLOC_START: Final = _column("vmalloc", "start")
VMALLOC_END: Final = _column("vmalloc", "end")
VMEMMAP_START: Final = _column("vmemmap", "start")
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


def layout_init(which: u64) -> None:
    """Set the bases for the map *which* in the mode that is set."""
    global choice, page_offset_base, vmalloc_base, vmemmap_base
    choice = which
    page_offset_base = PAGE_OFFSET[column()]
    vmalloc_base = VMALLOC_START[column()]
    vmemmap_base = VMEMMAP_START[column()]


def column() -> u64:
    """Column of the tables for the chosen map and the mode."""
    return 2 * choice + l5_column()

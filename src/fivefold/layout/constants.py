"""Widths and bases that Linux derives from the mode, by release."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from fivefold.layout.areas import Area, area_named
from fivefold.layout.kasan import shadow_offset
from fivefold.layout.linux import linux_areas
from fivefold.layout.versions import Version, check_levels, parse_version
from fivefold.units import GIB, PAGE, TIB

STRUCT_PAGE: Final = 64
"""Bytes of vmemmap per page of memory."""

DEFAULT_MAP_WINDOW: Final = 0x7FFF_FFFF_F000
"""Since 4.14: where user mappings end, in both modes, unless a hint asks for more."""

MODULES_END: Final = 0xFFFF_FFFF_FF00_0000
"""Since 4.15; one page-table page lower in builds that debug kmap_local, below the fixmap before."""

FIXADDR_TOP: Final = 0xFFFF_FFFF_FF7F_F000
"""Last page of the fixmap's index 0; vsyscall is its index 511."""


@dataclass(frozen=True, slots=True)
class LinuxConstants:
    """What one release compiles or computes for one number of levels; sizes in bytes.

    Source: *arch/x86/include/asm*, ``page_64_types.h``, ``pgtable_64_types.h``,
    ``sparsemem.h``, ``processor.h`` and ``kaslr.c`` of that release.
    """

    levels: int
    pgdir_shift: int
    ptrs_per_p4d: int
    virtual_mask_shift: int
    physical_mask_shift: int
    max_physmem_bits: int
    page_offset: int
    vmalloc_base: int
    vmalloc_size: int
    vmemmap_base: int
    vmemmap_size: int
    kasan_offset: int
    task_size_max: int
    kaslr_step: int

    @property
    def maxmem(self) -> int:
        """Bytes of physical memory that the direct map can hold; more is refused."""
        return 1 << self.max_physmem_bits


def linux_constants(version: str, levels: int) -> LinuxConstants:
    """The constants of Linux *version* with *levels*; `LayoutError` for what `linux_areas` refuses."""
    parsed = parse_version(version)
    five = check_levels(levels) == 5
    areas = linux_areas(version, levels)
    vmalloc = area_named(areas, "vmalloc")
    max_physmem_bits = 52 if five else 46
    return LinuxConstants(
        levels=levels,
        pgdir_shift=48 if five else 39,
        ptrs_per_p4d=512 if five else 1,
        virtual_mask_shift=9 * levels + 11,
        # Since 4.17 (boot-time switching) the widest in both modes: a narrower frame mask
        # would move address bits into the flags. Before that, by build.
        physical_mask_shift=52 if parsed >= Version(4, 17) else max_physmem_bits,
        max_physmem_bits=max_physmem_bits,
        page_offset=area_named(areas, "direct_map").start,
        vmalloc_base=vmalloc.start,
        vmalloc_size=vmalloc.size,
        vmemmap_base=area_named(areas, "vmemmap").start,
        vmemmap_size=vmemmap_bytes(1 << max_physmem_bits),
        kasan_offset=shadow_offset(version, levels),
        task_size_max=_user_end(areas) - PAGE,
        # Since 5.2 one gibibyte in both modes; before that 512 GiB with five levels.
        kaslr_step=512 * GIB if five and parsed < Version(5, 2) else GIB,
    )


def vmemmap_bytes(memory: int) -> int:
    """Bytes of page descriptors for *memory* bytes, in whole TiB as Linux reserves them.

    >>> [vmemmap_bytes(1 << bits) // TIB for bits in (46, 52)]
    [1, 64]
    """
    return -(-(memory // PAGE * STRUCT_PAGE) // TIB) * TIB


def _user_end(areas: tuple[Area, ...]) -> int:
    # Since 7.1 the last page below the hole is a row of its own.
    return area_named(areas, "non_canonical").start

"""The headings that the kernel's own page-table dump prints, by release and mode."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NamedTuple

from fivefold.errors import LayoutError
from fivefold.layout.areas import Area, area_named
from fivefold.layout.kaslr import Bases, with_bases
from fivefold.layout.linux import linux_areas
from fivefold.units import GIB, hex64

FIXMAP_START: Final = 0xFFFF_FFFF_FF57_C000
"""First permanent fixmap page of the 6.1 builds seen so far; it moves with the build."""

KERNEL_SPACE: Final = 1 << 63
"""Where the dump says that kernel space begins, canonical or not."""

VSYSCALL: Final = 0xFFFF_FFFF_FF60_0000

_HEADINGS: Final = {
    "ldt_remap": "LDT remap",
    "direct_map": "Low Kernel Mapping",
    "vmalloc": "vmalloc() Area",
    "vmemmap": "Vmemmap",
    "cpu_entry_area": "CPU entry Area",
    "espfix": "ESPfix Area",
    "efi_runtime": "EFI Runtime Services",
    "kernel_image": "High Kernel Mapping",
    "modules": "Modules",
}


class Marker(NamedTuple):
    """A heading, printed before the first range that starts at or after *start*."""

    text: str
    start: int


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelBuild:
    """Build options that decide which headings there are and where; all are guesses by default."""

    kasan: bool = False
    ldt: bool = True  # CONFIG_MODIFY_LDT_SYSCALL
    efi: bool = True  # CONFIG_EFI
    fixmap_start: int = FIXMAP_START
    image_limit: int = GIB  # CONFIG_RANDOMIZE_BASE


def ptdump_markers(
    version: str, levels: int, bases: Bases | None = None, build: KernelBuild | None = None
) -> tuple[Marker, ...]:
    """The headings of ``page_tables/kernel`` in the order of printing, ascending.

    *bases* are the randomised ones, None for the defaults. `LayoutError` for a *build* that
    this release cannot have.

    Sorted by address: from 4.15 to 4.19.4 the LDT remap lay above the CPU entry area with four
    levels and below vmalloc with five, and 4.17, which chose its place by build option, printed a
    folded kernel's headings out of order.
    """
    build = build or KernelBuild()
    if bases is None:
        areas = linux_areas(version, levels, image_limit=build.image_limit)
    else:
        areas = with_bases(version, levels, bases, image_limit=build.image_limit)
    headings = dict(_HEADINGS)
    if not build.ldt:
        del headings["ldt_remap"]
    if not build.efi:
        del headings["efi_runtime"]
    markers = [Marker("User Space", 0), Marker("Kernel Space", KERNEL_SPACE)]
    markers += [Marker(headings[area.name], area.start) for area in areas if area.name in headings]
    markers += _ends(areas, build)
    return tuple(sorted(markers, key=lambda marker: marker.start))


def _ends(areas: tuple[Area, ...], build: KernelBuild) -> list[Marker]:
    modules = area_named(areas, "modules")
    if not modules.start < build.fixmap_start < VSYSCALL:
        raise LayoutError(f"fixmap start {hex64(build.fixmap_start)} is not between modules and vsyscall")
    # Since 4.15 modules end at a fixed address; before that where the fixmap begins.
    modules_end = min(modules.end, build.fixmap_start)
    ends = [Marker("End Modules", modules_end), Marker("Fixmap Area", build.fixmap_start)]
    if build.kasan:
        shadow = area_named(areas, "kasan_shadow")
        ends += [Marker("KASAN shadow", shadow.start), Marker("KASAN shadow end", shadow.end)]
    return ends

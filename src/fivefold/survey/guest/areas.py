"""Names for what is mapped: the areas of the kernel that is there, by detection or as given.

A name comes with its reason. Where the tables do not look like Linux' there are no names.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from fivefold.errors import LayoutError
from fivefold.layout import Area, Bases, linux_areas, with_bases
from fivefold.survey.guest.bases import RANDOMISED_END, KernelBases
from fivefold.survey.guest.evidence import Found
from fivefold.units import GIB, VirtAddr, hex64

ASSUMED_RELEASE: Final = "6.1"
"""The map that is used where the source does not say which release it is; it is the same since 4.20."""


@dataclass(frozen=True, slots=True)
class AreaMap:
    """Areas, ascending; empty where nothing is named. *how* says why these, or why none."""

    areas: tuple[Area, ...]
    how: str

    def name_at(self, va: int) -> str | None:
        """The name of the area at *va*, or None."""
        index = bisect_right(self.areas, va, key=lambda area: area.start) - 1
        if index < 0 or va >= self.areas[index].end:
            return None
        return self.areas[index].name

    def borders(self) -> list[int]:
        """Every start and end, ascending."""
        return sorted({border for area in self.areas for border in (area.start, area.end)})


def detect_areas(levels: int, bases: KernelBases, release: Found[str | None]) -> AreaMap:
    """The map of the kernel with *bases*; *release* None takes `ASSUMED_RELEASE`.

    Linux is what has a direct map and code in the kernel's window. Bases that were not found leave their areas out.
    """
    if bases.page_offset.value is None:
        return AreaMap((), f"no names: {bases.page_offset.how}")
    if bases.phys_base.value is None:
        return AreaMap((), f"no names: {bases.phys_base.how}")
    version = release.value or ASSUMED_RELEASE
    how = f"Linux {version} ({release.how}); direct map and kernel window are where Linux has them"
    try:
        return _placed(version, levels, bases, how)
    except LayoutError as error:
        return AreaMap(_fixed(version, levels, bases), f"{how}; only fixed areas and the direct map: {error}")


def _placed(version: str, levels: int, bases: KernelBases, how: str) -> AreaMap:
    default = linux_areas(version, levels, image_limit=GIB)
    page_offset, vmalloc, vmemmap = bases.page_offset.value, bases.vmalloc.value, bases.vmemmap.value
    if page_offset in {area.start for area in default if area.name == "direct_map"}:
        moved = [b for n, b in (("vmalloc", vmalloc), ("vmemmap", vmemmap)) if b not in (None, _start(default, n))]
        if not moved:
            return AreaMap(default, f"{how}; bases are the defaults")
    if page_offset is None or vmalloc is None or vmemmap is None:
        raise LayoutError(f"vmalloc: {bases.vmalloc.how}; vmemmap: {bases.vmemmap.how}")
    found = Bases(VirtAddr(page_offset), VirtAddr(vmalloc), VirtAddr(vmemmap))
    return AreaMap(with_bases(version, levels, found), f"{how}; bases as found in the tables")


def _start(areas: Sequence[Area], name: str) -> int | None:
    return next((area.start for area in areas if area.name == name), None)


def _fixed(version: str, levels: int, bases: KernelBases) -> tuple[Area, ...]:
    """The areas that never move, and the direct map as far as it is mapped."""
    default = linux_areas(version, levels, image_limit=GIB)
    movable_from = _start(default, "direct_map") or 0
    below = tuple(area for area in default if area.end <= movable_from)
    above = tuple(area for area in default if area.start >= RANDOMISED_END)
    if bases.page_offset.value is None or bases.direct_map_end is None:
        return below + above
    source = f"mapped at a constant distance from {hex64(bases.page_offset.value)}"
    return (*below, Area("direct_map", bases.page_offset.value, bases.direct_map_end, "mapped", source), *above)

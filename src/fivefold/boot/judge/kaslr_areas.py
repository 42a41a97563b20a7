"""The areas of a boot whose bases were drawn at random: the documents' areas, with three of them where the guest says.

What the guest says is held against the rules first: order, alignment, window, room. `LayoutError` says which broke.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Final

from fivefold.boot.result import Bounds
from fivefold.errors import LayoutError
from fivefold.layout import Area, area_named, check_tiling
from fivefold.units import GIB, hex64

MOVABLE: Final = ("direct_map", "vmalloc", "vmemmap")
SHADOW: Final = "kasan_shadow"


def moved_areas(
    areas: tuple[Area, ...], said: Mapping[str, Bounds], has_shadow: bool, slot: int, ram_end: int
) -> tuple[Area, ...]:
    """*areas* with the movable three at the bounds that the guest *said*; all 64 bits, ascending.

    *slot* is the size of a top-level entry: with the shadow the window ends where that starts, rounded down to one.
    """
    window = _window(areas, has_shadow, slot)
    source = "bases reported by the guest, held against the rules of kaslr"
    moved = [Area(name, said[name].start, said[name].end, "mapped", source) for name in MOVABLE if name in said]
    _check(moved, window, area_named(areas, "vmalloc").size, ram_end)
    dropped = {*MOVABLE} if has_shadow else {*MOVABLE, SHADOW}
    fixed = [area for area in areas if area.kind != "hole" and area.name not in dropped]
    tiled = tuple(_filled(sorted([*fixed, *moved], key=lambda area: area.start), areas[-1].end))
    check_tiling(tiled)
    return tiled


def _window(areas: tuple[Area, ...], has_shadow: bool, slot: int) -> range:
    start = area_named(areas, "direct_map").start
    if has_shadow:
        return range(start, area_named(areas, SHADOW).start // slot * slot)
    above = [area for area in areas if area.name in ("cpu_entry_area", "espfix")]
    return range(start, above[0].start)


def _check(moved: list[Area], window: range, vmalloc: int, ram_end: int) -> None:
    if len(moved) != len(MOVABLE):
        raise LayoutError(f"the guest reports {len(moved)} of the three movable areas")
    for area in moved:
        if area.start % GIB:
            raise LayoutError(f"{area.name} starts at {hex64(area.start)}, which is not aligned to 1 GiB")
        if area.start < window.start or area.end > window.stop:
            raise LayoutError(f"{area.name} is not inside {hex64(window.start)}-{hex64(window.stop)}")
    for low, high in pairwise(moved):
        if low.end >= high.start:
            raise LayoutError(f"{high.name} starts at {hex64(high.start)}, {low.name} ends at {hex64(low.end)}")
    needed = (ram_end, vmalloc, ram_end // 4096 * 64)
    for area, size in zip(moved, needed, strict=True):
        if area.size < size:
            raise LayoutError(f"{area.name} has {area.size} bytes, {size} are needed")


def _filled(areas: Iterable[Area], end: int) -> Iterable[Area]:
    at = 0
    for area in areas:
        if area.start > at:
            yield Area(f"hole_below_{area.name}", at, area.start, "hole", area.source)
        yield area
        at = area.end
    if at < end:
        yield Area("hole_top", at, end, "hole", "what is left")

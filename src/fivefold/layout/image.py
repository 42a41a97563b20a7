"""The areas of our own booted image, in either of its two layouts."""

from __future__ import annotations

from typing import Final

from fivefold.errors import LayoutError
from fivefold.layout.areas import Area, area_named
from fivefold.layout.kasan import shadow_bounds
from fivefold.layout.linux import linux_areas

FIXMAP_BORDER: Final = 0xFFFF_FFFF_FF00_0000
"""Where modules end and the fixmap begins in both layouts.

Linux fixes this border since 4.15; the proposal's kernels put it wherever their
build left it, so the image takes today's.
"""


def image_areas(layout: str = "linux", levels: int = 5) -> tuple[Area, ...]:
    """The areas that the image maps by: all 64 bits, ascending, no gap.

    ``linux`` is today's map (since 4.20), ``proposal`` that of the 2017 proposal
    (4.12 to 4.14) with its own bases. Raises `LayoutError` for another layout or
    number of levels.
    """
    if layout == "linux":
        return linux_areas("6.1", levels)
    if layout == "proposal":
        return _with_common_shadow(_with_fixmap(linux_areas("4.14", levels)), levels)
    raise LayoutError(f"unknown layout {layout!r}; expected 'linux' or 'proposal'")


def _with_common_shadow(areas: tuple[Area, ...], levels: int) -> tuple[Area, ...]:
    """The shadow where one offset for both modes puts it, as the discussion asked for; no hole is above it then."""
    bounds = shadow_bounds(levels)
    kept = [area for area in areas if area.name != "hole_above_kasan_shadow"]
    below, shadow = (area_named(areas, name) for name in ("hole_below_kasan_shadow", "kasan_shadow"))
    at = kept.index(below)
    source = f"{shadow.source}; one offset for both modes"
    kept[at : at + 2] = [
        below._replace(end=bounds.start),
        Area("kasan_shadow", bounds.start, bounds.stop, "mapped", source),
    ]
    return tuple(kept)


def _with_fixmap(areas: tuple[Area, ...]) -> tuple[Area, ...]:
    modules = area_named(areas, "modules")
    at = areas.index(modules)
    fixmap = Area("fixmap", FIXMAP_BORDER, modules.end, "mapped", f"{modules.source}; border as since 4.15")
    return (*areas[:at], modules._replace(end=FIXMAP_BORDER), fixmap, *areas[at + 1 :])

"""Names for what is mapped: the areas of the kernel that is there, by detection.

A name comes with its reason. A guest that is not known to be Linux has none of Linux' names. A map always tiles all 64
bits: where it is not known which area there is, the row is of kind ``unknown`` and names nothing.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from fivefold.arch import LA48, LA57
from fivefold.errors import LayoutError
from fivefold.layout import (
    Area,
    Bases,
    Version,
    check_tiling,
    has_moved_ldt,
    linux_areas,
    linux_constants,
    parse_version,
    window_end,
    with_bases,
)
from fivefold.survey.guest.bases import KernelBases
from fivefold.survey.guest.evidence import Found
from fivefold.survey.guest.system import HYPERVISOR, XEN, GuestSystem
from fivefold.units import GIB, MASK64, VirtAddr, hex64

ASSUMED_RELEASE: Final = "6.1"
"""The map that is used where nothing says which release it is; it is the same since 4.20."""

OLD_RELEASE: Final = "4.19"
"""The map that is used where the direct map begins lower than since 4.20, and nothing says which release it is."""


_OTHERS: Final = "a guest's, or nothing's"


@dataclass(frozen=True, slots=True)
class AreaMap:
    """Areas, ascending, without a gap; empty where nothing is named. *how* says why these, or why none."""

    areas: tuple[Area, ...]
    how: str

    def name_at(self, va: int) -> str | None:
        """The name of the area at *va*, or None."""
        area = self.at(va)
        return None if area is None else area.name

    def at(self, va: int) -> Area | None:
        """The area at *va*, None where none is named."""
        index = bisect_right(self.areas, va, key=lambda area: area.start) - 1
        if index < 0 or va >= self.areas[index].end or self.areas[index].kind == "unknown":
            return None
        return self.areas[index]

    def borders(self) -> list[int]:
        """Every start and end, ascending."""
        return sorted({border for area in self.areas for border in (area.start, area.end)})


def detect_areas(levels: int, bases: KernelBases, system: GuestSystem, image_limit: int | None = None) -> AreaMap:
    """The map of the *system* with *bases*; those that were not found leave their areas out.

    *image_limit* is the room for the kernel image where VMCOREINFO has it, 512 MiB or 1 GiB; else 1 GiB is taken.
    """
    if system.name.value == XEN:
        found = AreaMap(tuple(_beside_hypervisor(levels)), f"the hypervisor's alone: {system.name.how}")
    elif not system.is_linux:
        found = AreaMap((), f"no names: {system.name.how}")
    elif bases.page_offset.value is None or bases.phys_base.value is None:
        missing = bases.phys_base if bases.page_offset.value is not None else bases.page_offset
        found = AreaMap((), f"no names: {missing.how}")
    else:
        found = _of_linux(levels, bases, system.release, image_limit)
    if found.areas:
        check_tiling(found.areas)
    return found


def _beside_hypervisor(levels: int) -> Iterator[Area]:
    source = "Xen, public/arch-x86/xen-x86_64.h: HYPERVISOR_VIRT_START to HYPERVISOR_VIRT_END"
    own = Area("hypervisor", HYPERVISOR.start, HYPERVISOR.stop, "mapped", source)
    gap = (LA57 if levels == 5 else LA48).gap
    yield Area("unnamed_low", 0, gap.start, "unknown", _OTHERS)
    yield Area("non_canonical", gap.start, gap.stop, "non_canonical", "the CPU refuses every address")
    yield from _tiled([own], gap.stop, MASK64 + 1, _OTHERS)


def _of_linux(levels: int, bases: KernelBases, release: Found[str | None], image_limit: int | None) -> AreaMap:
    version, why = _version(levels, bases.page_offset.value or 0, release)
    limit = image_limit or GIB
    how = f"Linux {version}{why}{'' if image_limit else ', 1G of kernel image assumed'}; "
    default = linux_areas(version, levels, image_limit=limit)
    if _are_defaults(default, bases):
        return AreaMap(default, f"{how}bases are the defaults")
    found = (bases.page_offset.value, bases.vmalloc.value, bases.vmemmap.value)
    try:
        given = [VirtAddr(base) for base in found if base is not None]
        if len(given) < len(found):
            raise LayoutError(f"vmalloc: {bases.vmalloc.how}; vmemmap: {bases.vmemmap.how}")
        whole = Bases(*given)
        return AreaMap(with_bases(version, levels, whole, image_limit=limit), f"{how}bases as found in the tables")
    except LayoutError as error:
        return AreaMap(_partly_placed(version, levels, bases, default), f"{how}not all areas are named: {error}")


def _version(levels: int, page_offset: int, release: Found[str | None]) -> tuple[str, str]:
    """The release whose map to take, and why that: what the guest says, unless its tables say otherwise."""
    told, said = None, release.how
    if release.value is not None:
        try:
            told = parse_version(release.value)
        except LayoutError as error:
            said = f"{release.how}: {error}"
    low = page_offset < linux_constants(ASSUMED_RELEASE, levels).page_offset
    if told is not None and not (low and has_moved_ldt(told)):
        return _written(told, release), f" ({release.how})"
    if low:
        doubt = f"not where {told} has it" if told is not None else said
        return OLD_RELEASE, f" assumed: the direct map begins where it did before 4.20 ({doubt})"
    return ASSUMED_RELEASE, f" assumed: the map since 4.20, which the direct map fits ({said})"


def _written(version: Version, release: Found[str | None]) -> str:
    """The release as the guest spells it, where that is a word; it is printed."""
    return release.value if release.value and release.value.isprintable() else str(version)


def _are_defaults(default: Sequence[Area], bases: KernelBases) -> bool:
    """Whether nothing that was found contradicts the map of a kernel that was not randomised."""
    own = {area.name: area.start for area in default}
    found = (("vmalloc", bases.vmalloc.value), ("vmemmap", bases.vmemmap.value))
    return own["direct_map"] == bases.page_offset.value and all(base in (None, own[name]) for name, base in found)


def _partly_placed(version: str, levels: int, bases: KernelBases, default: Sequence[Area]) -> tuple[Area, ...]:
    """The areas that never move, and of the others what was found, as far as it fits between them."""
    start, end = linux_constants(version, levels).page_offset, window_end(version, levels)
    limits = (
        ("direct_map", bases.page_offset.value, bases.direct_map_end),
        # How far it goes depends on where vmemmap begins.
        ("vmalloc", bases.vmalloc.value if bases.vmemmap.value is not None else None, None),
        ("vmemmap", bases.vmemmap.value, None),
    )
    sizes = {area.name: area.size for area in default}
    placed: list[Area] = []
    for name, base, limit in limits:
        if base is None or not (placed[-1].start if placed else start - 1) < base < end:
            continue
        if placed:
            placed[-1] = placed[-1]._replace(end=min(placed[-1].end, base))
        source = f"found at {hex64(base)} in the tables"
        placed.append(Area(name, base, min(limit or base + sizes[name], end), "mapped", source))
    below = (area for area in default if area.end <= start)
    above = (area for area in default if area.start >= end)
    return (*below, *_tiled(placed, start, end, "an area that was not found"), *above)


def _tiled(areas: Iterable[Area], start: int, end: int, what: str) -> Iterator[Area]:
    """*areas*, ascending, with what is between them as rows of kind ``unknown``."""
    for area in areas:
        if area.start > start:
            yield Area(f"unnamed_below_{area.name}", start, area.start, "unknown", what)
        yield area
        start = area.end
    if start < end:
        yield Area("unnamed_above", start, end, "unknown", what)

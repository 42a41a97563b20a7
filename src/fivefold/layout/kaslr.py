"""Randomised bases: how Linux draws them, and a map with bases that were found.

Linux moves the direct map, vmalloc and vmemmap, in this order, inside the window from
the direct map's own base to the CPU entry area. It does not when KASAN is built in or
with ``nokaslr``; the place of the kernel image is drawn separately and is not computed here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from fivefold.errors import LayoutError
from fivefold.layout.areas import Area, area_named, check_tiling
from fivefold.layout.constants import LinuxConstants, linux_constants, vmemmap_bytes
from fivefold.layout.linux import linux_areas
from fivefold.layout.versions import Version, parse_version
from fivefold.units import GIB, TIB, VirtAddr, hex64


class Bases(NamedTuple):
    """Where the three movable areas begin."""

    page_offset: VirtAddr
    vmalloc: VirtAddr
    vmemmap: VirtAddr


def default_bases(version: str, levels: int) -> Bases:
    """The bases of a kernel that was not randomised."""
    constants = linux_constants(version, levels)
    return Bases(VirtAddr(constants.page_offset), VirtAddr(constants.vmalloc_base), VirtAddr(constants.vmemmap_base))


def window_end(version: str, levels: int) -> int:
    """Where randomised areas must end: the CPU entry area, or before 4.15 the ESPfix stacks.

    Kernels before 4.15 took the EFI window or the kernel map when built without ESPfix.
    """
    name = "cpu_entry_area" if parse_version(version) >= Version(4, 15) else "espfix"
    return area_named(linux_areas(version, levels), name).start


def kaslr_bases(version: str, levels: int, draws: Sequence[int], ram: int, *, padding: int = 10 * TIB) -> Bases:
    """The bases that Linux *version* computes from three raw 64-bit *draws*.

    *ram* is the end of memory in bytes; *padding* is the room for hotplug
    (CONFIG_RANDOMIZE_MEMORY_PHYSICAL_PADDING). Memory past MAXMEM is cut off, so the areas always fit.

    The arithmetic is Linux': the gap between two areas (the round-up of one past the
    end) is not taken off what is left, so the last area can nominally pass the window's end
    by 2 GiB. What is past the end describes padding only.
    """
    constants = linux_constants(version, levels)
    if len(draws) != 3 or ram <= 0:
        raise LayoutError(f"{len(draws)} draws for {ram} bytes; expected three draws and some memory")
    sizes = _region_sizes(parse_version(version), constants, ram, padding)
    cursor = constants.page_offset
    free = window_end(version, levels) - cursor - sum(sizes)
    bases = []
    for left, draw, size in zip((3, 2, 1), draws, sizes, strict=True):
        step = draw % (free // left + 1) // constants.kaslr_step * constants.kaslr_step
        bases.append(VirtAddr(cursor + step))
        cursor = _round_up(cursor + step + size + 1, constants.kaslr_step)
        free -= step
    return Bases(*bases)


def _round_up(value: int, to: int) -> int:
    return -(-value // to) * to


def _region_sizes(version: Version, constants: LinuxConstants, ram: int, padding: int) -> tuple[int, int, int]:
    direct_map = min(_round_up(ram, TIB) + padding, constants.maxmem)
    # Since 5.2 computed; before that 1 TiB in both modes, too small for five levels.
    vmemmap = vmemmap_bytes(direct_map) if version >= Version(5, 2) else TIB
    return direct_map, constants.vmalloc_size, vmemmap


def with_bases(version: str, levels: int, bases: Bases, *, image_limit: int = GIB) -> tuple[Area, ...]:
    """Linux' areas with the three movable ones at *bases*: all 64 bits, ascending, no gap.

    Bases that are the defaults give the documents' map. Others drop the KASAN shadow, since a
    kernel with KASAN is not randomised, and let each area end at its largest size or at
    the next base, whichever comes first. `LayoutError` when *bases* are out of order,
    not aligned to 1 GiB, or outside the window.
    """
    areas = linux_areas(version, levels, image_limit=image_limit)
    if bases == default_bases(version, levels):
        return areas
    constants = linux_constants(version, levels)
    start, end = constants.page_offset, window_end(version, levels)
    _check_bases(bases, start, end)
    source = f"bases found in memory; order and sizes of {areas[0].source.partition(':')[0]}, kaslr.c"
    limits = (
        ("direct_map", bases.page_offset, min(bases.page_offset + constants.maxmem, bases.vmalloc)),
        ("vmalloc", bases.vmalloc, min(bases.vmalloc + constants.vmalloc_size, bases.vmemmap)),
        ("vmemmap", bases.vmemmap, min(bases.vmemmap + constants.vmemmap_size, end)),
    )
    moved = [Area(name, base, limit, "mapped", source) for name, base, limit in limits]
    below = [area for area in areas if area.end <= start]
    above = [area for area in areas if area.start >= end]
    tiled = (*below, *_filled(moved, start, end, source), *above)
    check_tiling(tiled)
    return tiled


def _check_bases(bases: Bases, start: int, end: int) -> None:
    for name, base in bases._asdict().items():
        if base % GIB:
            raise LayoutError(f"{name} base {hex64(base)} is not aligned to 1 GiB")
        if not start <= base < end:
            raise LayoutError(f"{name} base {hex64(base)} is outside the window {hex64(start)}-{hex64(end)}")
    if not bases.page_offset < bases.vmalloc < bases.vmemmap:
        raise LayoutError("bases are out of order; expected page_offset, vmalloc, vmemmap ascending")


def _filled(areas: Iterable[Area], start: int, end: int, source: str) -> list[Area]:
    tiled: list[Area] = []
    for area in areas:
        if area.start > start:
            tiled.append(Area(f"hole_below_{area.name}", start, area.start, "hole", source))
        tiled.append(area)
        start = area.end
    if start < end:
        tiled.append(Area("hole_above_vmemmap", start, end, "hole", source))
    return tiled

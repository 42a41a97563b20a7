"""What can be said of an address without any memory: its indices, its area, its shadow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fivefold.arch import PagingMode
from fivefold.layout import Area, area_of, from_shadow, shadow_bounds, to_shadow
from fivefold.units import VirtAddr


@dataclass(frozen=True, slots=True)
class AddressFacts:
    """*area* is None where the map names none. *indices*: of each table from the top down, with the level's name.

    *shadow* is where KASAN keeps the byte for it, for the kernel half only; *shadow_of* the address whose shadow byte
    this one is, where it lies in the shadow.
    """

    va: VirtAddr
    is_canonical: bool
    canonical: VirtAddr
    area: Area | None
    indices: tuple[tuple[str, int], ...]
    offset: int
    shadow: VirtAddr | None
    shadow_of: VirtAddr | None


def describe_address(va: int, mode: PagingMode, areas: Sequence[Area], kasan_offset: int) -> AddressFacts:
    """The facts of *va* in *mode*, by the map *areas*; *kasan_offset* as `fivefold.layout.shadow_offset` gives it."""
    upper = bool(va >> 63)
    canonical = mode.is_canonical(va)
    in_shadow = va in shadow_bounds(int(mode.top), kasan_offset)
    return AddressFacts(
        VirtAddr(va),
        canonical,
        mode.sign_extend(va),
        area_of(areas, va),
        tuple((level.name, va >> level.shift & 511) for level in mode.levels),
        va & 0xFFF,
        to_shadow(va, kasan_offset) if upper and canonical else None,
        from_shadow(va, kasan_offset) if in_shadow else None,
    )

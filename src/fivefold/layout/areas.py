"""An area: a named part of the virtual address space, with the document that fixes it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, Literal, NamedTuple

from fivefold.errors import LayoutError
from fivefold.units import MASK64, hex64

AreaKind = Literal["user", "non_canonical", "guard", "hole", "mapped", "unknown"]
"""What may be found in an area.

``user``: whatever a process maps. ``non_canonical``: the CPU refuses every address.
``guard``: kept empty on purpose, in every table. ``hole``: unassigned, so empty as
well. ``mapped``: the kernel may map here, and parts of it may be absent.
``unknown``: something may be mapped here, and it is not known which area of the guest that is.
"""

SPACE_END: Final = MASK64 + 1
"""One past the last address; the end of the last area."""


class Area(NamedTuple):
    """A named part of the 64-bit space; *start* inclusive, *end* exclusive.

    *source* names the document and table, or the change, that fixes the row.
    """

    name: str
    start: int
    end: int
    kind: AreaKind
    source: str

    @property
    def size(self) -> int:
        """Bytes from start to end."""
        return self.end - self.start


def area_of(areas: Iterable[Area], va: int) -> Area | None:
    """The area that holds *va*, or None where *areas* leave it out.

    >>> rows = (Area("vmalloc", 0xffa0 << 48, 0xffd2 << 48, "mapped", "mm.rst"),)
    >>> found = area_of(rows, 0xffa0_0000_0000_1000)
    >>> found and found.name
    'vmalloc'
    """
    return next((area for area in areas if area.start <= va < area.end), None)


def area_named(areas: Iterable[Area], name: str) -> Area:
    """The area called *name*; `LayoutError` when these areas have none."""
    for area in areas:
        if area.name == name:
            return area
    raise LayoutError(f"this layout has no area named {name!r}")


def check_tiling(areas: Sequence[Area]) -> None:
    """Raise `LayoutError` unless *areas* cover all 64 bits once, ascending, by unique names."""
    expected = 0
    for area in areas:
        if area.start != expected:
            what = "overlaps" if area.start < expected else "leaves a gap"
            raise LayoutError(f"{area.name} {what}: starts at {hex64(area.start)}, expected {hex64(expected)}")
        if area.end <= area.start:
            raise LayoutError(f"{area.name} is empty: ends at {hex64(area.end)}, starts at {hex64(area.start)}")
        expected = area.end
    if expected != SPACE_END:
        raise LayoutError(f"areas end at {hex64(expected)}, expected the whole 64-bit space")
    names = [area.name for area in areas]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise LayoutError(f"two areas are named {twice[0]!r}")

"""The tiling check refuses what it must."""

from __future__ import annotations

import pytest

from fivefold.errors import LayoutError
from fivefold.layout import Area, area_named, check_tiling, linux_areas


def rows(*bounds: tuple[str, int, int]) -> list[Area]:
    return [Area(name, start, end, "hole", "test") for name, start, end in bounds]


@pytest.mark.parametrize(
    ("areas", "message"),
    [
        (
            rows(("a", 0, 0x1000), ("b", 0x2000, 1 << 64)),
            "b leaves a gap: starts at 0x0000000000002000, expected 0x0000000000001000",
        ),
        (
            rows(("a", 0, 0x3000), ("b", 0x2000, 1 << 64)),
            "b overlaps: starts at 0x0000000000002000, expected 0x0000000000003000",
        ),
        (rows(("a", 0, 0)), "a is empty: ends at 0x0000000000000000, starts at 0x0000000000000000"),
        (rows(("a", 0, 0x1000)), "areas end at 0x0000000000001000, expected the whole 64-bit space"),
        (rows(("a", 0, 0x1000), ("a", 0x1000, 1 << 64)), "two areas are named 'a'"),
    ],
)
def test_tiling_is_refused(areas: list[Area], message: str) -> None:
    with pytest.raises(LayoutError) as error:
        check_tiling(areas)
    assert str(error.value) == message


def test_missing_name() -> None:
    with pytest.raises(LayoutError, match=r"^this layout has no area named 'cpu_entry_area'$"):
        area_named(linux_areas("4.14", 5), "cpu_entry_area")

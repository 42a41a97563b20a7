"""The shadow's arithmetic against lines that no implementation here computed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fivefold.layout import area_named, from_shadow, linux_areas, shadow_bounds, shadow_offset, to_shadow

# address, its shadow with the common offset
COMMON = """
ffff800000000000 ffffec0000000000
ff00000000000000 ffdffc0000000000
ff10000000000000 ffe1fc0000000000
ff11000000000000 ffe21c0000000000
ffff880000000000 ffffed0000000000
ffff888000000000 ffffed1000000000
ffffc90000000000 fffff52000000000
ffa0000000000000 fff3fc0000000000
ffd4000000000000 fffa7c0000000000
fffffe0000000000 fffffbc000000000
ffffffff80000000 fffffbfff0000000
ffffffff83f1d0b8 fffffbfff07e3a17
ffffffffffffffff fffffbffffffffff
"""


@pytest.mark.parametrize("line", COMMON.strip().splitlines())
def test_common_offset(line: str) -> None:
    va, shadow = line.split()

    assert f"{to_shadow(int(va, 16)):016x}" == shadow
    assert from_shadow(int(shadow, 16)) == int(va, 16) & ~7


@pytest.mark.parametrize(
    ("release", "levels", "offset"),
    [
        ("4.14", 4, 0xDFFF_FC00_0000_0000),
        ("4.14", 5, 0xDFF8_0000_0000_0000),
        ("4.15", 5, 0xDFFF_FC00_0000_0000),
        ("6.1", 4, 0xDFFF_FC00_0000_0000),
    ],
)
def test_offsets_and_area_agree(release: str, levels: int, offset: int) -> None:
    area = area_named(linux_areas(release, levels), "kasan_shadow")
    bounds = shadow_bounds(levels, shadow_offset(release, levels))

    assert shadow_offset(release, levels) == offset
    assert (bounds.start, bounds.stop) == (area.start, area.end)


@given(st.integers(0, (1 << 64) - 1), st.sampled_from([0xDFFF_FC00_0000_0000, 0xDFF8_0000_0000_0000]))
def test_there_and_back_is_the_granule(va: int, offset: int) -> None:
    assert from_shadow(to_shadow(va, offset), offset) == va & ~7

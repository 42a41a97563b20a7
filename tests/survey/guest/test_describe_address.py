"""What an address is, in vectors."""

from __future__ import annotations

import pytest

from fivefold.arch import LA48, LA57, PagingMode
from fivefold.layout import linux_areas, shadow_offset
from fivefold.survey.guest.describe_address import describe_address

VECTORS = """
# mode address          canonical area+offset                indices            shadow           shadow of
la48 ffffffff83f1d0b8 yes kernel_image+3f1d0b8     511,510,31,285     fffffbfff07e3a17 -
la48 fffffbfff07e3a17 yes kasan_shadow+ffff07e3a17 503,511,387,483    fffffb7ffe0fc742 ffffffff83f1d0b8
la48 0000800000000000 no  non_canonical+0          256,0,0,0          -                -
la48 00007fffffffe123 yes user+7fffffffe123        255,511,511,510    -                -
la57 ff11000000001000 yes direct_map+1000          273,0,0,0,1        ffe21c0000000200 -
la57 0000800000000000 yes user+800000000000        0,256,0,0,0        -                -
"""
ROWS = [line.split() for line in VECTORS.splitlines() if line and not line.startswith("#")]


@pytest.mark.parametrize("row", ROWS, ids=[" ".join(row[:2]) for row in ROWS])
def test_vectors(row: list[str]) -> None:
    name, address, canonical, area, indices, shadow, origin = (*row, "-")[:7]
    mode: PagingMode = {"la48": LA48, "la57": LA57}[name]
    levels = int(mode.top)
    facts = describe_address(int(address, 16), mode, linux_areas("6.1", levels), shadow_offset("6.1", levels))
    assert facts.area is not None
    assert f"{facts.area.name}+{facts.va - facts.area.start:x}" == area
    assert facts.is_canonical == (canonical == "yes")
    assert ",".join(str(index) for _, index in facts.indices) == indices
    assert ("-" if facts.shadow is None else f"{facts.shadow:x}") == shadow.partition(".")[0]
    assert ("-" if facts.shadow_of is None else f"{facts.shadow_of:x}") == origin

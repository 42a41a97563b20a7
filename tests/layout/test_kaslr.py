"""Randomised bases: Linux' arithmetic, and maps with bases that were found."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fivefold.errors import LayoutError
from fivefold.layout import Bases, area_named, check_tiling, default_bases, kaslr_bases, with_bases
from fivefold.units import GIB, TIB

DRAWS = (0x1234_5678_9ABC_DEF0, 0x0FED_CBA9_8765_4321, 0xDEAD_BEEF_CAFE_F00D)

# 8 TiB of RAM and 10 TiB of padding: levels, drawn or all zero, the three bases
VECTORS = """
4 drawn ffff96cdc0000000 ffffb8c880000000 fffff2f680000000
5 drawn ff115c7880000000 ff2941c100000000 ff63ed3480000000
4 zero  ffff888000000000 ffff9a8040000000 ffffba8080000000
5 zero  ff11000000000000 ff11120040000000 ff43120080000000
"""

# Bases that real 6.1 guests had.
GUESTS = """
5 ff453d0a80000000 ff6d7d5040000000 ffb8b3f680000000
5 ff15577d00000000 ff1a69f580000000 ffe053e180000000
4 ffff8888c0000000 ffffa72300000000 ffffd80a40000000
"""


def bases_of(words: list[str]) -> Bases:
    return Bases(*(int(word, 16) for word in words))  # type: ignore[arg-type]


@pytest.mark.parametrize("line", VECTORS.strip().splitlines())
def test_draws(line: str) -> None:
    levels, which, *words = line.split()
    draws = DRAWS if which == "drawn" else (0, 0, 0)

    assert kaslr_bases("6.12", int(levels), draws, 8 * TIB) == bases_of(words)


@pytest.mark.parametrize("line", GUESTS.strip().splitlines())
def test_guests_bases_make_a_map(line: str) -> None:
    levels, *words = line.split()
    bases = bases_of(words)
    areas = with_bases("6.1", int(levels), bases)
    check_tiling(areas)

    assert tuple(area_named(areas, n).start for n in ("direct_map", "vmalloc", "vmemmap")) == bases
    assert "kasan_shadow" not in {area.name for area in areas}


@given(
    st.sampled_from([4, 5]),
    st.sampled_from(["5.2", "6.12", "7.1"]),
    st.tuples(*[st.integers(0, (1 << 64) - 1)] * 3),
    st.integers(1, 16),
)
def test_every_draw_makes_a_map(levels: int, release: str, draws: tuple[int, int, int], ram: int) -> None:
    """INV-13, with bases as this release would draw them."""
    bases = kaslr_bases(release, levels, draws, ram * TIB)

    check_tiling(with_bases(release, levels, bases))
    assert all(base % GIB == 0 for base in bases)


def test_defaults_keep_the_documents_map() -> None:
    areas = with_bases("6.1", 5, default_bases("6.1", 5))

    assert f"{area_named(areas, 'kasan_shadow').start:x}" == "ffdffc0000000000"
    assert f"{area_named(areas, 'modules').start:x}" == "ffffffffc0000000"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            "ff11000000000000 ff1100000000f000 ff43120080000000",
            "vmalloc base 0xff1100000000f000 is not aligned to 1 GiB",
        ),
        (
            "ffff888000000000 ffffc90000000000 ffffea0000000000",
            "bases are out of order; expected page_offset, vmalloc, vmemmap ascending",
        ),
        (
            "ff10000000000000 ffa0000000000000 ffd4000000000000",
            "page_offset base 0xff10000000000000 is outside the window 0xff11000000000000-0xfffffe0000000000",
        ),
    ],
)
def test_bases_are_refused(words: str, message: str) -> None:
    bases = bases_of(words.split())
    if "order" in message:
        bases = bases._replace(vmalloc=bases.vmemmap, vmemmap=bases.vmalloc)
    with pytest.raises(LayoutError) as error:
        with_bases("6.1", 5, bases)
    assert str(error.value) == message


def test_draws_are_refused() -> None:
    with pytest.raises(LayoutError, match=r"^2 draws for 4096 bytes; expected three draws and some memory$"):
        kaslr_bases("6.1", 4, (0, 0), 4096)


def test_memory_past_maxmem_is_cut_off() -> None:
    assert kaslr_bases("6.1", 4, DRAWS, 65 * TIB) == kaslr_bases("6.1", 4, DRAWS, 64 * TIB, padding=0)


@pytest.mark.parametrize(
    ("release", "vmemmap", "past"),
    [("5.1", 1 * TIB, 64 * TIB), ("5.2", 64 * TIB, 2 * GIB)],
)
def test_last_draw_may_pass_the_window(release: str, vmemmap: int, past: int) -> None:
    """Upstream's gaps are not deducted; before 5.2 vmemmap was also taken as 1 TiB in both modes."""
    start, end = 0xFF11_0000_0000_0000, 0xFFFF_FE00_0000_0000
    left = end - start - 4096 * TIB - 12800 * TIB - vmemmap
    bases = kaslr_bases(release, 5, (0, 0, left), 4096 * TIB)

    assert bases.vmemmap + 64 * TIB - end == past


def test_areas_end_at_the_next_base() -> None:
    start = 0xFFFF_8880_0000_0000
    bases = Bases(start, start + 2 * GIB, start + 4 * GIB)  # type: ignore[arg-type]
    areas = with_bases("6.1", 4, bases)
    check_tiling(areas)

    assert [area_named(areas, n).size for n in ("direct_map", "vmalloc", "vmemmap")] == [2 * GIB, 2 * GIB, TIB]

"""Areas against lines of the memory-map tables, and the laws that every map keeps."""

from __future__ import annotations

import pytest

from fivefold.errors import LayoutError
from fivefold.layout import area_named, area_of, check_tiling, image_areas, linux_areas
from fivefold.units import GIB, MIB, TIB

RELEASES = (
    "4.12",
    "4.14",
    "4.15",
    "4.17",
    "4.19.4",
    "4.20-rc1",
    "4.19.5",
    "4.20-rc2",
    "5.0",
    "6.1",
    "7.1",
    "8.0",
)

# release, levels, area, first byte, last byte
VECTORS = """
4.12     4 direct_map     ffff880000000000 ffffc7ffffffffff
4.14     5 direct_map     ff10000000000000 ff8fffffffffffff
4.19.4   4 direct_map     ffff880000000000 ffffc7ffffffffff
4.20-rc1 5 direct_map     ff10000000000000 ff8fffffffffffff
4.19.5   4 direct_map     ffff888000000000 ffffc87fffffffff
4.20-rc2 5 direct_map     ff11000000000000 ff90ffffffffffff
6.1      5 direct_map     ff11000000000000 ff90ffffffffffff
4.14     5 vmalloc        ff92000000000000 ffd1ffffffffffff
4.15     5 vmalloc        ffa0000000000000 ffd1ffffffffffff
6.1      4 vmalloc        ffffc90000000000 ffffe8ffffffffff
6.1      4 vmemmap        ffffea0000000000 ffffeaffffffffff
4.12     5 vmemmap        ffd4000000000000 ffd5ffffffffffff
4.14     5 kasan_shadow   ffd8000000000000 fff7ffffffffffff
4.15     5 kasan_shadow   ffdffc0000000000 fffffbffffffffff
4.12     4 kasan_shadow   ffffec0000000000 fffffbffffffffff
4.15     4 ldt_remap      fffffe8000000000 fffffeffffffffff
4.15     5 ldt_remap      ff90000000000000 ff90ffffffffffff
5.0      4 ldt_remap      ffff880000000000 ffff887fffffffff
5.0      5 ldt_remap      ff10000000000000 ff10ffffffffffff
6.1      5 cpu_entry_area fffffe0000000000 fffffe7fffffffff
4.12     5 espfix         ffffff0000000000 ffffff7fffffffff
6.12     4 efi_runtime    ffffffef00000000 fffffffeffffffff
6.12     5 kernel_image   ffffffff80000000 ffffffff9fffffff
4.14     4 modules        ffffffffa0000000 ffffffffff5fffff
6.1      4 modules        ffffffffa0000000 fffffffffeffffff
6.1      5 fixmap         ffffffffff000000 ffffffffff5fffff
6.1      5 vsyscall       ffffffffff600000 ffffffffff600fff
6.1      4 guard_hole     ffff800000000000 ffff87ffffffffff
6.1      5 guard_hole     ff00000000000000 ff0fffffffffffff
6.1      4 user           0000000000000000 00007fffffffffff
7.1      4 user           0000000000000000 00007fffffffefff
7.1.5    5 user_guard     00fffffffffff000 00ffffffffffffff
6.1      5 non_canonical  0100000000000000 feffffffffffffff
"""


@pytest.mark.parametrize("line", VECTORS.strip().splitlines())
def test_area_vectors(line: str) -> None:
    release, levels, name, first, last = line.split()
    area = area_named(linux_areas(release, int(levels)), name)

    assert (first, last) == (f"{area.start:016x}", f"{area.end - 1:016x}")


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("levels", [4, 5])
@pytest.mark.parametrize("image_limit", [512 * MIB, GIB])
def test_every_map_tiles_the_space(release: str, levels: int, image_limit: int) -> None:
    check_tiling(linux_areas(release, levels, image_limit=image_limit))


@pytest.mark.parametrize("release", RELEASES)
def test_both_modes_share_the_top(release: str) -> None:
    """INV-9, but for the names of the slot that only four-level kernels gave to the LDT."""
    top = 0xFFFF_FC00_0000_0000
    four, five = ([(a.start, a.end) for a in linux_areas(release, n) if a.start >= top] for n in (4, 5))

    assert four == five


@pytest.mark.parametrize("layout", ["linux", "proposal"])
@pytest.mark.parametrize("levels", [4, 5])
def test_image_layouts_tile_and_have_a_fixmap(layout: str, levels: int) -> None:
    areas = image_areas(layout, levels)
    check_tiling(areas)

    assert area_named(areas, "fixmap").start == 0xFFFF_FFFF_FF00_0000
    assert area_named(areas, "modules").end == 0xFFFF_FFFF_FF00_0000


def test_image_layouts_have_their_own_bases() -> None:
    got = {
        (layout, levels): f"{area_named(image_areas(layout, levels), 'direct_map').start:x}"
        for layout in ("linux", "proposal")
        for levels in (4, 5)
    }

    assert got == {
        ("linux", 4): "ffff888000000000",
        ("linux", 5): "ff11000000000000",
        ("proposal", 4): "ffff880000000000",
        ("proposal", 5): "ff10000000000000",
    }


def test_area_of_is_exact_at_both_ends() -> None:
    areas = linux_areas("6.1", 5)
    for area in areas:
        assert area_of(areas, area.start) is area
        assert area_of(areas, area.end - 1) is area
    assert area_of(areas[:3], 0xFFFF_FFFF_FFFF_FFFF) is None
    assert area_named(areas, "vmalloc").size == 12800 * TIB


def test_randomised_images_have_a_gibibyte_for_the_kernel() -> None:
    areas = linux_areas("6.1.0-56-cloud-amd64", 4, image_limit=GIB)

    assert area_named(areas, "modules").start == 0xFFFF_FFFF_C000_0000


def test_a_release_newer_than_read_says_so() -> None:
    assert {a.source for a in linux_areas("8.0", 5)} == {
        "Linux 4.19.5, 4.20 and later: Documentation mm.rst, 5-level table (read up to 7.1.5, assumed for 8.0)"
    }


@pytest.mark.parametrize(
    ("release", "levels", "message"),
    [
        ("4.11", 4, "Linux 4.11 is older than the maps known here; expected 4.12 or newer"),
        ("six", 4, "'six' is not a Linux release; expected a number such as 6.1"),
        ("6.1.2.3", 4, "'6.1.2.3' is not a Linux release; expected a number such as 6.1"),
        ("6.1", 3, "3 levels of page tables; expected 4 or 5"),
    ],
)
def test_refusals(release: str, levels: int, message: str) -> None:
    with pytest.raises(LayoutError) as error:
        linux_areas(release, levels)
    assert str(error.value) == message


def test_unknown_image_layout() -> None:
    with pytest.raises(LayoutError, match=r"^unknown layout 'windows'; expected 'linux' or 'proposal'$"):
        image_areas("windows", 5)
    with pytest.raises(LayoutError, match=r"^image limit is 0x1000; expected 512 MiB or 1 GiB$"):
        linux_areas("6.1", 5, image_limit=4096)

from __future__ import annotations

import random
from itertools import pairwise
from typing import Any

import pytest

from fivefold.arch import LA48, LA57, Level, Mapped, PagingMode, Rights, translate
from fivefold.survey.scan.regions import Region, flag_names, leaf_rights, part_of, split_at
from fivefold.survey.scan.scan_result import RegionKind
from fivefold.survey.scan.select import RightsFilter, meet
from fivefold.units import MIB, PhysAddr, VirtAddr


def region(start: int, end: int, phys: int | None = 0x1000, kind: RegionKind = RegionKind.MAPPED) -> Region:
    place = None if phys is None else PhysAddr(phys)
    return Region(VirtAddr(start), end, kind, Level.PT, Rights(), Rights(), 0x67, place)


def rights_of(text: str) -> Rights:
    return Rights("w" in text, "u" in text, "x" in text)


def test_flag_names(flags_row: list[str]) -> None:
    level, raw, names = flags_row
    assert flag_names(int(raw, 16), Level[level]) == names.split()


def test_rights_filter(rights_row: list[str]) -> None:
    text, wanted, barred, effective, leaf, of_leaf, lets = rights_row
    found = RightsFilter.parse(text, of_leaf=of_leaf == "yes")
    one = region(0x1000, 0x2000)._replace(effective=rights_of(effective), leaf=rights_of(leaf))

    assert (found.wanted, found.barred) == (frozenset(wanted), frozenset(barred))
    assert found.lets(one) is (lets == "yes")


@pytest.mark.parametrize("kind", [RegionKind.MALFORMED, RegionKind.UNREADABLE])
def test_rights_never_hide_what_is_wrong(kind: RegionKind) -> None:
    assert RightsFilter.parse("wx").lets(
        region(0x1000, 0x2000, kind=kind)._replace(effective=Rights(False, False, False))
    )


def test_a_repeat_may_hold_less_than_its_path_allows() -> None:
    one = region(0x1000, 0x2000, kind=RegionKind.REPEAT)._replace(effective=rights_of("rw--"))
    assert [RightsFilter.parse(text).lets(one) for text in ("w", "-w", "x", "-x")] == [True, True, False, True]


@pytest.mark.parametrize("text", ["", "-", "q", "w-r", "xx-y"])
def test_rights_refused(text: str) -> None:
    with pytest.raises(ValueError, match="are no rights; expected letters of w, x and u"):
        RightsFilter.parse(text)


def test_a_part_moves_its_place_along() -> None:
    assert part_of(region(0x4000, 0x8000, 0x9000), 0x5000, 0x6000)[:2] == (0x5000, 0x6000)
    assert part_of(region(0x4000, 0x8000, 0x9000), 0x5000, 0x6000).phys == 0xA000
    assert part_of(region(0x4000, 0x8000, None), 0x5000, 0x6000).phys is None


def test_split_at_borders_inside_only() -> None:
    parts = list(split_at(region(0x4000, 0x8000), [0x1000, 0x4000, 0x5000, 0x8000, 0x9000]))
    assert [(part.start, part.end, part.phys) for part in parts] == [(0x4000, 0x5000, 0x1000), (0x5000, 0x8000, 0x2000)]


def test_split_leaves_repeats_whole() -> None:
    one = region(0x4000, 0x8000, kind=RegionKind.REPEAT)
    assert list(split_at(one, [0x5000])) == [one]


def test_sizes_and_text() -> None:
    last = region(0xFFFF_FFFF_FFFF_F000, 1 << 64)._replace(area="fixmap")
    assert (last.size, last.page) == (0x1000, "4K")
    assert str(last) == "0xfffffffffffff000-0xffffffffffffffff 4K   rwxu 0x0000000000001000 fixmap"
    assert region(0x1000, 0x2000, kind=RegionKind.UNREADABLE).page is None


def test_meet() -> None:
    assert meet(None, None) is None
    assert meet(range(4, 8), None) == range(4, 8)
    assert meet(range(4, 8), range(6, 20)) == range(6, 8)
    assert not meet(range(4, 8), range(9, 20))


@pytest.mark.parametrize(
    "flags", [w | u | nx | rest for w in (0, 2) for u in (0, 4) for nx in (0, 1 << 63) for rest in (1, 0xFE1)]
)
def test_what_a_leaf_says_by_itself(flags: int) -> None:
    assert leaf_rights(flags) == Rights(write=bool(flags & 2), user=bool(flags & 4), execute=not flags >> 63)


@pytest.mark.parametrize("mode", [LA48, LA57], ids=["la48", "la57"])
@pytest.mark.parametrize("contiguous", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_every_region_against_walks(build: Any, mode: PagingMode, contiguous: bool, seed: int) -> None:
    """Each page of a region is what a walk shows; pages that no region has are not mapped; windows cut them."""
    draw, built = random.Random(seed), build(mode).linux()
    direct = 0xFFFF_8880_0000_0000 if mode is LA48 else 0xFF11_0000_0000_0000
    bits = [1, 3, 7, 5, 1 | 1 << 63, 7 | 1 << 63, 0x63, 0x103, 0x207, 0x8000_0000_0000_0E67]
    for base in (0x40_0000, 0x7FFF_FFC0_0000, direct + 64 * MIB):
        frame = 0x30_0000
        for slot in range(96):
            if draw.random() < 0.8:
                frame = frame + 0x1000 if draw.random() < 0.7 else draw.randrange(0x200, 0x4000) << 12
                built.page(base + 0x1000 * slot, frame | (draw.choice(bits) if draw.random() < 0.3 else 7))
    space = built.space()
    every = list(space.regions(contiguous=contiguous))
    pages = {page: region for region in every for page in range(region.start, region.end, region.level.span)}
    assert sum(region.size // region.level.span for region in every) == len(pages)
    probed = [
        base + 0x1000 * slot for base in (0x40_0000, 0x7FFF_FFC0_0000, direct + 64 * MIB) for slot in range(-4, 100)
    ]
    for va in (*pages, *probed):
        found = translate(space.tables, VirtAddr(va))
        region = next((one for one in every if one.start <= va < one.end), None)
        assert isinstance(found, Mapped) is (region is not None), hex(va)
        if not isinstance(found, Mapped) or region is None:
            continue
        raw = found.leaf.raw
        assert (region.level, region.effective) == (found.leaf.level, found.rights)
        assert region.leaf == Rights(bool(raw & 2), bool(raw & 4), not raw >> 63)
        assert region.flags == raw & ~0xF_FFFF_FFFF_F000
        assert region.phys is None or region.phys + va - region.start == found.pa
        assert region.area == space.areas.name_at(va)
        assert region.phys is not None or not contiguous
    for low, high in pairwise(every):
        same = low[2:7] == high[2:7] and low.end == high.start and low.area == high.area
        assert not same or contiguous, "two regions that are one"
        if same and contiguous and low.phys is not None:
            assert high.phys != low.phys + low.size
    for _ in range(20):
        window = range(*sorted(draw.choice(every).start + draw.randrange(-0x3000, 0x5000) & ~0xFFF for _ in "ab"))
        cut = list(space.regions(window, contiguous=contiguous))
        size = sum(max(min(one.end, window.stop) - max(one.start, window.start), 0) for one in every)
        assert sum(one.size for one in cut) == size
        assert all(window.start <= one.start < one.end <= window.stop for one in cut)
        for one in cut:
            found = translate(space.tables, VirtAddr(one.start))
            assert isinstance(found, Mapped) and one.phys in (None, found.pa)
            assert one.phys is not None or not contiguous

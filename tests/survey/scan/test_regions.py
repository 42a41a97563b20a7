from __future__ import annotations

import pytest

from fivefold.arch import Level, Rights
from fivefold.survey.scan.regions import Region, flag_names, part_of, split_at
from fivefold.survey.scan.scan_result import RegionKind
from fivefold.survey.scan.select import RightsFilter, meet
from fivefold.units import PhysAddr, VirtAddr


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

"""The way back from physical to virtual addresses."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fivefold.arch import LA48, Level, Mapped, Rights, TooManyRuns, translate
from fivefold.memory import Bank, BankedMemory, Extent, Source, open_source
from fivefold.survey.find import SEARCH_STEP, find_mappings, search_memory
from fivefold.survey.guest.identify import GivenPaging
from fivefold.survey.guest.root_spaces import root_spaces
from fivefold.survey.space import Space
from fivefold.units import GIB, MIB, PhysAddr, VirtAddr

GUESTS = Path(__file__).parents[1] / "data" / "guests"
P, W, U, NX = 1, 2, 4, 1 << 63
KERNEL = 0xFFFF_9000_0000_0000

Build = Callable[..., Any]


def places(built: Any, start: int, stop: int | None = None) -> list[str]:
    (answer,) = find_mappings([built.space()], [range(start, stop or start + 1)])
    return [
        f"{place.va:x}+{place.size:x} {place.phys:x} {place.page}"
        + (f" {place.repeats}x{place.every:x}" if place.repeats else "")
        for place in answer.places
    ]


def test_one_byte_at_every_page_size(build: Build) -> None:
    built = build(LA48).page(3 * GIB, GIB | P | U, Level.PDPT).page(8 * MIB, GIB + 2 * MIB | P, Level.PD)
    built.page(KERNEL, GIB + 2 * MIB + 0x3000 | P | W | NX)
    at = GIB + 2 * MIB + 0x3123
    assert places(built, at) == [
        f"803123+1 {at:x} 2M",
        f"c0203123+1 {at:x} 1G",
        f"ffff900000000123+1 {at:x} 4K",
    ]
    (answer,) = find_mappings([built.space()], [range(at, at + 1)])
    assert [place.rights for place in answer.places] == [
        Rights(False, False, True),
        Rights(False, True, True),
        Rights(True, False, False),
    ]


def test_a_page_at_address_zero(build: Build) -> None:
    assert places(build(LA48).page(0, 0x5000 | P | U), 0x5000, 0x6000) == ["0+1000 5000 4K"]


@pytest.mark.parametrize("at", [0x1000, 0x1001, 0x1FFF])
def test_any_byte_of_a_table_is_part_of_it(build: Build, at: int) -> None:
    (answer,) = find_mappings([build(LA48).page(GIB, 0x5000 | P | U).space()], [range(at, at + 1)])
    assert [(use.frame, use.level) for use in answer.tables] == [(0x1000, Level.PML4)]


def test_a_range_is_cut_to_what_each_mapping_has_of_it(build: Build) -> None:
    built = build(LA48).pages(GIB, 0x4000, 0x1_0000 | P).pages(2 * GIB, 0x2000, 0x1_3000 | P)
    assert places(built, 0x1_2000, 0x1_5000) == ["40002000+2000 12000 4K", "80000000+2000 13000 4K"]
    assert places(built, 0x2_0000) == []


def test_a_shared_table_is_told_with_how_often_it_repeats(build: Build) -> None:
    built = build(LA48).page(4 * GIB + 100 * MIB, GIB | P)
    for i in range(40):
        built.entry(0x60000, 2 * i, GIB + 0x2000 * i | P)
    for slot in (0, 1, 2, 5):
        built.entry(0x3000, slot, 0x60000 | P | W | U)
    assert places(built, GIB + 0x2000) == [
        "100002000+1 40002000 4K",
        "100202000+1 40002000 4K 1x200000",
        "100a02000+1 40002000 4K",
    ]


def test_what_is_a_table_is_told(build: Build) -> None:
    built = build(LA48).page(GIB, GIB | P)
    (answer,) = find_mappings([built.space()], [range(0x2008, 0x4000)])
    assert [(use.frame, use.level) for use in answer.tables] == [(0x3000, Level.PD), (0x2000, Level.PT)]


PAGES = st.lists(
    st.tuples(st.sampled_from([GIB, GIB + 2 * MIB, KERNEL]), st.integers(0, 20), st.integers(0, 5)),
    max_size=30,
    unique_by=lambda page: page[:2],
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(PAGES, st.integers(0, 6), st.integers(1, 3))
def test_every_page_against_translation(build: Build, pages: list[Any], first: int, count: int) -> None:
    built = build(LA48)
    for base, index, frame in pages:
        built.page(base + 0x1000 * index, GIB + 0x1000 * frame | P)
    target = range(GIB + 0x1000 * first, GIB + 0x1000 * (first + count))
    space = built.space()
    (answer,) = find_mappings([space], [target])
    found = {va for place in answer.places for va in range(place.va, place.va + place.size, 0x1000)}
    expected = set()
    for base, index, _ in pages:
        end = translate(space.tables, VirtAddr(base + 0x1000 * index))
        assert isinstance(end, Mapped)
        if end.pa in target:
            expected.add(base + 0x1000 * index)
    assert found == expected


@pytest.mark.parametrize("path", sorted(GUESTS.glob("*.elf.xz")), ids=lambda path: path.name.partition(".")[0])
def test_every_root_of_a_guest_maps_its_own_table(path: Path) -> None:
    with open_source(str(path)) as source:
        roots = root_spaces(source, GivenPaging())
        assert roots.roots
        answers = find_mappings(roots.spaces(), [range(root.root, root.root + 4096) for root in roots.roots])
        for root, answer in zip(roots.roots, answers, strict=True):
            assert (root.root, root.root) in {(use.frame, use.root) for use in answer.tables}
            assert "direct_map" in {place.area for place in answer.places}


def test_a_given_root_is_the_only_one(build: Build) -> None:
    with open_source(str(GUESTS / "plain-la57-kaslr.elf.xz")) as source:
        roots = root_spaces(source, GivenPaging(cr3=0x1EA0_A000))
        assert [root.root for root in roots.roots] == [0x1EA0_A000]


def test_search_over_banks_and_steps() -> None:
    one = bytearray(SEARCH_STEP + 64)
    one[SEARCH_STEP - 2 : SEARCH_STEP + 2] = b"abab"
    one[-1:] = b"c"
    banks = [Bank(0x1000, memoryview(one)), Bank(0x1000 + len(one), memoryview(b"cc" + bytes(30)))]
    memory = BankedMemory(banks, "test")
    assert search_memory(memory, b"abab", 9) == [0x1000 + SEARCH_STEP - 2]
    assert search_memory(memory, b"ccc", 9) == [0x1000 + len(one) - 1]
    assert search_memory(memory, b"cc", 9) == [0x1000 + len(one) - 1, 0x1000 + len(one)]
    assert search_memory(memory, b"cc", 1) == [PhysAddr(0x1000 + len(one) - 1)]
    with pytest.raises(ValueError, match=r"^nothing to search for; expected one byte or more$"):
        search_memory(memory, b"", 1)


def nested() -> Space:
    """A PT that a PD maps three times in a row, a PD that a PDPT maps twice, both with a gap behind."""
    image = bytearray(0x5000)
    for page, slot, raw in (
        (0, 1, 0x2007),
        *((1, slot, 0x3007) for slot in (4, 5)),
        *((2, slot, 0x4007) for slot in (7, 8, 9)),
        *((3, slot, 0x9005) for slot in range(0, 60, 2)),
        *((3, slot, 0xA007) for slot in range(1, 60, 2)),
    ):
        at = page * 0x1000 + slot * 8
        image[at : at + 8] = raw.to_bytes(8, "little")
    source = Source(BankedMemory([Bank(0x1000, memoryview(image))], "nested"), "test")
    return Space(source, GivenPaging(cr3=0x1000, levels=4, force=True))


def test_tables_shared_by_shared_tables() -> None:
    """Every place counts, however deep it repeats."""
    space = nested()
    (answer,) = find_mappings([space], [range(0xA000, 0xA001)])
    told = [
        place.va + sum(steps)
        for place in answer.places
        for steps in product(*(range(0, s.times * s.bytes, s.bytes) for s in place.strides))
    ]
    mapped = [region.start for region in space.regions(contiguous=True) if region.phys == 0xA000]
    assert sorted(told) == mapped and len(mapped) == 2 * 3 * 30
    assert sum(place.repeats + 1 for place in answer.places) == len(mapped)


def test_more_places_than_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fivefold.survey.find.MAX_PLACES", 60)
    with pytest.raises(TooManyRuns, match=r"^the tables at 0x0000000000001000 unfold into more than 60 runs$"):
        find_mappings([nested()], [range(0xA000, 0xA001)])


def test_search_where_most_is_not_written() -> None:
    """What is not written reads as zeros, and those of a pattern may lie there; extents end a search all the same."""
    data = bytearray(0x100)
    data[0x40:0x44] = b"ab\0\0"
    data[0xFF] = 0x61
    banks = [Bank(0x1000, memoryview(data)), Bank(0x1200, memoryview(data))]
    parts = [Extent(0x1040, 0x1042), Extent(0x10FF, 0x1100), Extent(0x1240, 0x1242), Extent(0x12FF, 0x1300)]
    memory = BankedMemory(banks, "test", written=lambda: parts)
    for pattern in (b"ab", b"\0\0\0ab", b"ab\0\0\0", b"\0a", b"a\0", b"\0\0", b"b" + bytes(0x70), b"b" + bytes(0xF0)):
        assert search_memory(memory, pattern, 999) == search_memory(BankedMemory(banks, "test"), pattern, 999)
    assert search_memory(memory, b"ab", 9) == [0x1040, 0x1240]


def test_memory_with_a_hole_is_not_joined() -> None:
    memory = BankedMemory([Bank(0x1000, memoryview(b"ab")), Bank(0x2000, memoryview(b"cd"))], "test")
    assert search_memory(memory, b"bc", 9) == []
    assert search_memory(memory, b"cd", 9) == [0x2000]

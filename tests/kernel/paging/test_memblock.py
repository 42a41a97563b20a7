"""Memory map in, pages out: against sets of page numbers, and against firmware that lies."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fivefold.kernel.paging import memblock as kernel_memblock

PAGE = 4096
TOP = 0xFFFF_FFFF_FFFF_F000
"""Last page boundary of 64 bits."""


@pytest.fixture(scope="module")
def helpers(code: Any) -> Any:
    """One instance for all tests, emptied before each use: loading costs more than any test here."""
    return code(None, "memblock", extents=[(0x0, 0x40_0000)])


@pytest.fixture
def fresh(helpers: Any) -> Any:
    return empty(helpers)


def empty(helpers: Any) -> Any:
    for name in ("memory_count", "reserved_count", "overflowed", "table_pages", "allocated_bytes"):
        helpers.set(f"memblock.{name}", 0)
    for name in ("pool_next", "pool_end", "free_tables"):
        helpers.set(f"memblock.{name}", 0)
    return helpers


def ranges(helpers: Any, name: str = "memory") -> list[tuple[int, int]]:
    """A list as (start, exclusive end)."""
    count = helpers.get(f"memblock.{name}_count")
    data = helpers.plain.read(helpers.address(f"memblock.{name}"), 16 * count)
    return list(struct.iter_unpack("<2Q", data))


def pages(found: list[tuple[int, int]]) -> set[int]:
    return {page for start, end in found for page in range(start // PAGE, end // PAGE)}


ADDED = [
    ("whole pages", [(0x1000, 0x2000)], [(0x1000, 0x3000)]),
    ("rounded inward", [(0x1001, 0x2FFE)], [(0x2000, 0x3000)]),
    ("less than a page", [(0x1001, 0xFFF)], []),
    ("zero", [(0x1000, 0)], []),
    ("touching", [(0x1000, 0x1000), (0x2000, 0x1000)], [(0x1000, 0x3000)]),
    ("overlapping", [(0x1000, 0x3000), (0x2000, 0x4000)], [(0x1000, 0x6000)]),
    ("inside", [(0x1000, 0x5000), (0x2000, 0x1000)], [(0x1000, 0x6000)]),
    ("around", [(0x2000, 0x1000), (0x1000, 0x5000)], [(0x1000, 0x6000)]),
    ("bridging", [(0x1000, 0x1000), (0x3000, 0x1000), (0x5000, 0x1000), (0x2000, 0x3000)], [(0x1000, 0x6000)]),
    ("descending", [(0x9000, 0x1000), (0x5000, 0x1000)], [(0x5000, 0x6000), (0x9000, 0xA000)]),
    ("wraps", [(0xFFFF_FFFF_FFF0_0000, 0x20_0000)], [(0xFFFF_FFFF_FFF0_0000, TOP)]),
    ("ends at 2^64", [(0xFFFF_FFFF_FFF0_0000, 0x10_0000)], [(0xFFFF_FFFF_FFF0_0000, TOP)]),
    ("all of it", [(0, (1 << 64) - 1)], [(0, TOP)]),
    ("the last byte", [((1 << 64) - 1, 1)], []),
    ("from the last page on", [(TOP + 1, (1 << 64) - 1)], []),
]  # fmt: skip


@pytest.mark.parametrize(("name", "given_ranges", "want"), ADDED, ids=[row[0] for row in ADDED])
def test_add(fresh: Any, name: str, given_ranges: list[tuple[int, int]], want: list[tuple[int, int]]) -> None:
    for start, size in given_ranges:
        fresh.call("memblock.add", start, size)
    assert ranges(fresh) == want
    assert fresh.call("memblock.total") == sum(end - start for start, end in want)
    assert fresh.call("memblock.end_of_memory") == (want[-1][1] if want else 0)


REMOVED = [
    ("middle", (0x3000, 0x1000), [(0x1000, 0x3000), (0x4000, 0x8000)]),
    ("one byte takes its page", (0x3800, 1), [(0x1000, 0x3000), (0x4000, 0x8000)]),
    ("two bytes take two", (0x3FFF, 2), [(0x1000, 0x3000), (0x5000, 0x8000)]),
    ("start", (0x1000, 0x1000), [(0x2000, 0x8000)]),
    ("end", (0x7000, 0x1000), [(0x1000, 0x7000)]),
    ("over the start", (0, 0x2000), [(0x2000, 0x8000)]),
    ("all", (0x1000, 0x7000), []),
    ("more than all", (0, 0x10000), []),
    ("beside", (0x8000, 0x1000), [(0x1000, 0x8000)]),
    ("zero", (0x3000, 0), [(0x1000, 0x8000)]),
    ("wraps", (0x4000, (1 << 64) - 1), [(0x1000, 0x4000)]),
    ("up to 2^64", (0x4000, (1 << 64) - 0x4000), [(0x1000, 0x4000)]),
]


@pytest.mark.parametrize(("name", "taken", "want"), REMOVED, ids=[row[0] for row in REMOVED])
def test_remove(fresh: Any, name: str, taken: tuple[int, int], want: list[tuple[int, int]]) -> None:
    fresh.call("memblock.add", 0x1000, 0x7000)
    fresh.call("memblock.remove", *taken)
    assert ranges(fresh) == want


@pytest.mark.parametrize(
    ("start", "size", "want"),
    [
        (0x1800, 1, [(0x1000, 0x2000)]),
        (0x1FFF, 2, [(0x1000, 0x3000)]),
        (0x1000, 0, []),
        (0xFFFF_FFFF_FFFF_0000, 0x2_0000, [(0xFFFF_FFFF_FFFF_0000, TOP)]),
        (0x4000, (1 << 64) - 1, [(0x4000, TOP)]),
        (0x4000, (1 << 64) - 0x4001, [(0x4000, TOP)]),
    ],
)
def test_reserve_takes_every_page_that_is_touched(
    fresh: Any, start: int, size: int, want: list[tuple[int, int]]
) -> None:
    fresh.call("memblock.reserve", start, size)
    assert ranges(fresh, "reserved") == want


def test_full_list_is_said_and_nothing_is_damaged(fresh: Any) -> None:
    count = kernel_memblock.MAX_RANGES
    for i in range(count):
        fresh.call("memblock.add", 0x10_0000 * (i + 1), PAGE)
    assert not fresh.get("memblock.overflowed")
    before = ranges(fresh)
    fresh.call("memblock.add", 0x10_0000 * (count + 1), PAGE)
    assert fresh.get("memblock.overflowed")
    assert ranges(fresh) == before


def test_full_list_still_takes_what_joins(fresh: Any) -> None:
    for i in range(kernel_memblock.MAX_RANGES):
        fresh.call("memblock.add", 0x10_0000 * (i + 1), PAGE)
    fresh.call("memblock.add", 0x10_0000 + PAGE, PAGE)
    assert not fresh.get("memblock.overflowed")
    assert ranges(fresh)[0] == (0x10_0000, 0x10_0000 + 2 * PAGE)


def test_full_list_that_a_removal_would_split_is_said(fresh: Any) -> None:
    for i in range(kernel_memblock.MAX_RANGES):
        fresh.call("memblock.add", 0x10_0000 * (i + 1), 3 * PAGE)
    fresh.call("memblock.remove", 0x10_0000 + PAGE, PAGE)
    assert fresh.get("memblock.overflowed")


@pytest.mark.parametrize(
    ("limit", "dropped", "want"),
    [
        (0x9000, 0, [(0x1000, 0x3000), (0x5000, 0x8000)]),
        (0x8000, 0, [(0x1000, 0x3000), (0x5000, 0x8000)]),
        (0x6000, 0x2000, [(0x1000, 0x3000), (0x5000, 0x6000)]),
        (0x5000, 0x3000, [(0x1000, 0x3000)]),
        (0x4000, 0x3000, [(0x1000, 0x3000)]),
        (0x1000, 0x5000, []),
    ],
)
def test_cut(fresh: Any, limit: int, dropped: int, want: list[tuple[int, int]]) -> None:
    fresh.call("memblock.add", 0x1000, 0x2000)
    fresh.call("memblock.add", 0x5000, 0x3000)
    assert fresh.call("memblock.cut", limit) == dropped
    assert ranges(fresh) == want


def test_frame_0_is_never_handed_out(fresh: Any) -> None:
    """Its address would look like "none"."""
    fresh.call("memblock.add", 0, 3 * PAGE)
    got = [fresh.call("memblock.allocate", PAGE, PAGE) for _ in range(4)]
    assert got == [PAGE, 2 * PAGE, 0, 0]


@pytest.mark.parametrize(("align", "want"), [(PAGE, 0x3000), (0x4000, 0x4000), (0x20_0000, 0x20_0000)])
def test_allocations_are_aligned(fresh: Any, align: int, want: int) -> None:
    fresh.call("memblock.add", 0x3000, 0x30_0000)
    assert fresh.call("memblock.allocate", PAGE, align) == want


def test_nothing_is_allocated_from_where_it_does_not_fit(fresh: Any) -> None:
    fresh.call("memblock.add", 0x1000, 0x3000)
    fresh.call("memblock.reserve", 0x2000, PAGE)
    assert fresh.call("memblock.allocate", 2 * PAGE, PAGE) == 0
    assert fresh.call("memblock.allocate", (1 << 64) - PAGE, PAGE) == 0
    assert fresh.call("memblock.allocate", PAGE, 1 << 63) == 0
    assert fresh.get("memblock.allocated_bytes") == 0


def test_tables_are_clean_counted_and_used_up(fresh: Any) -> None:
    fresh.ram.write(0, b"\xff" * 0x40_0000)
    fresh.call("memblock.add", 0x10_0000, 20 * PAGE)
    got = [fresh.call("memblock.allocate_table") for _ in range(21)]
    assert sorted(got[:20]) == [0x10_0000 + PAGE * i for i in range(20)]
    assert got[20] == 0
    assert fresh.get("memblock.table_pages") == 20
    assert all(not any(fresh.ram.read(page, PAGE)) for page in got[:20])


def test_tables_come_back_clean_and_once(fresh: Any) -> None:
    fresh.call("memblock.add", 0x10_0000, 2 * PAGE)
    got = [fresh.call("memblock.allocate_table") for _ in range(2)]
    for page in got:
        fresh.ram.write(page, b"\xff" * PAGE)
        fresh.call("memblock.free_table", page)
    assert fresh.get("memblock.table_pages") == 0
    again = [fresh.call("memblock.allocate_table") for _ in range(3)]
    assert sorted(again[:2]) == sorted(got)
    assert again[2] == 0
    assert not any(fresh.ram.read(got[0], PAGE))


OPERATIONS = st.tuples(
    st.sampled_from(["add", "remove", "reserve", "cut", "allocate"]),
    st.integers(0, 40 * PAGE),
    st.integers(0, 12 * PAGE),
)


class Model:
    """The same in sets of page numbers."""

    def __init__(self) -> None:
        self.memory: set[int] = set()
        self.reserved: set[int] = set()

    def add(self, start: int, size: int) -> None:
        self.memory |= set(range(-(-start // PAGE), (start + size) // PAGE))

    def remove(self, start: int, size: int) -> None:
        self.memory -= self.touched(start, size)

    def reserve(self, start: int, size: int) -> None:
        self.reserved |= self.touched(start, size)

    def cut(self, start: int) -> int:
        dropped = {page for page in self.memory if page >= start // PAGE}
        self.memory -= dropped
        return len(dropped) * PAGE

    @staticmethod
    def touched(start: int, size: int) -> set[int]:
        return set(range(start // PAGE, -(-(start + size) // PAGE))) if size else set()

    def has_room(self, count: int) -> bool:
        free = self.memory - self.reserved - {0}
        return any(all(page + i in free for i in range(count)) for page in free)


@settings(max_examples=60)
@given(operations=st.lists(OPERATIONS, max_size=14))
def test_any_sequence_agrees_with_sets_of_pages(helpers: Any, operations: list[tuple[str, int, int]]) -> None:
    empty(helpers)
    model = Model()
    for name, start, size in operations:
        if name == "allocate":
            count = size // PAGE + 1
            place = helpers.call("memblock.allocate", count * PAGE, PAGE)
            assert (place != 0) == model.has_room(count)
            got = set(range(place // PAGE, place // PAGE + count)) if place else set()
            assert got <= model.memory - model.reserved - {0}, "handed out twice, or reserved, or no memory"
            model.reserved |= got
        elif name == "cut":
            limit = start // PAGE * PAGE
            assert helpers.call("memblock.cut", limit) == model.cut(limit)
        else:
            helpers.call(f"memblock.{name}", start, size)
            getattr(model, name)(start, size)
        assert pages(ranges(helpers)) == model.memory
        assert pages(ranges(helpers, "reserved")) == model.reserved
        assert ranges(helpers) == sorted(ranges(helpers))


def test_a_place_that_cannot_be_noted_is_not_handed_out(fresh: Any, guards: Any, code: Any) -> None:
    """Else the next caller gets the same place: two tables in one frame."""

    def check(package: str) -> None:
        helpers = code(None, "memblock", package=package)
        helpers.call("memblock.add", 0x10_0000, 1 << 40)
        for i in range(kernel_memblock.MAX_RESERVED):
            helpers.call("memblock.reserve", 0x20_0000 + 0x4000 * i, PAGE)
        assert not helpers.get("memblock.overflowed")
        assert helpers.call("memblock.allocate", 0x20_0000, 0x20_0000) == 0
        assert helpers.get("memblock.overflowed")
        assert helpers.call("memblock.allocate", PAGE, PAGE) == 0, "nothing at all is handed out any more"

    guards(check, "memblock.py", ("    if overflowed:\n        return PhysAddr(0)\n", ""))


def test_as_many_ranges_as_the_map_may_have_rows(fresh: Any) -> None:
    """512 rows of one page, each beside a hole; or one row of RAM that 511 others take pages from."""
    for i in range(512):
        fresh.call("memblock.add", 0x10_0000 + 2 * PAGE * i, PAGE)
    assert fresh.get("memblock.memory_count") == 512
    fresh.call("memblock.forget")
    fresh.call("memblock.add", 0x10_0000, 1 << 30)
    for i in range(511):
        fresh.call("memblock.remove", 0x11_0000 + 2 * PAGE * i, PAGE)
    assert fresh.get("memblock.memory_count") == 512
    assert not fresh.get("memblock.overflowed")


@pytest.mark.parametrize(
    ("limit", "want"), [(0x9_F000, 0x9_D000), (0x8_0800, 0x7_E000), (0x3000, 0x1000), (0x2000, 0), (0x1000, 0)]
)
def test_the_highest_place_below_a_limit(fresh: Any, limit: int, want: int) -> None:
    fresh.call("memblock.add", 0, 0xA_0000)
    assert fresh.call("memblock.find_below", 2 * PAGE, limit & ~0xFFF) == want

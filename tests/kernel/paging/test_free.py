"""Tearing down any pages, ranges and whole trees, folded and not: what is lost, or given back twice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fivefold.arch import LA48, LA57, PagingMode
from fivefold.units import GIB, MIB

Guards = Callable[..., None]
KERNEL = "fivefold.kernel"
PAGE = 4096
RW = 0x8000_0000_0000_0007
BORDERS = (1 << 21, GIB, 1 << 39, 2 << 39, 1 << 46)
HIGH_BORDERS = (1 << 48, 2 << 48, 1 << 55)


def prepared(code: Any, mode: PagingMode, package: str = KERNEL) -> tuple[Any, int]:
    helpers = code(mode, "free", "mapping", "memblock", package=package, extents=[(MIB, 3 * MIB)])
    helpers.add_memory()
    return helpers, helpers.table()


def fill(helpers: Any, top: int, places: set[int]) -> None:
    for va in places:
        page = helpers.call("memblock.allocate_page")
        assert helpers.call("mapping.map_page", top, va, page, RW) == 1


def tables_for(mode: PagingMode, places: set[int]) -> int:
    """Tables that a tree with pages at *places* needs, without its root."""
    return sum(len({va >> level.shift + 9 for va in places}) for level in mode.levels if level is not mode.top)


def places_of(mode: PagingMode) -> st.SearchStrategy[int]:
    """Pages beside the borders of tables, where mistakes lie."""
    borders = BORDERS + (HIGH_BORDERS if mode is LA57 else ())
    return st.builds(lambda border, by: border + by * PAGE, st.sampled_from(borders), st.integers(-3, 2))


@settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_ranges_take_what_is_in_them_and_nothing_else(code: Any, mode: PagingMode, data: st.DataObject) -> None:
    """After each range: the pages outside are there, those inside are not, and tables are as many as are needed."""
    helpers, top = prepared(code, mode)
    left = data.draw(st.sets(places_of(mode), min_size=1, max_size=8))
    fill(helpers, top, left)
    for _ in range(2):
        assert helpers.get("memblock.data_pages") == len(left)
        assert helpers.get("memblock.table_pages") == 1 + tables_for(mode, left)
        start, end = sorted((data.draw(places_of(mode)), data.draw(places_of(mode))))
        helpers.call("free.free_range", top, start, end - start)
        gone = {va for va in left if start <= va < end}
        left -= gone
        assert all(helpers.physical(top, va) is None for va in gone)
        assert all(helpers.physical(top, va) is not None for va in left)
    helpers.call("free.free_range", top, 0, mode.gap.start)
    assert (helpers.get("memblock.data_pages"), helpers.get("memblock.table_pages")) == (0, 1)
    assert not any(helpers.ram.read(top - helpers.window, PAGE)), "the top level is cleared too"


def balanced(code: Any, package: str, mode: PagingMode) -> None:
    """A tree over every border is built and torn down twice; each page of memory is handed out once at most."""
    helpers, top = prepared(code, mode, package)
    places = {border - PAGE for border in BORDERS} | set(BORDERS)
    places |= {border for border in HIGH_BORDERS if mode is LA57}
    for _ in range(2):
        fill(helpers, top, places)
        assert helpers.get("memblock.table_pages") == 1 + tables_for(mode, places)
        helpers.call("free.free_range", top, 0, mode.gap.start)
        assert (helpers.get("memblock.data_pages"), helpers.get("memblock.table_pages")) == (0, 1)
    handed = [helpers.call("memblock.allocate_page") for _ in range(60)]
    assert len(set(handed)) == len(handed), "a page was given back twice"
    assert 0 not in handed


def test_rs_33_and_rfc_b20_the_table_of_a_folded_p4d_is_freed_once(code: Any, guards: Guards) -> None:
    """The page behind a folded PGD entry is the PUD table, which is freed as what a P4D entry leads to."""
    balanced(code, KERNEL, LA57)
    guards(
        lambda package: balanced(code, package, LA48),
        "free.py",
        (
            "    if is_empty(table_at(value)):\n        p4d_clear(p4d)\n        free_table(entry_frame(value))\n",
            "    if is_empty(table_at(value)):\n        free_table(entry_frame(value))\n"
            "        p4d_free(entry_frame(value))\n        p4d_clear(p4d)\n"
            "        free_table(entry_frame(value))\n",
        ),
    )


def test_rfc_b23_no_shared_table_is_freed_as_a_p4d(code: Any, guards: Guards) -> None:
    """Memory hot-remove asked how many levels the build has, and gave back the PUD table as a P4D's."""
    guards(
        lambda package: balanced(code, package, LA48),
        "free.py",
        (
            "    va = start\n    while va < end:\n        stop = span_end(va, end, P4D_SIZE)\n",
            "    before = load64(pgd)\n    va = start\n    while va < end:\n"
            "        stop = span_end(va, end, P4D_SIZE)\n",
        ),
        ("    value = load64(pgd)\n", "    value = before\n"),
        ("    return not p4d_folded() and is_empty(table_at(pgd_value))\n", "    return True\n"),
        ("        p4d_free(entry_frame(value))\n", "        free_table(entry_frame(value))\n"),
    )


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("    drop_table(pud)\n", ""),
        ("    drop_table(pmd)\n", ""),
        ("        pgd_clear(pgd)\n        p4d_free(entry_frame(value))\n", "        pgd_clear(pgd)\n"),
        ("            free_page(PhysAddr(entry & FRAME_MASK))\n", ""),
        ("    return min((va & ~(size - 1)) + size, end)\n", "    return min(va + size, end)\n"),
        ("        used |= load64(table + 8 * i)\n", "        used = load64(table + 8 * i)\n"),
    ],
    ids=["PUD's table", "PMD's table", "P4D table", "page", "unaligned start", "table in use"],
)
def test_what_is_lost_or_taken_wrongly_is_noticed(code: Any, guards: Guards, old: str, new: str) -> None:
    def check(package: str) -> None:
        helpers, top = prepared(code, LA57, package)
        places = {GIB - PAGE, GIB, GIB + PAGE, (1 << 48) + 5 * GIB}
        fill(helpers, top, places)
        helpers.call("free.free_range", top, GIB - PAGE, 2 * PAGE)
        assert [helpers.physical(top, GIB + by * PAGE) is None for by in (-1, 0, 1)] == [True, True, False]
        assert helpers.get("memblock.table_pages") == 1 + tables_for(LA57, {GIB + PAGE, (1 << 48) + 5 * GIB})
        helpers.call("free.free_range", top, GIB - PAGE, LA57.gap.start - GIB)
        assert (helpers.get("memblock.data_pages"), helpers.get("memblock.table_pages")) == (0, 1)

    guards(check, "free.py", (old, new))


def test_inv_15_an_entry_is_cleared_before_its_table_is_given_back(code: Any, guards: Guards, mode: PagingMode) -> None:
    """A table that goes back to the free list while an entry leads to it could be walked as something else.

    Taking it back writes its first word; no entry of this page's path lies there.
    """
    deep = (3 << 39) + (5 << 30) + (6 << 21) + 7 * PAGE

    def check(package: str) -> None:
        helpers, top = prepared(code, mode, package)
        fill(helpers, top, {deep})
        tables = {
            int.from_bytes(helpers.ram.read(at, 8), "little") & 0x000F_FFFF_FFFF_F000
            for at in range(MIB, MIB + 16 * PAGE, 8)
            if int.from_bytes(helpers.ram.read(at, 8), "little") & 0xFFF == 0x67
        }
        assert len(tables) == len(mode.levels) - 1
        write = helpers.ram.write
        entries = {at: table for at in range(MIB, MIB + 16 * PAGE, 8) if (table := entry(helpers, at)) in tables}

        def watched(at: int, data: bytes) -> None:
            if at in tables and at not in entries:
                assert all(entry(helpers, place) != at for place in entries), "still linked"
            write(at, data)

        helpers.ram.write = watched
        helpers.call("free.free_range", top, deep, PAGE)
        helpers.ram.write = write
        assert helpers.get("memblock.table_pages") == 1

    guards(
        check,
        "free.py",
        (
            "        store64(entry, 0)\n        free_table(entry_frame(value))\n",
            "        free_table(entry_frame(value))\n        store64(entry, 0)\n",
        ),
    )


def entry(helpers: Any, at: int) -> int:
    """The table that the word at *at* leads to."""
    return int.from_bytes(helpers.ram.read(at, 8), "little") & 0x000F_FFFF_FFFF_F000

"""The kernel's own tables of areas against those from the documents.

The duplication is wanted: one finds the other's slip.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest

from fivefold.arch import LA57, PagingMode
from fivefold.kernel.paging import layout as kernel_layout
from fivefold.layout import area_named, image_areas, linux_constants

LAYOUTS = ("linux", "proposal")


def column(layout: str, mode: PagingMode) -> int:
    return 2 * LAYOUTS.index(layout) + (mode is LA57)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_area_has_the_documents_bounds(layout: str, mode: PagingMode) -> None:
    at = column(layout, mode)
    ours = {row.name: (row.start[at], row.end[at]) for row in kernel_layout.AREAS if row.start[at]}
    documents = image_areas(layout, len(mode.levels))
    named = {area.name: (area.start, area.end) for area in documents if area.name in ours}
    assert ours == named
    mapped = {area.name for area in documents if area.kind == "mapped"}
    assert mapped <= set(ours), "an area of the documents is missing"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_areas_ascend_and_do_not_overlap(layout: str, mode: PagingMode) -> None:
    at = column(layout, mode)
    bounds = [(row.start[at], row.end[at]) for row in kernel_layout.AREAS if row.start[at]]
    inside = [(start, end) for start, end in bounds if start != kernel_layout.VSYSCALL]
    assert all(start < end for start, end in bounds)
    assert all(low[1] <= high[0] for low, high in pairwise(inside))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_bases_follow_mode_and_layout(code: Any, layout: str, mode: PagingMode) -> None:
    helpers = code(mode, "layout")
    helpers.call("layout.layout_init", LAYOUTS.index(layout))
    areas = image_areas(layout, len(mode.levels))
    for variable, area in (("page_offset", "direct_map"), ("vmalloc", "vmalloc"), ("vmemmap", "vmemmap")):
        assert helpers.get(f"layout.{variable}_base") == area_named(areas, area).start, variable


def test_bases_are_those_of_the_release_they_come_from(code: Any, mode: PagingMode) -> None:
    helpers = code(mode, "layout")
    for layout, release in (("linux", "6.1"), ("proposal", "4.14")):
        helpers.call("layout.layout_init", LAYOUTS.index(layout))
        constants = linux_constants(release, len(mode.levels))
        got = [helpers.get(f"layout.{name}_base") for name in ("page_offset", "vmalloc", "vmemmap")]
        assert got == [constants.page_offset, constants.vmalloc_base, constants.vmemmap_base]
        assert helpers.call("pgtable.max_physmem_bits") == constants.max_physmem_bits


def test_bases_are_valid_before_any_code_runs(code: Any) -> None:
    """They are initialised data with the folded mode's values, as the mode itself."""
    helpers = code(None, "layout")
    want = linux_constants("6.1", 4)
    got = [helpers.get(f"layout.{name}_base") for name in ("page_offset", "vmalloc", "vmemmap")]
    assert got == [want.page_offset, want.vmalloc_base, want.vmemmap_base]


def test_the_same_area_keeps_its_top_level_slot() -> None:
    """Slots of both modes' top tables, by area; since 4.15 vmalloc and KASAN have others in five levels."""
    slots = {
        row.name: [row.start[at] >> shift & 511 for at, shift in ((0, 39), (1, 48), (2, 39), (3, 48))]
        for row in kernel_layout.AREAS
    }
    assert slots["guard_hole"] == [256] * 4
    assert slots["direct_map"] == [273, 273, 272, 272]
    assert slots["vmalloc"] == [402, 416, 402, 402]
    assert slots["vmemmap"] == [468] * 4
    assert slots["kasan_shadow"][:2] == [472, 479]
    assert slots["kernel_image"] == [511] * 4


def test_image_modules_and_fixmap_share_one_top_entry(mode: PagingMode) -> None:
    last = [row for row in kernel_layout.AREAS if row.name in ("kernel_image", "modules", "fixmap", "efi_runtime")]
    assert len(last) == 4
    for row in last:
        assert {mode.indices(mode.sign_extend(at))[0] for at in (row.start[0], row.end[0] - 1)} == {511}

"""Memory at its own address, folded and not: nothing leaked, no level too many, all of the kernel's half beside it."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest

from fivefold.arch import LA48, LA57, PagingMode, distinct_tables, regions
from fivefold.units import GIB, MIB

Guards = Callable[..., None]
KERNEL = "fivefold.kernel"
PAGE = 4096
TABLES = (MIB, 2 * MIB)
MORE = {
    "one range": [],
    "holes": [(8 * MIB, 24 * MIB), (3 * GIB, 4 * GIB), (5 * GIB + PAGE, 5 * GIB + 3 * PAGE)],
    "high": [(1 << 39, (1 << 39) + 2 * GIB), ((1 << 46) - GIB, 1 << 46)],
}


def prepared(code: Any, mode: PagingMode, package: str, more: list[tuple[int, int]]) -> Any:
    """Memory of which only the first range is there to build tables in; the rest is only told of."""
    modules = ("ident_map", "mapping", "memblock")
    helpers = code(mode, *modules, package=package, extents=[TABLES])
    helpers.add_memory()
    for start, end in more:
        helpers.call("memblock.add", start, end - start)
    return helpers


def identity(code: Any, package: str, mode: PagingMode, more: list[tuple[int, int]], largest: int) -> None:
    """All of memory at itself and nothing else, executable and not for users; given back, nothing is missing."""
    helpers = prepared(code, mode, package, more)
    before = helpers.get("memblock.table_pages")
    root = helpers.call("ident_map.map_all_memory", largest)
    assert root
    space = helpers.space(root + helpers.window)
    runs = list(regions(space, contiguous=True))
    assert all(run.start == run.phys for run in runs)
    joined = [(run.start, run.end) for run in runs]
    assert all(low[1] <= high[0] for low, high in pairwise(joined))
    assert sum(run.size for run in runs) == sum(end - start for start, end in (TABLES, *more))
    assert all(run.rights.write and run.rights.execute and not run.rights.user for run in runs)
    tables = {frame for level in distinct_tables(space).values() for frame in level}
    assert len(tables) == helpers.get("memblock.table_pages") - before, "no page that is not in the tree"
    helpers.call("ident_map.discard", root)
    assert helpers.get("memblock.table_pages") == before
    handed = [helpers.call("memblock.allocate_table") for _ in range(len(tables) + 8)]
    assert len(set(handed)) == len(handed), "a table was given back twice"


@pytest.mark.parametrize("largest", [1, 2, 3])
@pytest.mark.parametrize("more", [row for name, row in MORE.items() if name != "high"], ids=["one range", "holes"])
def test_all_memory(code: Any, mode: PagingMode, more: list[tuple[int, int]], largest: int) -> None:
    if largest == 1 and more:
        more = more[2:]
    identity(code, KERNEL, mode, more, largest)


def test_r6_1_folded_no_page_is_taken_for_the_level_that_is_not_there(code: Any, guards: Guards) -> None:
    """It was linked, or leaked."""
    for mode in (LA48, LA57):
        identity(code, KERNEL, mode, MORE["high"], 3)
    guards(
        lambda package: identity(code, package, LA48, MORE["high"], 3),
        "pgtable.py",
        (
            "def pgd_none(entry: u64) -> bool:",
            "def pgd_none(entry: u64) -> bool:\n    return entry == 0\n\n\ndef unused(entry: u64) -> bool:",
        ),
    )


def test_rs_31_folded_the_top_entry_leads_to_the_pud_table(code: Any, guards: Guards) -> None:
    """A P4D table that the folded tree does not have: one level too many, and the resume fell over."""
    guards(
        lambda package: identity(code, package, LA48, [], 2),
        "pgtable.py",
        ("    return l5_enabled == 0\n", "    return False\n"),
    )


def test_what_is_not_given_back_is_noticed(code: Any, guards: Guards) -> None:
    for mode, old, new in (
        (LA57, "    p4d_free(table)\n", ""),
        (LA48, "            free_table(entry_frame(entry))\n        va += P4D_SIZE", "        va += P4D_SIZE"),
        (LA48, "                discard_leaves(table_at(entry))\n", "                pass\n"),
    ):
        guards(lambda package, mode=mode: identity(code, package, mode, [], 1), "ident_map.py", (old, new))


@pytest.mark.parametrize("room", [1, 3, 5])
def test_without_memory_nothing_is_left(code: Any, mode: PagingMode, room: int) -> None:
    helpers = code(mode, "ident_map", "mapping", "memblock", extents=[(MIB, MIB + room * PAGE)])
    helpers.add_memory()
    helpers.call("memblock.add", 3 * GIB, 2 * GIB)
    helpers.call("memblock.reserve", 3 * GIB, 2 * GIB)
    root = helpers.call("ident_map.map_all_memory", 2)
    assert (root == 0) == (helpers.get("memblock.table_pages") == 0)
    if root:
        helpers.call("ident_map.discard", root)
    assert helpers.get("memblock.table_pages") == 0


def test_rs_29_all_of_the_kernels_half_is_there(code: Any, guards: Guards, mode: PagingMode) -> None:
    """With the first and the last entry alone, code on such tables faulted on modules and stacks."""

    def check(package: str) -> None:
        helpers = prepared(code, mode, package, [])
        top, root = helpers.table(), helpers.table()
        for slot in range(512):
            helpers.ram.write(top - helpers.window + 8 * slot, (0x10_0067 + slot * PAGE).to_bytes(8, "little"))
        helpers.call("ident_map.add_kernel_half", root, top)
        half = helpers.ram.read(top - helpers.window, PAGE)[2048:]
        assert helpers.ram.read(root - helpers.window, PAGE) == bytes(2048) + half

    guards(check, "ident_map.py", ("range(KERNEL_SLOT, PTRS_PER_TABLE)", "range(PTRS_PER_TABLE - 1, PTRS_PER_TABLE)"))

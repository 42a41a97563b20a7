"""Every address space has the kernel's half, also as it grows; what is a process' own is not shared."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from fivefold.arch import LA48, LA57, PagingMode
from fivefold.kernel.paging.layout import LAYOUT_NAMES
from fivefold.units import MIB

Guards = Callable[..., None]
KERNEL = "fivefold.kernel"
PAGE = 4096
VMALLOC = {LA48: 0xFFFF_C900_0000_0000, LA57: 0xFFA0_0000_0000_0000}
GROWN = (0, 1, 2, 30)
"""Top entries above vmalloc's first."""


def prepared(code: Any, mode: PagingMode, package: str = KERNEL, which: int = 0) -> tuple[Any, int, list[int]]:
    """A reference table and three spaces that are kept current."""
    helpers = code(mode, "sync", "mapping", "memblock", "layout", package=package, extents=[(MIB, 2 * MIB)])
    helpers.call("layout.layout_init", which)
    helpers.add_memory()
    top = helpers.table()
    tops = [helpers.table() for _ in range(3)]
    for table in tops:
        assert helpers.call("sync.add_space", table - helpers.window)
    return helpers, top, tops


def entry(helpers: Any, top: int, slot: int) -> int:
    return int.from_bytes(helpers.ram.read(top - helpers.window + 8 * slot, 8), "little")


def set_entry(helpers: Any, top: int, slot: int, value: int) -> None:
    helpers.ram.write(top - helpers.window + 8 * slot, value.to_bytes(8, "little"))


def grows(code: Any, package: str, mode: PagingMode) -> None:
    """INV-7: when a mapping of the kernel's half returns, all spaces show it, through the same table."""
    helpers, top, tops = prepared(code, mode, package)
    slot = 1 << mode.top.shift
    for number in GROWN:
        va = VMALLOC[mode] + number * slot
        assert helpers.call("sync.map_kernel", top, va, 0x5000, PAGE, 0x163, 1) == 0
        assert [helpers.physical(table, va) for table in (top, *tops)] == [0x5000] * 4
        index = mode.indices(mode.sign_extend(va))[0]
        assert len({entry(helpers, table, index) for table in (top, *tops)}) == 1
    before = helpers.get("sync.copies")
    assert before == len(GROWN) * len(tops)
    assert helpers.call("sync.map_kernel", top, VMALLOC[mode] + PAGE, 0x6000, PAGE, 0x163, 1) == 0
    assert helpers.get("sync.copies") == before, "what hangs below a top entry needs no copy"


def test_inv_07_and_rs_20_spaces_see_new_top_entries(code: Any, guards: Guards, mode: PagingMode) -> None:
    """Populated after boot, an entry was once made in the reference table only."""
    guards(
        lambda package: grows(code, package, mode),
        "sync.py",
        ("    if mapping.top_changed:\n        sync_kernel(top)\n", ""),
    )


def test_rs_20_the_folded_level_is_noticed_too(code: Any, guards: Guards) -> None:
    """Folded, a new top entry is a P4D entry; the PGD is never none."""
    guards(
        lambda package: grows(code, package, LA48),
        "mapping.py",
        ("    if p4d_folded() and p4d_none(load64(p4d)):\n        top_changed = True\n", ""),
    )
    guards(
        lambda package: grows(code, package, LA57),
        "mapping.py",
        ("    pgd_populate(pgd, table)\n    top_changed = True\n", "    pgd_populate(pgd, table)\n"),
    )


def test_rfc_b23_an_empty_slot_is_asked_at_the_level_that_it_has(code: Any, guards: Guards) -> None:
    """With `pgd_none` alone, an empty folded slot counts as present: its table is compared, and the kernel stops."""
    guards(
        lambda package: grows(code, package, LA48),
        "sync.py",
        ("            if top_none(theirs):\n", "            if pgd_none(theirs):\n"),
        (
            "import KERNEL_SLOT, entry_frame, pgd_index, top_none",
            "import KERNEL_SLOT, entry_frame, pgd_index, pgd_none, top_none",
        ),
    )


def test_r6_2_two_tables_for_one_slot_are_a_panic(
    code: Any, stopped: Any, mutated: Callable[..., str], mode: PagingMode
) -> None:
    def differs(package: str) -> None:
        helpers, top, tops = prepared(code, mode, package)
        helpers.set("report.table", helpers.plain.map(bytearray(1 << 16)))
        set_entry(helpers, tops[1], 479, 0x12_3067)
        set_entry(helpers, top, 479, 0x12_4067)
        helpers.call("sync.sync_kernel", top)

    with pytest.raises(stopped, match="panic: an address space has a kernel table of its own"):
        differs(KERNEL)
    differs(
        mutated(
            "sync.py",
            ("            elif entry_frame(theirs) != entry_frame(entry):\n", "            elif entry == 0:\n"),
        )
    )


def test_accessed_bits_do_not_make_a_difference(code: Any, mode: PagingMode) -> None:
    """CPUs set A in the copies that they walk."""
    helpers, top, tops = prepared(code, mode)
    set_entry(helpers, top, 479, 0x12_3047)
    set_entry(helpers, tops[0], 479, 0x12_3067)
    helpers.call("sync.sync_kernel", top)
    assert [entry(helpers, table, 479) for table in tops] == [0x12_3067, 0x12_3047, 0x12_3047]


def private(code: Any, package: str, mode: PagingMode, which: int, moved: int = 0) -> None:
    helpers, top, tops = prepared(code, mode, package, which)
    helpers.set("layout.page_offset_base", helpers.get("layout.page_offset_base") + moved)
    column = helpers.call("layout.column")
    ldt = 272 if column < 2 else None
    for slot in range(512):
        set_entry(helpers, top, slot, 0x10_0067 + slot * PAGE)
    helpers.call("sync.sync_kernel", top)
    shared = {slot for slot in range(512) if entry(helpers, tops[2], slot)}
    assert shared == set(range(272, 512)) - {ldt}
    assert all(entry(helpers, tops[2], slot) == 0x10_0067 + slot * PAGE for slot in shared)


@pytest.mark.parametrize("which", range(len(LAYOUT_NAMES)), ids=LAYOUT_NAMES)
def test_inv_08_guard_hole_and_ldt_are_not_shared(code: Any, guards: Guards, mode: PagingMode, which: int) -> None:
    """Nor is the lower half. The proposal's map has no area for the LDT."""
    guards(
        lambda package: private(code, package, mode, which),
        "sync.py",
        ("    if slot >= GUARD_HOLE_FIRST_SLOT and", "    if slot > GUARD_HOLE_FIRST_SLOT and"),
    )


def test_rs_06_the_guard_hole_does_not_follow_the_direct_map(code: Any, guards: Guards, mode: PagingMode) -> None:
    """Sixteen slots below the direct map is not where the hole is, once that is moved."""
    first = "slot + 16 >= pgd_index(VirtAddr(layout.page_offset_base))"
    guards(
        lambda package: private(code, package, mode, 0, 40 << mode.top.shift),
        "sync.py",
        (
            "    if slot >= GUARD_HOLE_FIRST_SLOT and slot < GUARD_HOLE_END_SLOT:\n",
            f"    if {first} and slot < pgd_index(VirtAddr(layout.page_offset_base)):\n",
        ),
    )


def test_spaces_come_and_go(code: Any, mode: PagingMode) -> None:
    helpers, top, tops = prepared(code, mode)
    helpers.call("sync.remove_space", tops[0] - helpers.window)
    assert helpers.call("sync.map_kernel", top, VMALLOC[mode], 0x5000, PAGE, 0x163, 1) == 0
    assert [helpers.physical(table, VMALLOC[mode]) for table in tops] == [None, 0x5000, 0x5000]
    added = 2
    while helpers.call("sync.add_space", 0x70_0000 + added * PAGE):
        added += 1
    assert added == 32

"""Early tables that grow where they are touched, and refuse what is not the direct map."""

from __future__ import annotations

from typing import Any

import pytest

from fivefold.arch import LA48, LA57, PagingMode, distinct_tables
from fivefold.kernel.boot import early as kernel_early
from fivefold.layout import image_areas, linux_constants

TOP = 0x10_0000
POOL = 0x10_1000
IMAGE = 0xFFFF_FFFF_8100_0000
PMD = 2 << 20


def started(
    code: Any, mode: PagingMode, *, load: int = 0x40_0000, used: int = 0, package: str = "fivefold.kernel"
) -> Any:
    """The handler of a kernel whose image of 4 MiB is mapped, as the boot code leaves it."""
    helpers = code(mode, "early", "layout", package=package, extents=[(TOP, POOL + 64 * 4096)])
    helpers.ram.write(TOP, bytes(4096))
    helpers.call("layout.layout_init", 0)
    helpers.call("early.begin", TOP, POOL, used, helpers.window)
    assert helpers.call("early.map_image", IMAGE, load, 2 * PMD) == 1
    helpers.set("early.kernel_tables", helpers.get("early.used"))
    helpers.processor.cr3 = TOP
    helpers.set("phys.phys_window", helpers.get("layout.page_offset_base"))
    return helpers


def touch(helpers: Any, pa: int) -> int:
    return int(helpers.call("early.handle_fault", helpers.get("layout.page_offset_base") + pa, 2))


def seen(helpers: Any, va: int) -> int | None:
    found = helpers.physical(TOP + helpers.window, va)
    return None if found is None else int(found)


@pytest.mark.parametrize("pa", [0x1000, 0x123_4567, 0x40_0000, (64 << 40) - 1, 63 << 40])
def test_a_touched_address_of_the_direct_map_is_mapped(code: Any, mode: PagingMode, pa: int) -> None:
    helpers = started(code, mode)
    assert touch(helpers, pa) == 1
    assert seen(helpers, helpers.get("layout.page_offset_base") + pa) == pa
    assert seen(helpers, helpers.get("layout.page_offset_base") + (pa ^ PMD)) is None
    assert helpers.get("early.faults") == 1
    assert helpers.get("phys.phys_window") == helpers.get("layout.page_offset_base"), "as it was"


def test_five_levels_reach_to_4_pib(code: Any) -> None:
    helpers = started(code, LA57)
    assert touch(helpers, (4 << 50) - 1) == 1
    assert touch(helpers, 4 << 50) == 0


def test_nothing_but_the_direct_map_is_mapped(code: Any, mode: PagingMode) -> None:
    """Beyond MAXMEM, below the direct map, in other areas: every address is refused, and no table is taken."""
    helpers = started(code, mode)
    used = helpers.get("early.used")
    end = linux_constants("6.1", len(mode.levels)).page_offset + linux_constants("6.1", len(mode.levels)).maxmem
    refused = [end, linux_constants("6.1", len(mode.levels)).page_offset - 1, 0, 0x1000, (1 << 64) - 1]
    for area in image_areas("linux", len(mode.levels)):
        if area.name != "direct_map" and area.kind != "non_canonical":
            refused += [area.start, area.end - 1]
    assert not [hex(va) for va in refused if helpers.call("early.handle_fault", va, 2)]
    assert helpers.get("early.used") == used
    assert helpers.get("early.faults") == 0


def test_nothing_is_mapped_once_other_tables_are_in_use(code: Any, mode: PagingMode) -> None:
    helpers = started(code, mode)
    helpers.processor.cr3 = TOP + 0x1000
    assert touch(helpers, 0x1000) == 0
    helpers.processor.cr3 = TOP | 0x18
    assert touch(helpers, 0x1000) == 1, "flags of CR3 are no address"


def test_an_empty_pool_is_wiped_and_filled_again(code: Any, mode: PagingMode) -> None:
    """The image stays mapped by the same tables; what was touched before faults once more."""
    helpers = started(code, mode)
    kernel_table = helpers.ram.read(TOP + 8 * 511, 8)
    step = 1 << 30
    count = 0
    while helpers.get("early.wipes") == 0:
        assert touch(helpers, count * step) == 1, count
        count += 1
    assert helpers.get("early.used") <= kernel_early.POOL_PAGES
    assert helpers.ram.read(TOP + 8 * 511, 8) == kernel_table
    assert seen(helpers, IMAGE) == 0x40_0000
    assert seen(helpers, IMAGE + 2 * PMD - 1) == 0x40_0000 + 2 * PMD - 1
    base = helpers.get("layout.page_offset_base")
    assert seen(helpers, base + (count - 1) * step) == (count - 1) * step
    assert seen(helpers, base) is None
    assert touch(helpers, 0) == 1
    assert seen(helpers, base) == 0
    assert helpers.processor.cr3 == TOP, "the wipe loads CR3, so that nothing old stays cached"


def test_a_pool_that_the_image_uses_up_gives_nothing(code: Any, mode: PagingMode) -> None:
    helpers = started(code, mode)
    helpers.set("early.used", kernel_early.POOL_PAGES)
    helpers.set("early.kernel_tables", kernel_early.POOL_PAGES)
    assert touch(helpers, 0x1000) == 0


def test_every_table_of_the_pool_is_clean_when_linked(code: Any, mode: PagingMode) -> None:
    """The memory of the pool was full of ones; not an entry more than asked for leads anywhere."""
    helpers = started(code, mode)
    for pa in (0, 5 << 30, 70 << 30, 600 << 30):
        touch(helpers, pa)
    tables = {frame for level in distinct_tables(helpers.space(TOP + helpers.window)).values() for frame in level}
    assert tables == {TOP} | {POOL + 4096 * i for i in range(helpers.get("early.used"))}


@pytest.mark.parametrize("border", [1 << 30, 512 << 30], ids=["1 GiB", "512 GiB"])
@pytest.mark.parametrize("behind", [PMD, 3 * PMD])
def test_an_image_may_cross_a_border_of_any_table(code: Any, mode: PagingMode, border: int, behind: int) -> None:
    """At itself, 2 MiB by 2 MiB, with a table of its own on each side."""
    helpers = code(mode, "early", "layout", extents=[(TOP, POOL + 64 * 4096)])
    helpers.ram.write(TOP, bytes(4096))
    helpers.call("early.begin", TOP, POOL, 0, helpers.window)
    load = border - behind
    assert helpers.call("early.map_image", load, load, 4 * PMD + 0x1000) == 1
    for va in (load, border - 1, border, load + 4 * PMD):
        assert seen(helpers, va) == va
    assert seen(helpers, load - 1) is None
    assert seen(helpers, load + 5 * PMD) is None


def test_the_256_tib_border_in_five_levels(code: Any) -> None:
    helpers = code(LA57, "early", "layout", extents=[(TOP, POOL + 64 * 4096)])
    helpers.ram.write(TOP, bytes(4096))
    helpers.call("early.begin", TOP, POOL, 0, helpers.window)
    load = (256 << 40) - PMD
    assert helpers.call("early.map_image", load, load, 2 * PMD) == 1
    assert [seen(helpers, va) for va in (load, load + PMD, load + 2 * PMD)] == [load, load + PMD, None]
    assert helpers.get("early.used") == 6, "P4D, PUD and PMD on each side"


def test_rs_16_the_pool_is_enough_for_the_worst_image_in_both_modes(code: Any) -> None:
    """The extra level is counted: an image that crosses a border of every table, and is mapped twice."""
    used = {}
    for mode, border in ((LA48, 512 << 30), (LA57, 256 << 40)):
        helpers = started(code, mode, load=border - PMD)
        helpers.set("phys.phys_window", helpers.window)
        assert helpers.call("early.map_image", border - PMD, border - PMD, 2 * PMD) == 1
        used[mode] = helpers.get("early.used")
    assert used == {LA48: 2 + 4, LA57: 3 + 6}
    assert max(used.values()) <= kernel_early.POOL_PAGES // 2, "and as much again for what is touched"


def test_a_fault_on_a_present_page_is_not_answered(code: Any, guards: Any, mode: PagingMode) -> None:
    """It would fault again for ever: a reserved bit, a right, a key. Only what is absent can be mended by a mapping."""

    def check(package: str) -> None:
        helpers = started(code, mode, package=package)
        va = helpers.get("layout.page_offset_base") + 0x123_4000
        for error in (1, 3, 9, 0x11):
            assert helpers.call("early.handle_fault", va, error) == 0
        assert helpers.get("early.faults") == 0
        assert helpers.call("early.handle_fault", va, 0) == 1

    guards(check, "early.py", ("    if error & PRESENT != 0 or entry_frame", "    if entry_frame"))


@pytest.mark.parametrize("bits", [36, 40, 46])
def test_nothing_beyond_the_width_of_the_cpu_is_mapped(code: Any, guards: Any, bits: int) -> None:
    """Bits of a frame above it are reserved: the page would be present, and fault."""

    def check(package: str) -> None:
        helpers = started(code, LA57, package=package)
        helpers.processor.leaves = {(0x8000_0008, 0): (bits, 0, 0, 0)}
        assert touch(helpers, (1 << bits) - 1) == 1
        assert touch(helpers, 1 << bits) == 0
        assert touch(helpers, 1 << 51) == 0

    guards(check, "early.py", ("min(max_physmem_bits(), cpu_phys_bits())", "max_physmem_bits()"))

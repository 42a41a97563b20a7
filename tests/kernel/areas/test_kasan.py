"""The KASAN shadow: one offset, exact ends, shared zero tables, memory of its own for what is in use.

The shared tables are buffers of the image. Here physical memory is seen at its own address, so `phys_base` is what
makes the image's window that: far from 0, and whoever forgets it is lost.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from fivefold.arch import LA48, LA57, AddressSpace, Cpu, Mapped, PagingMode, distinct_tables, regions, translate
from fivefold.layout import shadow_bounds, to_shadow
from fivefold.units import GIB, MIB, PhysAddr, VirtAddr

Guards = Callable[..., None]
KERNEL = "fivefold.kernel"
PAGE = 4096
TEXT, END = 0xFFFF_FFFF_8100_0000, 0xFFFF_FFFF_8110_0000
KERNEL_MAP = 0xFFFF_FFFF_8000_0000
SYMBOLS = {"_text": TEXT, "_end": END}
RW, RO = 0x8000_0000_0000_0163, 0x8000_0000_0000_0161
SHADOW_END = 0xFFFF_FC00_0000_0000
START = {LA48: 0xFFFF_EC00_0000_0000, LA57: 0xFFDF_FC00_0000_0000}


def prepared(code: Any, mode: PagingMode, package: str = KERNEL, which: int = 0, window: int = 0) -> tuple[Any, int]:
    """The kernel with 3 MiB of memory, and a top table that maps a page of the image as the real one does."""
    modules = ("kasan", "mapping", "memblock", "layout")
    helpers = code(mode, *modules, package=package, extents=[(MIB, 4 * MIB)], symbols=SYMBOLS, window=window)
    helpers.set("phys.phys_base", KERNEL_MAP - window)
    helpers.call("layout.layout_init", which)
    helpers.set("layout.has_shadow", True)
    helpers.add_memory()
    top = helpers.table()
    assert helpers.call("mapping.map_page", top, TEXT, 2 * MIB, 0x161) == 1
    return helpers, top


def view(helpers: Any, top: int) -> AddressSpace:
    return AddressSpace(helpers.plain, PhysAddr(top), helpers.mode, Cpu())


def early(helpers: Any, top: int, protection: int = RW) -> AddressSpace:
    helpers.call("kasan.fill_zero_tables", protection)
    helpers.call("kasan.link_zero_tables", top)
    return view(helpers, top)


def whole(space: AddressSpace, page: int) -> None:
    """Every shadow address leads to the one *page*, and nothing beside the shadow is mapped but the image."""
    runs = list(regions(space, range(1 << 63, 1 << 64)))
    assert [(run.start, run.end) for run in runs] == [(START[space.mode], SHADOW_END), (TEXT, TEXT + PAGE)]
    for va in (START[space.mode], 0xFFFF_EC00_0000_0000, 0xFFFF_F520_1234_5000, SHADOW_END - PAGE):
        found = translate(space, VirtAddr(va))
        assert isinstance(found, Mapped)
        assert found.pa == page


def test_shadow_of(code: Any, mode: PagingMode, shadow_vector: list[str]) -> None:
    va, shadow = (int(word, 16) for word in shadow_vector)
    helpers, _ = prepared(code, mode)
    assert helpers.call("kasan.shadow_of", va) == shadow == to_shadow(va)


@pytest.mark.parametrize("which", [0, 1], ids=["linux", "proposal"])
def test_inv_14_one_offset_and_one_end(code: Any, guards: Guards, which: int) -> None:
    """R10.1: start and end follow from the offset and the width; the end is the same in both modes."""

    def check(package: str) -> None:
        for mode in (LA48, LA57):
            helpers, _ = prepared(code, mode, package, which)
            start, end = helpers.call("kasan.shadow_start"), helpers.call("kasan.shadow_end")
            assert range(start, end) == shadow_bounds(len(mode.levels))
            assert (start, end) == (START[mode], SHADOW_END)
            assert helpers.call("kasan.shadow_of", mode.sign_extend(mode.gap.start)) == start
            assert helpers.call("kasan.shadow_of", (1 << 64) - 1) == end - 1

    guards(check, "kasan.py", ("0xDFFF_FC00_0000_0000", "0xDFF8_0000_0000_0000"))


def test_r10_3_early_shadow_is_one_zero_page_through_shared_tables(code: Any, mode: PagingMode) -> None:
    helpers, top = prepared(code, mode)
    before = helpers.get("memblock.table_pages")
    space = early(helpers, top)
    whole(space, helpers.address("kasan.zero_page"))
    assert helpers.get("memblock.table_pages") == before, "it takes no memory"
    tables = {frame for level in distinct_tables(space).values() for frame in level}
    shared = helpers.call("kasan.zero_tables_in_use")
    assert len(tables) == before + shared
    assert shared == (3 if mode is LA48 else 5)


def test_a_second_time_changes_nothing(code: Any, mode: PagingMode) -> None:
    """What is linked is seen at the highest level: five levels have 31 slots, and 8 million entries behind them."""
    helpers, top = prepared(code, mode)
    early(helpers, top)
    entry = helpers.address("kasan.zero_pud") + 8 * 5
    kept = helpers.plain.read(entry, 8)
    helpers.plain.write(entry, bytes(8))
    helpers.call("kasan.link_zero_tables", top)
    assert helpers.plain.read(entry, 8) == bytes(8), "the shared tables are not looked into"
    helpers.plain.write(entry, kept)
    whole(view(helpers, top), helpers.address("kasan.zero_page"))


def check_early(code: Any, mode: PagingMode) -> Callable[[str], None]:
    def check(package: str) -> None:
        helpers, top = prepared(code, mode, package)
        whole(early(helpers, top), helpers.address("kasan.zero_page"))

    return check


def test_rfc_b32_and_rs_27_tables_in_the_image_need_phys_base(code: Any, guards: Guards, mode: PagingMode) -> None:
    """Without it the tables are looked for where the image would be, had nobody moved it."""
    guards(
        check_early(code, mode),
        "kasan.py",
        ("import PAGE_SIZE, kernel_to_phys,", "import PAGE_SIZE, START_KERNEL_MAP, kernel_to_phys,"),
        ("    return kernel_to_phys(VirtAddr(buffer_at))\n", "    return PhysAddr(buffer_at - START_KERNEL_MAP)\n"),
    )


def test_rfc_b33_and_rs_04_a_table_is_converted_once(code: Any, guards: Guards) -> None:
    """A table's address has the window in it already. Where memory is seen at itself, it would not matter."""
    window = 0x4F00_0000_0000

    def check(package: str) -> None:
        helpers, top = prepared(code, LA57, package, window=window)
        assert helpers.call("mapping.map_page", top, to_shadow(TEXT) & -PAGE, 3 * MIB, RW) == 1
        helpers.call("kasan.fill_zero_tables", RW)
        helpers.call("kasan.link_zero_tables", top)
        beside = helpers.call("mapping.lookup", top, to_shadow(TEXT) + PAGE)
        assert beside == helpers.address("kasan.zero_page") - window | RO

    guards(
        check,
        "kasan.py",
        (
            "            fill_pmd(table_at(entry))\n",
            "            fill_pmd(phys_to_virt(PhysAddr(table_at(entry))))\n",
        ),
    )


def test_r10_2_the_start_is_exact(code: Any, guards: Guards) -> None:
    """With five levels it lies inside a top-level slot, whose lower part stays empty."""
    guards(
        check_early(code, LA57),
        "kasan.py",
        ("else image_phys(first_p4d))", "else image_phys(zero_p4d))"),
    )


def test_r10_2_the_end_is_exact(code: Any, guards: Guards) -> None:
    """It lies in the slot of the kernel image, which cannot be filled whole."""
    for mode in (LA48, LA57):
        guards(
            check_early(code, mode),
            "kasan.py",
            ("    while va < shadow_end():\n", "    while va < (shadow_end() | (1 << 40)):\n"),
        )


def final(code: Any, package: str, mode: PagingMode) -> tuple[Any, AddressSpace]:
    """The final shadow, beside the direct map of all memory."""
    helpers, top = prepared(code, mode, package)
    assert helpers.call("kasan.init", top, 2) == 1
    helpers.call("kasan.finish")
    return helpers, view(helpers, top)


def right(code: Any, mode: PagingMode) -> Callable[[str], None]:
    def check(package: str) -> None:
        helpers, space = final(code, package, mode)
        runs = list(regions(space, range(START[mode], SHADOW_END)))
        assert sum(run.size for run in runs) == SHADOW_END - START[mode], "no hole"
        assert not any(run.rights.execute or run.rights.user for run in runs)
        base = helpers.get("layout.page_offset_base")
        backed = [to_shadow(base + pa) for pa in (MIB, 4 * MIB - 1)] + [to_shadow(TEXT), to_shadow(END - 1)]
        starts = ("page_offset_base", "vmalloc_base", "vmemmap_base")
        backed += [to_shadow(helpers.get(f"layout.{name}")) for name in starts]
        frames = set()
        for va in backed:
            found = translate(space, VirtAddr(va & -PAGE))
            assert isinstance(found, Mapped)
            assert found.rights.write
            assert not any(helpers.plain.read(found.pa, PAGE))
            frames.add(found.pa)
        assert len(frames) == len(backed), "each has memory of its own"
        unused = translate(space, VirtAddr(to_shadow(helpers.get("layout.vmalloc_base") + 5 * GIB)))
        assert isinstance(unused, Mapped)
        assert not unused.rights.write
        assert unused.pa & -PAGE == helpers.address("kasan.zero_page")
        assert not any(helpers.plain.read(unused.pa & -PAGE, PAGE))

    return check


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("    fill_zero_tables(KERNEL_RO)\n", "    fill_zero_tables(KERNEL_RW)\n"),
        ("(shadow_of(VirtAddr(end - 1)) + 1)", "(shadow_of(VirtAddr(end - 1)) & ~(PAGE_SIZE - 1))"),
        ("                if entry_none(load64(pte + 8 * k)):\n", "                if k == 0:\n"),
        ("    link_zero_tables(top)\n    return done\n", "    return done\n"),
    ],
    ids=["zero page writable", "last page", "holes in a table", "rest not linked"],
)
def test_r10_4_final_shadow(code: Any, guards: Guards, old: str, new: str) -> None:
    for mode in (LA48, LA57) if "RO)" in old else (LA57,):
        guards(right(code, mode), "kasan.py", (old, new))


def test_no_memory_is_said(code: Any, mode: PagingMode) -> None:
    helpers, top = prepared(code, mode)
    while helpers.call("memblock.allocate", 64 * PAGE, PAGE) or helpers.call("memblock.allocate", PAGE, PAGE):
        pass
    assert helpers.call("kasan.init", top, 2) == 0

"""What every build must keep, one test for each invariant of the table in `docs/mistakes.md`.

INV-11 needs a machine: `tests/boot/test_mistakes.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from fivefold.arch import LA48, LA57, Cpu, Entry, Level, PagingMode, regions
from fivefold.boot import Image, build_image
from fivefold.kernel.boot import early as kernel_early
from fivefold.kernel.modes import MODES
from fivefold.kernel.paging import layout as kernel_layout
from fivefold.metal.check.check import check as check_program
from fivefold.metal.program import Program
from fivefold.units import GIB, MIB

PAGE = 4096
KERNEL = "fivefold.kernel"
Guards = Callable[..., None]


@pytest.fixture(scope="module")
def image() -> Image:
    return build_image()


@pytest.mark.parametrize("five", [0, 1])
def test_inv_01_the_mode_is_one_of_two_triples(code: Any, guards: Guards, five: int) -> None:
    """That it comes from CR4 and not from CPUID: `test_rfc_b14_and_rs_03_the_kernel_follows_cr4`."""

    def check(package: str) -> None:
        helpers = code(None, "pgtable", package=package)
        for before in (1 - five, five):
            helpers.call("pgtable.set_mode", before)
            helpers.call("pgtable.set_mode", five)
            triple = tuple(helpers.get(f"pgtable.{name}") for name in ("l5_enabled", "pgdir_shift", "ptrs_per_p4d"))
            assert triple == ((1, 48, 512) if five else (0, 39, 1))

    number = 512 if five else 1
    guards(check, "pgtable.py", (f"        ptrs_per_p4d = {number}\n", "        pass\n"))


def test_inv_02_the_mode_is_initialised_data(image: Image, code: Any) -> None:
    """Folded by default, and out of reach of the clearing of .bss."""
    symbols = image.symbols
    for name, want in (("l5_enabled", 0), ("pgdir_shift", 39), ("ptrs_per_p4d", 1)):
        at = symbols[f"pgtable.{name}"]
        assert not symbols["__bss_start"] <= at < symbols["__bss_end"]
        part = next(part for part in image.parts if part.start <= at < part.start + len(part.data))
        assert int.from_bytes(part.data[at - part.start :][:8], "little") == want


def test_inv_02_the_bases_are_initialised_data(image: Image) -> None:
    """The same for the areas' bases: valid before any code runs."""
    for mode in MODES:
        for name in ("page_offset_base", "vmalloc_base", "vmemmap_base"):
            at = image.symbols[f"{mode}_layout.{name}"]
            part = next(part for part in image.parts if part.start <= at < part.start + len(part.data))
            assert part.data[at - part.start :][:8] != bytes(8)


def test_inv_03_one_width_for_all(code: Any, guards: Guards, mode: PagingMode) -> None:
    """Canonical tests, slots of the top table and the reach of its entries come from the same number."""

    def check(package: str) -> None:
        helpers = code(mode, "pgtable", package=package)
        bits = helpers.call("pgtable.va_bits")
        assert bits == mode.va_bits == 12 + 9 * helpers.call("pgtable.levels")
        assert helpers.call("pgtable.pgd_size") << 9 == 1 << bits
        half = 1 << (bits - 1)
        for va in (half - 1, half, (1 << 64) - half, (1 << 64) - half - 1):
            assert helpers.call("pgtable.is_canonical", va) == mode.is_canonical(va)
        assert helpers.call("pgtable.pgd_index", (1 << 64) - half) == 256

    guards(check, "pgtable.py", ("return pgdir_shift + 9", "return 48 + 9 * (1 - l5_enabled)"))


def test_inv_04_storage_does_not_depend_on_the_mode() -> None:
    """Every buffer of the kernel has the same size in both builds, and the P4D's most is a constant."""
    sizes = []
    for mode in MODES.values():
        bindings = {f"{KERNEL}.paging.pgtable.{name}": value for name, value in mode.items()}
        unit = check_program(Program((f"{KERNEL}.main",), bindings=bindings))
        sizes.append({buffer.full: buffer.size for buffer in unit.buffers.values()})
    assert sizes[0] == sizes[1]
    assert len(sizes[0]) >= 4


def test_inv_05_frames_have_52_bits_and_memory_ends_with_the_mode(code: Any, guards: Guards, mode: PagingMode) -> None:
    def check(package: str) -> None:
        helpers = code(mode, "direct_map", "memblock", "mapping", "layout", package=package)
        assert helpers.call("pgtable.entry_frame", (1 << 64) - 1) == 0x000F_FFFF_FFFF_F000
        helpers.call("layout.layout_init", 0)
        helpers.add_memory()
        helpers.call("memblock.add", 1 << 39, 1 << 39)
        helpers.call("direct_map.cut_memory", 39)
        top = helpers.table()
        assert helpers.call("direct_map.direct_map_init", top, 3, MIB, 2 * MIB) == 0
        highest = max(run.phys + run.size for run in regions(helpers.space(top), contiguous=True))
        assert highest <= 1 << 39
        assert not [run for run in regions(helpers.space(top, Cpu(phys_bits=39))) if run.content.name != "MAPPED"]

    guards(check, "direct_map.py", ("min(max_direct_mapped(), 1 << cpu_bits)", "max_direct_mapped()"))


def test_inv_06_folded_the_pgd_is_left_alone(code: Any, guards: Guards) -> None:
    """But for `set_pgd`, which is `set_p4d`."""
    entry = 0x10_0800

    def check(package: str) -> None:
        helpers = code(LA48, "pgtable", "mapping", "memblock", package=package)
        for name, args, left in (
            ("pgd_clear", (), 0x5067),
            ("pgd_populate", (0x7000,), 0x5067),
            ("set_pgd", (0x9067,), 0x9067),
            ("p4d_clear", (), 0),
        ):
            helpers.ram.write(entry, (0x5067).to_bytes(8, "little"))
            helpers.call(f"pgtable.{name}", entry + helpers.window, *args)
            assert int.from_bytes(helpers.ram.read(entry, 8), "little") == left

    guards(check, "pgtable.py", ("    if not p4d_folded():\n        store64(pgd, 0)", "    store64(pgd, 0)"))
    guards(
        check,
        "pgtable.py",
        ("    if not p4d_folded():\n        store64(pgd, table | TABLE)", "    store64(pgd, table | TABLE)"),
    )


def test_inv_07_the_kernels_slot_stays_the_same_table(code: Any, guards: Guards, mode: PagingMode) -> None:
    """Whatever early tables are dropped: the entry of the image leads to the table that it led to."""
    image_va = 0xFFFF_FFFF_8100_0000

    def check(package: str) -> None:
        helpers = code(mode, "early", "layout", package=package, extents=[(MIB, 2 * MIB)])
        helpers.ram.write(MIB, bytes(PAGE))
        helpers.call("layout.layout_init", 0)
        helpers.call("early.begin", MIB, MIB + PAGE, 0, helpers.window)
        assert helpers.call("early.map_image", image_va, 16 * MIB, 4 * MIB)
        helpers.set("early.kernel_tables", helpers.get("early.used"))
        helpers.processor.cr3 = MIB
        entry = helpers.ram.read(MIB + 8 * 511, 8)
        for number in range(kernel_early.POOL_PAGES + 8):
            helpers.set("phys.phys_window", helpers.window)
            assert helpers.call("early.handle_fault", helpers.get("layout.page_offset_base") + number * GIB, 2)
            assert helpers.ram.read(MIB + 8 * 511, 8) == entry
            assert helpers.physical(MIB + helpers.window, image_va) == 16 * MIB
        assert helpers.get("early.wipes") == 1

    guards(check, "early.py", ("    used = kernel_tables\n", "    used = 0\n"))


def test_inv_08_the_guard_hole_is_empty(code: Any, guards: Guards, mode: PagingMode) -> None:
    """Slots 256 to 271 of every table; a fault there maps nothing."""
    hole = {LA48: 0xFFFF_8000_0000_0000, LA57: 0xFF00_0000_0000_0000}[mode]

    def check(package: str) -> None:
        helpers = code(mode, "early", "layout", package=package, extents=[(MIB, 2 * MIB)])
        helpers.ram.write(MIB, bytes(PAGE))
        helpers.call("layout.layout_init", 1)
        helpers.call("early.begin", MIB, MIB + PAGE, 0, helpers.window)
        helpers.processor.cr3 = MIB
        for slot in range(16):
            assert not helpers.call("early.handle_fault", hole + slot * helpers.call("pgtable.pgd_size"), 2)
        assert not any(helpers.ram.read(MIB + 8 * 256, 8 * 16))

    guards(
        check,
        "early.py",
        (
            "    offset = address - layout.page_offset_base\n",
            "    offset = address - layout.page_offset_base & (1 << 46) - 1\n",
        ),
    )


def test_inv_09_the_top_4_tib_are_the_same_in_both_modes() -> None:
    for columns in ((0, 1), (2, 3)):
        above = [
            [
                (row.name, row.start[column], row.end[column])
                for row in kernel_layout.AREAS
                if row.start[column] >= 0xFFFF_FC00_0000_0000
            ]
            for column in columns
        ]
        assert above[0] == above[1]
        assert len(above[0]) >= 6
    for va in (0xFFFF_FC00_0000_0000, 0xFFFF_FE00_0000_0000, 0xFFFF_FFFF_FFFF_F000):
        assert LA57.indices(LA57.sign_extend(va))[1:] == LA48.indices(LA48.sign_extend(va))


def test_inv_12_pointers_before_the_final_tables_go_through_the_window(
    code: Any, guards: Guards, mode: PagingMode
) -> None:
    """Early tables lie in the image and are seen there: phys + kernel map - phys_base, which is not 0 here."""
    phys_base = 0x2AA0_0000
    kernel_map = 0xFFFF_FFFF_8000_0000
    tables = 16 * MIB + phys_base

    def check(package: str) -> None:
        extents = [(tables, tables + 65 * PAGE)]
        window = kernel_map - phys_base
        helpers = code(mode, "early", "layout", package=package, extents=extents, window=window)
        helpers.ram.write(tables, bytes(PAGE))
        helpers.call("layout.layout_init", 0)
        helpers.call("early.begin", tables, tables + PAGE, 0, window)
        helpers.processor.cr3 = tables
        helpers.set("phys.phys_window", helpers.get("layout.page_offset_base"))
        assert helpers.call("early.handle_fault", helpers.get("layout.page_offset_base") + 5 * GIB, 2)
        assert helpers.get("phys.phys_window") == helpers.get("layout.page_offset_base")
        assert helpers.physical(tables + window, helpers.get("layout.page_offset_base") + 5 * GIB) == 5 * GIB

    guards(check, "early.py", ("    phys.phys_window = window\n", "    phys.phys_window = 0xFFFF_FFFF_8000_0000\n"))


def test_inv_15_a_table_is_linked_when_it_is_complete(code: Any, guards: Guards, mode: PagingMode) -> None:
    """In memory that was full of ones: at the moment of the link the table holds nothing that leads anywhere."""
    start = mode.sign_extend(1 << (mode.va_bits - 1))

    def check(package: str) -> None:
        helpers = code(mode, "mapping", "memblock", package=package)
        helpers.add_memory()
        top = helpers.table()
        write, linked = helpers.ram.write, []

        def watched(at: int, data: bytes) -> None:
            entry = Entry(int.from_bytes(data, "little"), Level.PML4)
            if len(data) == 8 and entry.raw & 0xFFF == 0x67:
                linked.append(at)
                table = helpers.ram.read(entry.raw & 0x000F_FFFF_FFFF_F000, PAGE)
                assert not any(table)
            write(at, data)

        helpers.ram.write = watched
        assert helpers.call("mapping.map_range", top, start + GIB - PAGE, GIB - PAGE, 3 * PAGE, 0x163, 1) == 0
        assert len(linked) == len(mode.levels) - 1 + 2

    guards(check, "memblock.py", ("    clear_table(phys_to_virt(table))\n", ""))

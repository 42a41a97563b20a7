"""Mistakes of the 2017 proposal and of what followed it, put back one by one into the boot and mapping code.

Each test passes with our kernel and fails with the mistake: `guards` runs the check on both. Mistakes that only
a machine shows are in `tests/boot/test_mistakes.py`; `docs/mistakes.md` has the table of all.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import pytest

from fivefold.arch import LA48, LA57, AddressSpace, Cpu, Mapped, PagingMode, regions, translate
from fivefold.errors import CompileError
from fivefold.kernel.paging.phys import LINK_ADDRESS
from fivefold.metal.emit.objects import compile_object
from fivefold.metal.program import Program
from fivefold.units import GIB, MIB, PhysAddr, VirtAddr

PAGE = 4096
RW = 0x8000_0000_0000_0163
Guards = Callable[..., None]
VMALLOC = {LA48: 0xFFFF_C900_0000_0000, LA57: 0xFFA0_0000_0000_0000}


def test_rfc_b01_no_flag_lies_in_memory_before_the_mode_is_known(mutated: Callable[..., str]) -> None:
    """The proposal's flag had 16 bits and was stored with 32. The 32-bit code keeps it in registers."""
    compile_object(Program(("fivefold.kernel.boot.startup32",)), arch="i386")
    wrong = mutated(
        "startup32.py",
        ("BOOT_TABLE_PAGES: Final = 7", "p4d_folded: u64 = 1\nBOOT_TABLE_PAGES: Final = 7"),
        ("    fill64(tables, 0,", "    global p4d_folded\n    p4d_folded = u64(extra == 0)\n    fill64(tables, 0,"),
    )
    with pytest.raises(CompileError, match="a module variable in 32-bit code"):
        compile_object(Program((f"{wrong}.boot.startup32",)), arch="i386")


def test_rfc_b01_nothing_beside_the_tables_is_overwritten(code: Any, guards: Guards) -> None:
    """The same mistake by its effect: a store that is wider than what it is for."""

    def check(package: str) -> None:
        helpers = code(None, "startup32", package=package, extents=[(MIB, 2 * MIB)], window=0)
        helpers.call("startup32.build_boot_tables", MIB, 1)
        assert set(helpers.ram.read(MIB + 7 * PAGE, PAGE)) == {0xFF}

    guards(check, "startup32.py", ("BOOT_TABLE_PAGES * 512)", "BOOT_TABLE_PAGES * 512 + 1)"))


def dumped(code: Any, package: str, mode: PagingMode, pages: list[tuple[int, int]], frame0: bytes = b"") -> list[Any]:
    """Map *pages*; what the kernel's own dump tells of them: (first address, last, level)."""
    helpers = code(mode, "scan", "mapping", "memblock", package=package, extents=[(0, 0x1000), (MIB, 2 * MIB)])
    helpers.ram.write(PhysAddr(0), frame0.ljust(PAGE, b"\0"))
    helpers.call("memblock.add", 0, PAGE)
    helpers.call("memblock.add", MIB, MIB)
    top = helpers.table()
    for va, pa in pages:
        assert helpers.call("mapping.map_page", top, va, pa, RW) == 1
    buffers = [helpers.plain.map(bytearray(size)) for size in (48 * 64, 4 * 1024, 64 * 64)]
    helpers.call("scan.scan_init", buffers[0], 64, buffers[1], 1024, buffers[2], 64)
    assert helpers.call("scan.scan", top - helpers.window) == 1
    count = helpers.get("scan_ranges.count")
    words = struct.iter_unpack("<6Q", helpers.plain.read(buffers[0], 48 * count))
    return [(first, last, info >> 4 & 15) for first, last, _, _, info, _ in words]


@pytest.mark.parametrize("mode", [LA48, LA57], ids=["la48", "la57"])
def test_rfc_b08_dump_reads_every_level(code: Any, guards: Guards, mode: PagingMode) -> None:
    """The inverted test read a PML4 as a PUD table in five levels, and a PUD table as a P4D in four."""
    va = VMALLOC[mode] + 0x1234_5000

    def check(package: str) -> None:
        assert dumped(code, package, mode, [(va, 0x5000)]) == [(va, va + PAGE - 1, 1)]

    guards(check, "pgtable.py", ("return 4 + l5_enabled", "return 5 - l5_enabled"))


@pytest.mark.parametrize("mode", [LA48, LA57], ids=["la48", "la57"])
def test_rfc_b09_empty_top_slots_are_not_walked(code: Any, guards: Guards, mode: PagingMode) -> None:
    """Folded, no PGD is none: whoever then forgets to ask the P4D reads frame 0 as a table."""

    def check(package: str) -> None:
        helpers = code(mode, "mapping", "memblock", package=package, extents=[(0, 0x1000), (MIB, 2 * MIB)])
        helpers.ram.write(PhysAddr(0), (0xDEAD_B000 | 0xE7).to_bytes(8, "little") * 512)
        helpers.call("memblock.add", MIB, MIB)
        top = helpers.table()
        helpers.call("mapping.map_page", top, VMALLOC[mode], 0x5000, RW)
        for va in (VMALLOC[mode] + (1 << 39), VMALLOC[mode] ^ 1 << 46, 0):
            assert helpers.call("mapping.lookup", top, va) == 0

    guards(check, "mapping.py", ("    if p4d_none(load64(p4d)):\n        return 0\n", ""))


@pytest.mark.parametrize("mode", [LA48, LA57], ids=["la48", "la57"])
def test_rfc_b09_dump_does_not_walk_empty_slots(code: Any, guards: Guards, mode: PagingMode) -> None:
    va = VMALLOC[mode]
    present = (0xDEAD_B000 | 0xE7).to_bytes(8, "little") * 512

    def check(package: str) -> None:
        assert dumped(code, package, mode, [(va, 0x5000)], present) == [(va, va + PAGE - 1, 1)]

    guards(check, "pgtable.py", ("PRESENT: Final = 1 << 0", "PRESENT: Final = 0"))


def test_rfc_b12_frames_have_52_bits_in_both_modes(code: Any, guards: Guards, mode: PagingMode) -> None:
    """46 bits cut 0x0004456789abc000 to 0x0000056789abc000, and what is cut off leaks into the flags."""

    def check(package: str) -> None:
        helpers = code(mode, "pgtable", package=package)
        assert helpers.call("pgtable.entry_frame", 0x0004_4567_89AB_C067) == 0x0004_4567_89AB_C000
        assert helpers.call("pgtable.table_bad", 0x0004_4567_89AB_C067) == 0

    guards(check, "pgtable.py", ("0x000F_FFFF_FFFF_F000", "0x0000_3FFF_FFFF_F000"))


def test_rfc_b12_tables_beyond_64_tib(code: Any, guards: Guards) -> None:
    """The same by its effect: page tables that lie where four levels have no direct map."""
    high = 0x0004_4567_89A0_0000

    def check(package: str) -> None:
        helpers = code(LA57, "mapping", "memblock", package=package, extents=[(high, high + MIB)])
        helpers.add_memory()
        top = helpers.table()
        assert helpers.call("mapping.map_range", top, VMALLOC[LA57], high, MIB, RW, 1) == 0
        assert helpers.physical(top, VMALLOC[LA57] + MIB - 1) == high + MIB - 1

    guards(
        check,
        "pgtable.py",
        ("PhysAddr(entry & FRAME_MASK)", "PhysAddr(entry & FRAME_MASK & (1 << (52 - 6 * l5_enabled)) - 1)"),
    )


def entered(code: Any, processor: Any, package: str, active: PagingMode, cpu_has: bool, **more: Any) -> Any:
    """The boot code on a machine that runs in *active*, with LA57 in CPUID or not."""
    cpu = processor({(7, 0): (0, 0, int(cpu_has) << 16, 0)})
    cpu.cr4 |= (active is LA57) << 12
    extents = [(0x1000, 0xA_0000), (MIB, 3 * MIB)]
    symbols = {"trampoline_start": MIB, "trampoline_used": 2 * MIB}
    helpers = code(None, "startup", package=package, extents=extents, window=0, processor=cpu, symbols=symbols, **more)
    rows = [(0, 0x9_F000, 1), (MIB, 63 * MIB, 1)]
    head = struct.pack("<IIIIQQQQII", 0x336E_C578, 1, 0, 0, 0, 0x1_0800, 0, 0x1_0100, len(rows), 0)
    helpers.ram.write(PhysAddr(0x1_0000), head)
    helpers.ram.write(PhysAddr(0x1_0100), b"".join(struct.pack("<QQII", *row, 0) for row in rows))
    helpers.ram.write(PhysAddr(0x1_0800), b"\0")
    return helpers


def started(helpers: Any, active: PagingMode, load: int, size: int = MIB) -> AddressSpace:
    """Run `startup_64`; the early address space."""
    root = helpers.call("startup.startup_64", 0x1_0000, load, load + size, len(active.levels))
    return AddressSpace(helpers.plain, root, active, Cpu())


def leads(space: AddressSpace, va: int) -> int | None:
    found = translate(space, VirtAddr(va))
    return found.pa if isinstance(found, Mapped) else None


@pytest.mark.parametrize(("active", "cpu_has"), [(LA48, True), (LA57, False)], ids=["4 on LA57", "5 unasked"])
def test_rfc_b14_and_rs_03_the_kernel_follows_cr4(
    code: Any, processor: Any, guards: Guards, active: PagingMode, cpu_has: bool
) -> None:
    """CPUID says what the CPU can do, CR4.LA57 what it does; they differ here."""

    def check(package: str) -> None:
        helpers = entered(code, processor, package, active, cpu_has)
        space = started(helpers, active, 16 * MIB)
        assert helpers.get("pgtable.l5_enabled") == (active is LA57)
        assert leads(space, LINK_ADDRESS) == 16 * MIB

    guards(
        check,
        "startup.py",
        ("    set_mode(read_cr4() & CR4_LA57 != 0)", "    set_mode(wants_five_levels(reason_for_mode(0)))"),
    )


B15 = ("return 46 + 6 * l5_enabled", "return u64(52)")


def test_rfc_b15_early_faults_beyond_the_direct_map_are_refused(code: Any, guards: Guards) -> None:
    """With MAXMEM at 4 PiB in four levels, vmalloc and fixmap addresses pass for direct map."""

    def check(package: str) -> None:
        helpers = code(LA48, "early", "layout", package=package, extents=[(MIB, 2 * MIB)])
        helpers.ram.write(PhysAddr(MIB), bytes(PAGE))
        helpers.call("layout.layout_init", 0)
        helpers.call("early.begin", MIB, MIB + PAGE, 0, helpers.window)
        helpers.processor.cr3 = MIB
        for va in (VMALLOC[LA48], 0xFFFF_EA00_0000_0000, 0xFFFF_FFFF_FF00_0000):
            assert helpers.call("early.handle_fault", va, 2) == 0

    guards(check, "pgtable.py", B15)


def test_rfc_b15_load_address_and_memory_are_cut_at_46_bits(
    code: Any, processor: Any, stopped: Any, guards: Guards
) -> None:
    def check(package: str) -> None:
        with pytest.raises(stopped, match="the load address is beyond what this mode's direct map can hold"):
            started(entered(code, processor, package, LA48, False), LA48, 1 << 47)
        helpers = code(LA48, "direct_map", "memblock", package=package)
        helpers.call("memblock.add", 0, 1 << 52)
        assert helpers.call("direct_map.cut_memory", 52) == (1 << 52) - (1 << 46)

    guards(check, "pgtable.py", B15)


@pytest.mark.parametrize(
    ("border", "old", "new"),
    [
        (GIB, "va >> PMD_SHIFT & 511", "va >> PMD_SHIFT & 1023"),
        (512 * GIB, "va >> PUD_SHIFT & 511", "va >> PUD_SHIFT & 1023"),
    ],
    ids=["1 GiB", "512 GiB"],
)
def test_rfc_b18_and_rs_10_image_across_a_border(
    code: Any, processor: Any, guards: Guards, mode: PagingMode, border: int, old: str, new: str
) -> None:
    """An index that does not wrap at 512 writes behind its table: a neighbour is damaged, a page missing."""
    load = border - 2 * MIB

    def check(package: str) -> None:
        space = started(entered(code, processor, package, mode, mode is LA57), mode, load, 4 * MIB)
        for va in (load, load + 4 * MIB - 1):
            assert leads(space, va) == va
        assert next(regions(space)).size == 4 * MIB

    guards(check, "pgtable.py", (f"return {old}", f"return {new}"))


def boot_table_buffer(code: Any, package: str, mode: PagingMode) -> None:
    """The tables in a buffer of the size that the code says, ones before and behind, as RFC-B43 wants it tried."""
    helpers = code(None, "startup32", package=package, extents=[(MIB, 2 * MIB)], window=0)
    size = PAGE * __import__(f"{package}.boot.startup32", fromlist=["x"]).BOOT_TABLE_PAGES
    root = helpers.call("startup32.build_boot_tables", MIB + PAGE, int(mode is LA57))
    space = AddressSpace(helpers.ram, root, mode, Cpu())
    assert [(run.start, run.end, run.phys) for run in regions(space, contiguous=True)] == [(0, 4 * GIB, 0)]
    assert set(helpers.ram.read(MIB, PAGE)) == set(helpers.ram.read(MIB + PAGE + size, PAGE)) == {0xFF}


def test_rfc_b43_and_rs_16_boot_tables_of_five_levels_have_room(code: Any, guards: Guards) -> None:
    boot_table_buffer(code, "fivefold.kernel", LA48)
    guards(
        lambda package: boot_table_buffer(code, package, LA57),
        "startup32.py",
        ("BOOT_TABLE_PAGES: Final = 7", "BOOT_TABLE_PAGES: Final = 6"),
    )


def test_rfc_b43_no_stale_upper_halves(code: Any, guards: Guards) -> None:
    """Entries written as 32-bit halves into a page that was not cleared keep what was above."""
    guards(
        lambda package: boot_table_buffer(code, package, LA57),
        "startup32.py",
        ("    fill64(tables, 0, BOOT_TABLE_PAGES * 512)", "    fill64(tables, 0, 6 * 512)"),
        ("import export, fill64, load64, store64, u64", "import export, fill64, load64, store32, store64, u64"),
        ("        store64(level2 + 8 * i, i << 21", "        store32(level2 + 8 * i, i << 21"),
    )


def test_rfc_b32_and_rs_27_image_addresses_need_phys_base(code: Any, guards: Guards) -> None:
    """Loaded where it was linked for, phys_base is 0 and the mistake is not seen; anywhere else it is."""

    def at(package: str, load: int) -> int:
        helpers = code(LA57, "phys", package=package)
        helpers.set("phys.phys_base", load - 16 * MIB & (1 << 64) - 1)
        return int(helpers.call("phys.kernel_to_phys", LINK_ADDRESS + 0x1234))

    change = ("va - START_KERNEL_MAP + phys_base", "va - START_KERNEL_MAP")

    def check(package: str) -> None:
        assert at(package, 16 * MIB) == 16 * MIB + 0x1234
        for load in (2 * MIB, 0x4AA0_0000, 5 * GIB):
            assert at(package, load) == load + 0x1234

    guards(check, "phys.py", change)


def test_rfc_b33_and_rs_04_physical_addresses_are_converted_once(
    code: Any, guards: Guards, mutated: Callable[..., str]
) -> None:
    """Twice is right while the direct map's base has no low bits: 0xff10… hides it, 0xff11… does not."""
    change = (
        "    return phys_to_virt(entry_frame(entry))",
        "    return phys_to_virt(PhysAddr(entry_frame(entry) - phys_to_virt(PhysAddr(0)) & FRAME_MASK))",
    )
    entry = 0x9C5_8067

    def table(package: str, base: int) -> int:
        return int(code(LA57, "pgtable", package=package, window=base).call("pgtable.table_at", entry)) - base

    def check(package: str) -> None:
        assert table(package, 0xFF11_0000_0000_0000) == 0x9C5_8000

    guards(check, "pgtable.py", change)
    wrong = mutated("pgtable.py", change)
    assert table(wrong, 0xFF10_0000_0000_0000) == 0x9C5_8000, "the proposal's base hides it"
    assert table(wrong, 0xFF11_0000_0000_0000) == 0x000F_0000_09C5_8000


@pytest.mark.parametrize("va", [0xFF10_0000_0000_0000, 0xFF10_8000_0000_0000, 0xFF92_0000_0000_0000])
def test_rfc_b38_addresses_are_extended_by_the_active_width(code: Any, guards: Guards, va: int) -> None:
    """By bit 47 they would print as 0, 0xffff800000000000 and 0."""

    def check(package: str) -> None:
        assert code(LA57, "pgtable", package=package).call("pgtable.is_canonical", va) == 1
        assert dumped(code, package, LA57, [(va, 0x5000)]) == [(va, va + PAGE - 1, 1)]

    guards(check, "pgtable.py", ("return pgdir_shift + 9", "return u64(48)"))


def place(code: Any, processor: Any, package: str, rows: list[tuple[int, int, int]], low: int = 0x1000) -> int:
    """Where the trampoline would go on a PC whose memory starts at *low*."""
    cpu = processor()
    cpu.cr3 = 2 * MIB
    extents = [(low, 0xA_0000), (MIB, 3 * MIB)]
    symbols = {"trampoline_start": MIB, "trampoline_used": MIB}
    helpers = code(None, "startup", package=package, extents=extents, window=0, processor=cpu, symbols=symbols)
    leaves = b"".join((i << 21 | 0x83).to_bytes(8, "little") for i in range(512))
    links = [((2 * MIB + PAGE * i) | 3).to_bytes(8, "little").ljust(PAGE, b"\0") for i in (1, 2)]
    helpers.ram.write(PhysAddr(2 * MIB), b"".join((*links, leaves)))
    info = MIB + PAGE
    head = struct.pack("<IIIIQQQQII", 0x336E_C578, 1, 0, 0, 0, 0, 0, info + 64, len(rows), 0)
    helpers.ram.write(PhysAddr(info), head + bytes(64 - len(head)))
    helpers.ram.write(PhysAddr(info + 64), b"".join(struct.pack("<QQII", *row, 0) for row in rows))
    return int(helpers.call("startup.find_trampoline", info, 16 * MIB, 17 * MIB))


def test_rs_05_trampoline_lies_in_memory_that_the_map_calls_free(code: Any, processor: Any, guards: Guards) -> None:
    rows = [(0, 0x9_0000, 1), (0x9_0000, 0x1_0000, 2), (MIB, 63 * MIB, 1)]

    def check(package: str) -> None:
        assert place(code, processor, package, rows) == 0x8_E000

    guards(
        check,
        "start_info.py",
        ("        if field32(entry, MAP_TYPE) == TYPE_RAM:\n", "        if entry != 0:\n"),
        ("        if field32(entry, MAP_TYPE) != TYPE_RAM:\n", "        if entry == 0:\n"),
    )


@pytest.mark.parametrize(
    ("rows", "want"),
    [([(0, 0x1000, 1), (MIB, 63 * MIB, 1)], 0), ([(0, 0x1000, 1), (0x1_0000, 0x4000, 1)], 0x1_2000)],
    ids=["only a tiny one", "a tiny one first"],
)
def test_rs_14_entries_too_small_for_the_trampoline(
    code: Any, processor: Any, guards: Guards, rows: list[tuple[int, int, int]], want: int
) -> None:
    """The subtraction underflows: the place wraps to a huge address."""

    def check(package: str) -> None:
        assert place(code, processor, package, rows) == want

    guards(
        check,
        "memblock.py",
        (
            "        while start < end and size <= end - start:",
            "        while start < high:",
        ),
    )


def test_rs_15_bios_data_area_is_not_read(code: Any, processor: Any, guards: Guards) -> None:
    """Frame 0 need not be there: on machines without a legacy BIOS it holds nothing that means anything."""
    rows = [(0x1_0000, 0x8_0000, 1)]

    def check(package: str) -> None:
        assert place(code, processor, package, rows, low=0x1000) == 0x8_E000

    guards(
        check,
        "in_use.py",
        ("    memblock.forget()\n", "    memblock.forget()\n    memblock.reserve(PhysAddr(0x8_0000), load64(0x413))\n"),
    )


RS_18 = ("copy64(root, load64(active) & FRAME_MASK, 512)", "copy64(root, load64(active) & ~(PAGE_SIZE - 1), 512)")


@pytest.mark.parametrize("extra", [1 << 58, 1 << 63, 1 << 52 | 1 << 9 | 1 << 63], ids=["bit 58", "NX", "several"])
def test_rs_18_software_bits_in_the_loaders_top_entry(code: Any, processor: Any, guards: Guards, extra: int) -> None:
    def check(package: str) -> None:
        helpers = entered(code, processor, package, LA57, False)
        active, below, root = MIB + 8 * PAGE, MIB + 9 * PAGE, 0x2_0000
        helpers.processor.cr3 = active
        helpers.ram.write(PhysAddr(active), (below | 0x67 | extra).to_bytes(8, "little"))
        helpers.ram.write(PhysAddr(below), bytes(range(256)) * 16)
        helpers.call("startup.make_trampoline_root", root, 0)
        assert helpers.ram.read(PhysAddr(root), PAGE) == bytes(range(256)) * 16

    guards(check, "startup.py", RS_18)


def test_rs_08_pages_step_by_virtual_and_physical_address(code: Any, guards: Guards) -> None:
    """Both ends of the vectors, and every page between, although the two differ in their low bits."""
    va, physical, last = 0xFF42_2802_7FE0_0000, 0x3_3FE0_0000, 0xFF42_287F_4000_0000

    def check(package: str) -> None:
        helpers = code(LA57, "mapping", "memblock", package=package)
        helpers.add_memory()
        top = helpers.table()
        for start in (va, va - (1 << 45) + 2 * MIB):
            size = last - va + GIB if start == va else 3 * GIB
            assert helpers.call("mapping.map_range", top, start, physical, size, RW, 3) == 0
            for offset in (0, size // 2, size - GIB, size - 1):
                assert helpers.physical(top, start + offset) == physical + offset
            assert helpers.physical(top, start - 1) is None

    guards(check, "mapping.py", ("    low = va | pa\n", "    low = u64(pa)\n"))


def test_rs_35_end_of_the_address_space(code: Any, guards: Guards, mode: PagingMode) -> None:
    """An end that is compared with wraps to 0, and nothing is mapped."""

    def check(package: str) -> None:
        helpers = code(mode, "mapping", "memblock", package=package)
        helpers.add_memory()
        top, size = helpers.table(), 4 * MIB
        assert helpers.call("mapping.map_range", top, (1 << 64) - size, 64 * MIB, size, RW, 3) == 0
        assert helpers.physical(top, (1 << 64) - 1) == 64 * MIB + size - 1

    guards(check, "mapping.py", ("    while left != 0:\n", "    while left != 0 and va < va + left:\n"))


def test_rfc_b20_and_rs_33_folded_p4d_is_not_freed(code: Any, guards: Guards) -> None:
    """The page behind a folded PGD entry is the PUD table: freed as P4D and as PUD, it is handed out twice."""

    def check(package: str) -> None:
        helpers = code(LA48, "mapping", "memblock", package=package)
        helpers.add_memory()
        table = helpers.call("memblock.allocate_table")
        helpers.call("memblock.free_table", table)
        helpers.call("mapping.p4d_free", table)
        first, second = (helpers.call("memblock.allocate_table") for _ in range(2))
        assert first != second

    guards(check, "mapping.py", ("    if not p4d_folded():\n        free_table(table)", "    free_table(table)"))


def test_rs_16_a_pool_that_is_too_small_is_said(code: Any, processor: Any, stopped: Any, guards: Guards) -> None:
    """The worst image needs nine tables in five levels; one less, and the boot code says so instead of going on."""

    def check(package: str) -> None:
        space = started(entered(code, processor, package, LA57, True), LA57, (256 << 40) - 2 * MIB, 4 * MIB)
        assert leads(space, 256 << 40) == 256 << 40

    guards(check, "early.py", ("POOL_PAGES: Final = 64", "POOL_PAGES: Final = 8"))
    guards(check, "early.py", ("    if used == POOL_PAGES:", "    if used == 8:"))


def test_rs_34_no5lvl_leaves_five_levels_too(code: Any, processor: Any, guards: Guards) -> None:
    def check(package: str) -> None:
        helpers = entered(code, processor, package, LA57, True)
        helpers.processor.cr3 = MIB + 8 * PAGE
        helpers.ram.write(PhysAddr(MIB + 8 * PAGE), ((MIB + 9 * PAGE) | 0x67).to_bytes(8, "little") + bytes(PAGE - 8))
        for i in (9, 10):
            link = ((MIB + (i + 1) * PAGE) | 0x67).to_bytes(8, "little")
            helpers.ram.write(PhysAddr(MIB + i * PAGE), link.ljust(PAGE, b"\0"))
        leaves = b"".join((i << 21 | 0xE7).to_bytes(8, "little") for i in range(512))
        helpers.ram.write(PhysAddr(MIB + 11 * PAGE), leaves)
        helpers.ram.write(PhysAddr(0x1_0800), b"no5lvl\0")
        assert helpers.call("startup.switch_mode", 0x1_0000, 16 * MIB, 17 * MIB) != 0

    guards(
        check,
        "startup.py",
        ("    if five_levels == (read_cr4()", "    if not five_levels or five_levels == (read_cr4()"),
    )

"""The firmware's runtime services on the host: its map, its space, its rights, and calls, with a firmware in Python.

The firmware looks at memory only as the active tables show it, so a space that lacks something is seen to lack it.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import pytest

from fivefold.arch import LA48, LA57, AddressSpace, Cpu, Mapped, PagingMode, distinct_tables, regions, translate
from fivefold.kernel.efi.efi_map import EFI_VA_START
from fivefold.kernel.efi.efi_stub import BUFFER_TOO_SMALL, EFI_MAGIC, HANDOFF_ATTRIBUTES, HANDOFF_EFI, MAP_ROOM
from fivefold.kernel.modes import MODES
from fivefold.kernel.report import WORDS
from fivefold.kernel.selftest.efi_checks import NOT_FOUND, VALUE_SIZE
from fivefold.metal.program import Program
from fivefold.metal.run import host
from fivefold.units import PhysAddr, VirtAddr

PAGE = 4096
CODE, DATA, CONVENTIONAL, MMIO = 5, 6, 7, 11
RUNTIME, READ_ONLY, NO_EXECUTE = 1 << 63, 1 << 17, 1 << 14
DESCRIPTOR = 48
"""Larger than the structure, as firmware does on purpose."""
INFO, HANDOFF = 0x10_0000, 0x11_0000
"""Start information with one module, and that module."""
MAP, TABLE = HANDOFF + 0x80, HANDOFF + HANDOFF_ATTRIBUTES - HANDOFF_EFI
IMAGE = 0xFFFF_FFFF_8100_0000
FIRMWARE = 0x60_0000
WRITABLE, DIRTY = 1 << 1, 1 << 6
Row = tuple[int, int, int, int]
"""Type, start, pages, attributes."""
REGIONS: list[Row] = [
    (CONVENTIONAL, 0x10_0000, 256, 15),
    (CODE, FIRMWARE, 6, RUNTIME | 15),
    (DATA, FIRMWARE + 0x8000, 2, RUNTIME | 15),
    (DATA, 0x70_0000, 0, RUNTIME),
]
WINDOW = {FIRMWARE: EFI_VA_START - 6 * PAGE, FIRMWARE + 0x8000: EFI_VA_START - 8 * PAGE}
SPLIT: list[Row] = [
    (CODE, FIRMWARE, 1, RUNTIME | NO_EXECUTE),
    (CODE, FIRMWARE + PAGE, 3, RUNTIME | READ_ONLY),
    (CODE, FIRMWARE + 4 * PAGE, 2, RUNTIME | NO_EXECUTE),
    (DATA, FIRMWARE + 0x8000, 2, RUNTIME | NO_EXECUTE),
]
SYSTEM, SERVICES = FIRMWARE + 0x8000, FIRMWARE + 0x8800
TEXT = FIRMWARE + PAGE
"""Code of the firmware: a service's address is this and its offset in the table of services."""
GET_TIME, SET_MAP, GET_VARIABLE, NEXT_VARIABLE = 24, 56, 72, 80
ERROR = 1 << 63
TIME = struct.pack("<HBBBBBxIhBx", 2026, 7, 31, 12, 30, 15, 0, 0, 0)


def packed(rows: Sequence[Row], each: int = DESCRIPTOR) -> bytes:
    """Memory descriptors, each of *each* bytes."""
    made = (struct.pack("<IIQQQQ", kind, 0, at, 0, pages, attributes) for kind, at, pages, attributes in rows)
    return b"".join(row.ljust(each, b"\xee") for row in made)


class World:
    """A kernel that was started by firmware, and the firmware: *rows* is its map, *attributes* that table's rows."""

    def __init__(
        self,
        code: Any,
        mode: PagingMode,
        rows: Sequence[Row] = REGIONS,
        attributes: Sequence[Row] = (),
        each: int = DESCRIPTOR,
        filled: int | None = None,
    ) -> None:
        self.mode, self.variables, self.calls = mode, {"Lang": (6, b"eng\0")}, list[tuple[int, int]]()
        self.grows = True
        self.code = code(
            mode, "efi", "efi_map", "efi_space", "efi_attributes", "efi_calls", "efi_checks", "memblock", "layout",
            "report",
            extents=[(0x10_0000, 0x40_0000), (FIRMWARE, FIRMWARE + 0x1_0000)],
            symbols={"efi_call": call_firmware},
        )  # fmt: skip
        ACTIVE[:] = [self]
        self.ram, self.plain = self.code.ram, self.code.plain
        self.code.call("layout.layout_init", 0)
        self.mapped = [self.plain.map(bytearray(0x8000))]
        self.table = self.mapped[0]
        self.code.call("report.begin", self.table)
        self.code.call("memblock.add", 0x20_0000, 0x10_0000)
        self.code.call("memblock.add", HANDOFF, 0xC000)
        self.code.call("memblock.reserve", HANDOFF, 0xC000)
        self.top = self.code.table()
        # Beside the window: the last table's entries below it, with five levels also those of the table above.
        first = 0xFFFF_0000_0000_0000 if mode is LA57 else 0xFFFF_FE00_0000_0000
        self.shared = [IMAGE, self.code.get("layout.vmalloc_base"), 0xFFFF_FF80_4000_0000, first]
        for va in self.shared:
            self.map_kernel(va)
        self.code.processor.cr3 = self.top - self.code.window
        self.hand_over(rows, attributes, each, filled)

    def map_kernel(self, va: int) -> None:
        """Map a page in the kernel's own tables."""
        assert self.code.call("mapping.map_range", self.top, va, 0x30_0000, PAGE, 0x163, 1) == 0

    def hand_over(self, rows: Sequence[Row], attributes: Sequence[Row], each: int, filled: int | None) -> None:
        """Write what the EFI application leaves, and the firmware's own tables."""
        data = packed(rows, each or DESCRIPTOR)
        table = b"" if not attributes else struct.pack("<IIII", 1, len(attributes), DESCRIPTOR, 0) + packed(attributes)
        head = struct.pack("<QQQQQQ", EFI_MAGIC, SYSTEM, len(data) if filled is None else filled, each, 1, len(table))
        self.ram.write(INFO, struct.pack("<IIIIQ", 0x336E_C578, 1, 0, 1, INFO + 64).ljust(64, b"\0"))
        self.ram.write(INFO + 64, struct.pack("<QQQQ", HANDOFF, 0xC000, 0, 0))
        for at, content in ((HANDOFF, head), (MAP, data[:MAP_ROOM]), (TABLE, table)):
            self.ram.write(at, content)
        self.ram.write(FIRMWARE, bytes(0x1_0000))
        self.point(SYSTEM, SERVICES, TEXT)
        # Where the kernel reads the firmware's tables, before and after its move.
        self.mapped.append(self.plain.map_physical(self.ram, 0x1_0000, base=FIRMWARE, at=FIRMWARE))
        self.mapped.append(self.plain.map_physical(self.ram, 2 * PAGE, base=SYSTEM, at=WINDOW[SYSTEM]))

    def close(self) -> None:
        """Unmap what another world maps again."""
        for at in self.mapped:
            self.plain.unmap(at)

    def point(self, system: int, services: int, text: int) -> None:
        """Write the firmware's pointers; the tables stay where they are."""
        self.ram.write(SYSTEM + 88, services.to_bytes(8, "little"))
        for offset in (GET_TIME, SET_MAP, GET_VARIABLE, NEXT_VARIABLE):
            self.ram.write(SERVICES + offset, (text + offset).to_bytes(8, "little"))

    # -- the firmware -------------------------------------------------------------------------

    def space(self) -> AddressSpace:
        """What is active."""
        return AddressSpace(self.ram, PhysAddr(self.code.processor.cr3), self.mode, Cpu())

    def firmware(self, service: int, a: int, b: int, c: int, d: int, e: int) -> int:
        """One call: its code must be mapped, executable, and not by the kernel's root."""
        found = translate(self.space(), VirtAddr(service))
        assert isinstance(found, Mapped) and found.rights.execute, hex(service)
        assert self.code.processor.cr3 != self.top - self.code.window
        assert self.code.processor.cr4 & 0x600 == 0x600, "firmware may use SSE"
        for shared in self.shared:
            assert isinstance(translate(self.space(), VirtAddr(shared)), Mapped)
        offset = found.pa - TEXT
        self.calls.append((offset, service))
        services: dict[int, Callable[..., int]] = {
            GET_TIME: self.get_time,
            SET_MAP: self.set_map,
            GET_VARIABLE: self.get,
            NEXT_VARIABLE: self.next,
        }
        return services[offset](a, b, c, d, e)

    def set_map(self, size: int, each: int, version: int, at: int, _: int) -> int:
        data = self.plain.read(at, size)
        assert version == 1
        moved = {}
        for i in range(0, size, each):
            _kind, _pad, start, virtual, _pages, attributes = struct.unpack_from("<IIQQQQ", data, i)
            if attributes & RUNTIME and _pages:
                moved[start] = virtual
        self.mapped.remove(FIRMWARE)
        self.plain.unmap(FIRMWARE)
        self.point(SYSTEM, moved[FIRMWARE + 0x8000] + 0x800, moved[FIRMWARE] + PAGE)
        return 0

    def get_time(self, at: int, *_: int) -> int:
        self.plain.write(at, TIME)
        if self.grows:  # The next call finds the kernel grown.
            self.shared.append(self.shared[1] + 3 * (1 << self.mode.top.shift))
            self.map_kernel(self.shared[-1])
        return 0

    def next(self, size: int, name: int, vendor: int, *_: int) -> int:
        first = next(iter(self.variables), None)
        if first is None:
            return NOT_FOUND
        self.plain.write(name, first.encode("utf-16-le") + b"\0\0")
        self.plain.write(vendor, b"V" * 16)
        return 0

    def get(self, name: int, vendor: int, attributes: int, size: int, value: int) -> int:
        text = self.plain.read(name, 64).decode("utf-16-le", errors="replace").split("\0")[0]
        if text not in self.variables or self.plain.read(vendor, 16) != b"V" * 16:
            return NOT_FOUND
        what, data = self.variables[text]
        room = int.from_bytes(self.plain.read(size, 8), "little")
        self.plain.write(size, len(data).to_bytes(8, "little"))
        if room < len(data):
            return BUFFER_TOO_SMALL
        self.plain.write(attributes, what.to_bytes(4, "little"))
        self.plain.write(value, data)
        return 0

    # -- what came of it ----------------------------------------------------------------------

    def run(self) -> dict[str, tuple[int, int, int]]:
        """Make all checks: outcome (2: skipped), got and wanted, by name."""
        if self.code.call("efi.start_runtime", self.top, INFO):
            self.code.call("efi_checks.check_runtime", self.top)
        return self.outcomes()

    def outcomes(self) -> dict[str, tuple[int, int, int]]:
        count = self.word("checks")
        records = struct.iter_unpack("<4Q", self.plain.read(self.table + 0x1000, 32 * count))
        return {self.text(name): (ok, got, want) for name, ok, got, want in records}

    def text(self, at: int) -> str:
        data = bytearray()
        while byte := self.plain.read(at + len(data), 1):
            if byte == b"\0":
                break
            data += byte
        return data.decode()

    def word(self, name: str) -> int:
        return int.from_bytes(self.plain.read(self.table + 8 * WORDS.index(name), 8), "little")

    def own(self) -> AddressSpace:
        """The firmware's space."""
        return AddressSpace(self.ram, PhysAddr(self.code.get("efi_space.root")), self.mode, Cpu())

    def window(self) -> Sequence[tuple[int, int, str]]:
        """What the window shows: physical address, pages, rights; downwards, as it was filled."""
        runs = list(regions(self.own(), range(0xFFFF_FFEF_0000_0000, EFI_VA_START), contiguous=True))
        rights = [("w" if run.rights.write else "-") + ("x" if run.rights.execute else "-") for run in runs]
        return [(run.phys, run.size // PAGE, text) for run, text in zip(runs, rights, strict=True)][::-1]


ACTIVE: list[World] = []


def call_firmware(*args: int) -> int:
    """One function for all worlds: a program is loaded once for each."""
    return ACTIVE[0].firmware(*args)


Make = Callable[..., World]


@pytest.fixture
def worlds(code: Any) -> Iterator[Make]:
    """`World`, unmapped at the end."""
    made: list[World] = []

    def make(*args: Any, **more: Any) -> World:
        made.append(World(code, *args, **more))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.fixture
def world(worlds: Make, mode: PagingMode) -> Make:
    """`World` in both modes."""
    return partial(worlds, mode)


@pytest.fixture
def one(worlds: Make) -> Make:
    """`World` where the mode is all the same."""
    return partial(worlds, LA57)


CHECKS = {
    "efi_handoff", "efi_runtime_regions", "efi_set_virtual_address_map", "efi_identity_gone", "efi_own_top_page",
    "efi_shared_in_step", "efi_get_time", "efi_get_time_plausible", "efi_next_variable", "efi_get_variable_size",
    "efi_get_variable", "efi_get_variable_length", "efi_get_variable_attributes", "efi_get_variable_not_found",
    "efi_window_not_in_kernel", "efi_write_or_execute",
}  # fmt: skip


def test_all_of_it(world: Make) -> None:
    """The regions are in the window alone, divided as the table says; the firmware was called there."""
    made = world(attributes=SPLIT)
    outcomes = made.run()
    assert outcomes.keys() == CHECKS
    assert {name for name, row in outcomes.items() if row[0] != 1} == set()
    assert made.word("efi_attributes") == len(SPLIT)
    assert made.window() == [
        (FIRMWARE + 4 * PAGE, 2, "w-"),
        (FIRMWARE + PAGE, 3, "-x"),
        (FIRMWARE, 1, "w-"),
        (SYSTEM, 2, "w-"),
    ]
    code = translate(made.own(), VirtAddr(WINDOW[FIRMWARE] + PAGE))
    assert isinstance(code, Mapped)
    assert code.leaf.raw & (WRITABLE | DIRTY) == 0, "dirty but not writable would be a shadow stack"
    assert not list(regions(made.own(), range(1 << 46)))
    first, *later = made.calls
    assert first == (SET_MAP, TEXT + SET_MAP), "called at its physical address, for the last time"
    assert {offset for offset, _ in later} == {GET_TIME, GET_VARIABLE, NEXT_VARIABLE}
    assert all(service == WINDOW[FIRMWARE] + PAGE + offset for offset, service in later)
    assert made.code.processor.cr3 == made.top - made.code.window
    assert made.code.processor.cr4 & 0x600 == 0


def test_tables_are_accounted_for(world: Make) -> None:
    made = world()
    made.grows = False
    made.run()
    own = {frame for level in distinct_tables(made.own()).values() for frame in level}
    kernels = {frame for level in distinct_tables(made.code.space(made.top)).values() for frame in level}
    assert made.word("efi_tables") == len(own - kernels)


@pytest.mark.parametrize("place", [0x7000_0000, HANDOFF + 0xC000 - 8, (1 << 64) - 8], ids=hex)
def test_a_module_that_is_no_memory_is_passed_over(one: Make, place: int) -> None:
    """A loader may have it in a ROM, or end it within a word: nothing maps that in the final tables."""
    made = one()
    made.ram.write(INFO + 64, struct.pack("<QQQQ", place, 0xC000, 0, 0))
    assert made.run() == {}


def test_no_firmware(one: Make) -> None:
    made = one()
    made.ram.write(HANDOFF, bytes(8))
    assert made.run() == {}


@pytest.mark.parametrize("each", [40, 48, 56, 4096])
def test_descriptors_of_any_size(one: Make, each: int) -> None:
    made = one(each=each)
    assert made.run()["efi_runtime_regions"][:2] == (1, 2)


LIES: list[tuple[str, list[Row], dict[str, int], str]] = [
    ("descriptors of 0", REGIONS, {"each": 0}, "the firmware's memory map has descriptors of a size that cannot be"),
    ("descriptors of 32", REGIONS, {"each": 32}, "the firmware's memory map has descriptors of a size that cannot be"),
    ("descriptors of 44", REGIONS, {"each": 44}, "the firmware's memory map has descriptors of a size that cannot be"),
    ("a map beyond the room for it", REGIONS, {"filled": MAP_ROOM + 8},
     "the firmware's memory map has descriptors of a size that cannot be"),
    ("wraps", [(DATA, (1 << 64) - PAGE, 2, RUNTIME)], {}, "the firmware has a runtime region where no memory can be"),
    ("wraps by its size", [(DATA, FIRMWARE, 1 << 52, RUNTIME)], {}, "the firmware's runtime regions do not fit"),
    ("wraps to little", [(DATA, FIRMWARE, (1 << 52) + 1, RUNTIME)], {}, "the firmware's runtime regions do not fit"),
    ("in the upper half", [(DATA, 0xFFFF_8000_0000_0000, 1, RUNTIME)], {},
     "the firmware has a runtime region where no memory can be"),
    ("at the end of the lower half", [(DATA, (1 << 56) - PAGE, 2, RUNTIME)], {},
     "the firmware has a runtime region where no memory can be"),
    ("not whole pages", [(DATA, FIRMWARE + 8, 1, RUNTIME)], {},
     "the firmware has a runtime region where no memory can be"),
    ("the same twice", [REGIONS[1], REGIONS[1]], {}, "two runtime regions of the firmware overlap"),
    ("overlap", [(CODE, FIRMWARE, 6, RUNTIME), (DATA, FIRMWARE + 5 * PAGE, 4, RUNTIME)], {},
     "two runtime regions of the firmware overlap"),
    ("one inside the other", [(DATA, FIRMWARE + PAGE, 1, RUNTIME), (CODE, FIRMWARE, 6, RUNTIME)], {},
     "two runtime regions of the firmware overlap"),
    ("more than the window", [(DATA, 1 << 32, (64 << 30) // PAGE, RUNTIME), (DATA, FIRMWARE, 1, RUNTIME)], {},
     "the firmware's runtime regions do not fit"),
]  # fmt: skip


@pytest.mark.parametrize(("rows", "more", "message"), [row[1:] for row in LIES], ids=[row[0] for row in LIES])
def test_a_map_that_cannot_be(one: Make, stopped: Any, rows: list[Row], more: dict[str, int], message: str) -> None:
    """Refused before a table is made."""
    made = one(rows, **more)
    before = made.code.get("memblock.table_pages")
    with pytest.raises(stopped) as refusal:
        made.run()
    assert f"panic: {message}\n" in str(refusal.value)
    assert made.code.get("memblock.table_pages") == before
    assert made.calls == []


def test_regions_in_any_order(one: Make) -> None:
    made = one(REGIONS[::-1])
    made.code.set("efi_map.handoff", HANDOFF + made.code.window)
    made.code.call("efi_map.check_map")


@pytest.mark.parametrize(("active", "highest"), [(LA48, 1 << 47), (LA57, 1 << 56)], ids=["la48", "la57"])
def test_the_lower_half_of_each_mode(worlds: Make, active: PagingMode, highest: int) -> None:
    made = worlds(active)
    assert [made.code.call("efi_map.can_be", highest - PAGE, size) for size in (PAGE, 2 * PAGE)] == [1, 0]


def test_what_is_not_for_run_time_may_lie(one: Make) -> None:
    """Other rows have been judged as memory already; an empty runtime region is none."""
    made = one([*REGIONS, (MMIO, (1 << 64) - PAGE, 1 << 60, 0), (DATA, FIRMWARE, 0, RUNTIME), (CODE, FIRMWARE, 6, 0)])
    assert made.run()["efi_runtime_regions"][:2] == (1, 2)


BAD_TABLES: list[tuple[str, list[Row]]] = [
    ("a row outside", [*SPLIT, (DATA, 0x30_0000, 1, RUNTIME | NO_EXECUTE)]),
    ("a row beyond its region", [(CODE, FIRMWARE + 4 * PAGE, 3, RUNTIME | NO_EXECUTE)]),
    ("a row of all pages", [(CODE, FIRMWARE, 1 << 52, RUNTIME | READ_ONLY)]),
    ("a row of more", [(CODE, FIRMWARE, (1 << 52) + 1, RUNTIME | READ_ONLY)]),
    ("a row before its region", [(CODE, FIRMWARE - PAGE, 2, RUNTIME | READ_ONLY)]),
    ("an empty row", [(CODE, FIRMWARE, 0, RUNTIME | READ_ONLY)]),
    ("not whole pages", [(CODE, FIRMWARE + 8, 1, RUNTIME | READ_ONLY)]),
    ("data that is called code", [(CODE, SYSTEM, 1, RUNTIME | READ_ONLY)]),
    ("memory that is not for run time", [(CONVENTIONAL, 0x10_0000, 1, RUNTIME | READ_ONLY)]),
    ("rows that overlap", [(CODE, FIRMWARE, 2, RUNTIME | READ_ONLY), (CODE, FIRMWARE + PAGE, 1, RUNTIME | NO_EXECUTE)]),
    ("rows out of order", SPLIT[::-1]),
    ("the same row twice", [SPLIT[0], SPLIT[0]]),
]  # fmt: skip


MODE = {f"fivefold.kernel.paging.pgtable.{name}": value for name, value in MODES["la57"].items()}
NATIVE = ("efi_attributes.is_sound", "efi_attributes.leaves_any", "efi_map.virtual_of", "efi_map.meets_earlier")


@pytest.fixture(scope="module")
def native() -> Any:
    """What of it needs no machine, as native code."""
    modules = ("fivefold.kernel.efi.efi_map", "fivefold.kernel.efi.efi_attributes")
    return host.load(Program(modules, MODE, roots=tuple(f"fivefold.kernel.efi.{name}" for name in NATIVE)))


@pytest.mark.parametrize("attributes", [SPLIT, SPLIT[:2], *(row[1] for row in BAD_TABLES)])
def test_native_code_says_the_same(one: Make, native: Any, attributes: list[Row]) -> None:
    made = one([*REGIONS, (CODE, FIRMWARE + 5 * PAGE, 1, RUNTIME)], attributes)
    made.code.set("efi_map.handoff", HANDOFF + made.code.window)
    content = bytearray(made.ram.read(HANDOFF, 0xC000))
    native.set("efi_map.handoff", at := native.map(content))
    for name, *arguments in (
        *((each,) for each in NATIVE[:2]),
        *(("efi_map.virtual_of", FIRMWARE + offset) for offset in (0, 6 * PAGE - 1, 6 * PAGE, 0x8000, 0xA000)),
        *(("efi_map.meets_earlier", i) for i in range(len(REGIONS) + 1)),
    ):
        assert native.call(name, *arguments) == made.code.call(name, *arguments), (name, arguments)
    native.unmap(at)


@pytest.mark.parametrize("attributes", [row[1] for row in BAD_TABLES], ids=[row[0] for row in BAD_TABLES])
def test_a_table_of_attributes_that_lies_is_not_used(one: Make, attributes: list[Row]) -> None:
    """None of its rows is, right ones neither; the firmware is called all the same."""
    made = one(attributes=attributes)
    outcomes = made.run()
    skipped, reason, _ = outcomes["efi_write_or_execute"]
    assert (skipped, made.text(reason)) == (2, "the firmware's table of memory attributes contradicts its memory map")
    assert made.window() == [(FIRMWARE, 6, "wx"), (SYSTEM, 2, "w-")]
    assert made.word("efi_attributes") == 0
    assert outcomes["efi_get_time"][0] == 1


def test_rows_for_what_is_neither_code_nor_data_are_not_used(one: Make) -> None:
    made = one([*REGIONS, (MMIO, FIRMWARE + 0xC000, 1, RUNTIME)], [(MMIO, FIRMWARE + 0xC000, 1, RUNTIME | READ_ONLY)])
    made.code.set("efi_map.handoff", HANDOFF + made.code.window)
    assert made.code.call("efi_attributes.is_sound") == 0


def test_no_table_of_attributes(one: Make) -> None:
    made = one()
    skipped, reason, _ = made.run()["efi_write_or_execute"]
    assert (skipped, made.text(reason)) == (2, "the firmware has no table of memory attributes that can be used")


@pytest.mark.parametrize(
    "attributes",
    [SPLIT[:1] + SPLIT[2:], [(CODE, FIRMWARE, 6, RUNTIME)], [SPLIT[3]]],
    ids=["code in no row", "a row that says nothing", "data only"],
)
def test_a_table_that_leaves_pages_as_they_are(one: Make, attributes: list[Row]) -> None:
    """What it says is done, and that it says too little is told."""
    made = one(attributes=attributes)
    skipped, reason, _ = made.run()["efi_write_or_execute"]
    assert (skipped, made.text(reason)) == (2, "the firmware's table of memory attributes leaves pages that are both")
    assert [row for row in made.window() if row[2] == "wx"]
    assert made.word("efi_attributes") == 0, "nothing for those outside to insist on"


def test_a_page_that_stays_both_fails(one: Make) -> None:
    """The check reads the entries: put one right back and it counts it."""
    made = one(attributes=SPLIT)
    made.run()
    root = made.code.get("efi_space.root") + made.code.window
    assert made.code.call("efi_attributes.writable_executable", root) == 0
    at = made.code.call("mapping.pte_of", root, WINDOW[FIRMWARE])
    entry = int.from_bytes(made.plain.read(at, 8), "little")
    made.plain.write(at, (entry & ~(1 << 63)).to_bytes(8, "little"))
    assert made.code.call("efi_attributes.writable_executable", root) == 1


VARIABLES: list[tuple[str, dict[str, tuple[int, bytes]], dict[str, int]]] = [
    ("none", {}, {"efi_next_variable": 0, "efi_get_variable_size": 0, "efi_get_variable": 0}),
    ("gone with boot services", {"Lang": (2, b"eng")}, {"efi_get_variable_attributes": 0}),
    ("as large as the room", {"Lang": (6, bytes(VALUE_SIZE))}, {}),
    ("larger", {"dbx": (6, bytes(VALUE_SIZE + 1))}, {"efi_get_variable": 2}),
]


@pytest.mark.parametrize(("variables", "expected"), [row[1:] for row in VARIABLES], ids=[row[0] for row in VARIABLES])
def test_variables(one: Make, variables: dict[str, tuple[int, bytes]], expected: dict[str, int]) -> None:
    made = one()
    made.variables = variables
    outcomes = made.run()
    found = {name: row[0] for name, row in outcomes.items() if "variable" in name and row[0] != 1}
    assert {name: found.get(name) for name in expected} == expected
    assert expected or not found


@pytest.mark.parametrize(
    ("time", "ok"),
    [
        ((2026, 7, 31), 1),
        ((1999, 12, 31), 0),
        ((2100, 1, 1), 0),
        ((2026, 13, 1), 0),
        ((2026, 0, 1), 0),
        ((2026, 1, 32), 0),
    ],
    ids=str,
)
def test_dates(one: Make, time: tuple[int, int, int], ok: int) -> None:
    made = one()
    made.get_time = lambda at, *_: made.plain.write(at, struct.pack("<HBB", *time)) or 0  # type: ignore[method-assign]
    assert made.run()["efi_get_time_plausible"][0] == ok

"""From the loader to the early tables: what is decided, where the trampoline goes, what is mapped."""

from __future__ import annotations

import struct
from typing import Any

import pytest

from fivefold.arch import LA48, LA57, TABLE, AddressSpace, Cpu, Entry, Frames, Level, Mapped, PagingMode, translate
from fivefold.arch import map_range as arch_map_range
from fivefold.kernel.boot import in_use, multiboot2
from fivefold.kernel.paging.phys import LINK_ADDRESS
from fivefold.units import GIB, KIB, MIB, PhysAddr, VirtAddr

BAIL = "Bail out! fivefold: "
INFO = 0x1_0000
ROWS = INFO + 0x100
CMDLINE = INFO + 0x800
TABLES = 0x20_0000
CODE = 0x40_0000
"""Stands for the trampoline's code, with the word behind it that says where it was copied to."""
USED = CODE + 0x2000
LOAD, END = 16 * MIB, 17 * MIB
RAM, RESERVED = 1, 2
NX, SOFTWARE = 1 << 63, 1 << 58 | 1 << 9
PC = [(0, 0x9_FC00, RAM), (0x9_FC00, 0x400, RESERVED), (0xF_0000, 0x1_0000, RESERVED), (MIB, 63 * MIB, RAM)]
FIVE = {(7, 0): (0, 0, 1 << 16, 0)}


class Loader:
    """A machine as a loader leaves it: paging on in *active*, physical memory at itself."""

    def __init__(
        self,
        code: Any,
        processor: Any,
        active: PagingMode,
        rows: list[tuple[int, int, int]],
        *,
        package: str = "fivefold.kernel",
        leaves: Any = None,
        cmdline: bytes = b"",
        extents: tuple[tuple[int, int], ...] = ((0x1000, 0xA_0000), (MIB, 8 * MIB)),
        tables: int = TABLES,
    ) -> None:
        cpu = processor(FIVE if leaves is None else leaves)
        cpu.cr4 |= (active is LA57) << 12
        cpu.cr3 = tables
        self.helpers = code(
            None,
            "startup",
            package=package,
            extents=extents,
            window=0,
            processor=cpu,
            symbols={"trampoline_start": CODE, "trampoline_used": USED},
        )
        self.cpu = cpu
        self.ram = self.helpers.ram
        self.call = self.helpers.call
        self.space = AddressSpace(self.ram, PhysAddr(tables), active, Cpu())
        self.ram.write(tables, bytes(4096))
        frames = Frames(self.ram, PhysAddr(tables + 4096), 40)
        arch_map_range(self.ram, self.space, range(4 * GIB), 0x3, frames, Level.PD)
        head = struct.pack("<IIIIQQQQII", 0x336E_C578, 1, 0, 0, 0, CMDLINE, 0, ROWS, len(rows), 0)
        self.ram.write(PhysAddr(INFO), head)
        self.ram.write(PhysAddr(ROWS), b"".join(struct.pack("<QQII", *row, 0) for row in rows))
        self.ram.write(PhysAddr(CMDLINE), cmdline + b"\0")
        self.ram.write(PhysAddr(CODE), b"code" * 1024)

    def place(self) -> int:
        """Where the trampoline would go."""
        return int(self.call("startup.find_trampoline", INFO, LOAD, END))


@pytest.fixture
def loader(code: Any, processor: Any) -> Any:
    """`Loader`."""
    return lambda *args, **more: Loader(code, processor, *args, **more)


PLACES = [
    ("a PC", PC, 0x9_D000),
    ("more low memory", [(0, 640 * KIB, RAM)], 0x9_D000),
    ("less low memory", [(0, 0x8_0000, RAM)], 0x7_E000),
    ("the top is reserved", [(0, 0x9_0000, RAM), (0x9_0000, 0x1_0000, RESERVED)], 0x8_E000),
    ("only the middle", [(0x3_0000, 0x2000, RAM)], 0x3_0000),
    ("ends within a page", [(0x3_0800, 0x3000, RAM)], 0x3_1000),
    ("a page too small", [(0x3_0000, 0x1000, RAM), (0x2_0000, 0x4000, RAM)], 0x2_2000),
    ("rows in any order", [(0x5_0000, 0x4000, RAM), (0x7_0000, 0x4000, RAM), (0x2_0000, 0x4000, RAM)], 0x7_2000),
    ("never frame 0", [(0, 0x2000, RAM)], 0),
    ("frames 1 and 2", [(0, 0x3000, RAM)], 0x1000),
    ("two entries, the first tiny", [(0, 0x1000, RAM), (MIB, 63 * MIB, RAM)], 0),
    ("nothing below the limit", [(0x9_F000, 0x1000, RAM), (MIB, MIB, RAM)], 0),
    ("empty", [], 0),
    ("wraps", [(0x3_0000, (1 << 64) - 1, RAM)], 0x9_D000),
    ("zero", [(0x3_0000, 0, RAM)], 0),
]


@pytest.mark.parametrize(("name", "rows", "place"), PLACES, ids=[row[0] for row in PLACES])
def test_placement(loader: Any, name: str, rows: list[tuple[int, int, int]], place: int) -> None:
    assert loader(LA48, rows).place() == place


@pytest.mark.parametrize("active", [LA48, LA57], ids=["from la48", "from la57"])
def test_placement_avoids_all_that_is_in_use(loader: Any, active: PagingMode) -> None:
    """The loader's information, and the tables under which the change of mode still runs."""
    low = [(0, 0x9_F000, RAM)]
    machine = loader(active, low, tables=0x8_0000)
    assert machine.place() == 0x9_D000
    machine = loader(active, low, tables=0x9_5000)
    frames = {step.at & ~0xFFF for va in (LOAD, INFO) for step in steps(machine.space, va)}
    place = machine.place()
    assert place != 0x9_D000 or not {0x9_D000, 0x9_E000} & frames
    assert not {place, place + 0x1000} & frames
    for used in (INFO, ROWS, CMDLINE):
        only = [(used & ~0xFFF, 0x2000, RAM)]
        assert loader(active, only).place() == 0


def steps(space: AddressSpace, va: int) -> Any:
    found = translate(space, VirtAddr(va))
    assert isinstance(found, Mapped)
    return found.steps


@pytest.mark.parametrize(
    ("active", "leaves", "cmdline", "changes"),
    [
        (LA48, FIVE, b"", True),
        (LA57, FIVE, b"", False),
        (LA48, {}, b"", False),
        (LA48, FIVE, b"no5lvl", False),
        (LA57, FIVE, b"no5lvl", True),
        (LA57, {}, b"", True),
    ],
)
def test_the_mode_is_changed_only_if_it_must_be(
    loader: Any, active: PagingMode, leaves: Any, cmdline: bytes, changes: bool
) -> None:
    machine = loader(active, PC, leaves=leaves, cmdline=cmdline)
    low = machine.ram.read(PhysAddr(0x9_D000), 0x2000)
    place = machine.call("startup.switch_mode", INFO, LOAD, END)
    assert place == (0x9_D000 if changes else 0)
    if not changes:
        assert machine.ram.read(PhysAddr(0x9_D000), 0x2000) == low, "memory is not touched"


def test_the_borrowed_pages_are_kept(loader: Any) -> None:
    machine = loader(LA48, PC)
    machine.ram.write(PhysAddr(0x9_D000), bytes(range(256)) * 32)
    place = machine.call("startup.switch_mode", INFO, LOAD, END)
    kept = machine.helpers.plain.read(machine.helpers.address("startup.borrowed"), 0x2000)
    assert kept == bytes(range(256)) * 32
    assert machine.ram.read(PhysAddr(place + 0x1000), 4096) == b"code" * 1024
    assert machine.ram.read(PhysAddr(USED), 8) == place.to_bytes(8, "little")


@pytest.mark.parametrize("active", [LA48, LA57], ids=["up", "down"])
def test_the_trampoline_root_shows_what_the_active_one_does(loader: Any, active: PagingMode) -> None:
    machine = loader(active, PC, cmdline=b"no5lvl" if active is LA57 else b"")
    place = machine.call("startup.switch_mode", INFO, LOAD, END)
    other = AddressSpace(machine.ram, PhysAddr(place), LA48 if active is LA57 else LA57, Cpu())
    for va in (INFO, LOAD, place, 4 * GIB - 1):
        found = translate(other, VirtAddr(va))
        assert isinstance(found, Mapped)
        assert found.pa == va
    if active is LA48:
        raw = int.from_bytes(machine.ram.read(PhysAddr(place), 8), "little")
        assert Entry(raw, Level.PML5).raw == TABLES | TABLE | 0x60
        assert not any(machine.ram.read(PhysAddr(place + 8), 4088))


def test_no_room_for_the_trampoline_is_said(loader: Any, stopped: Any) -> None:
    machine = loader(LA48, [(MIB, 63 * MIB, RAM)])
    with pytest.raises(stopped) as refusal:
        machine.call("startup.switch_mode", INFO, LOAD, END)
    assert str(refusal.value) == f"{BAIL}no free 8 KiB of memory below 0x9f000 for the change of paging mode\n"


@pytest.mark.parametrize("entry", ["switch_mode", "startup_64"])
def test_no_start_information_is_said(loader: Any, stopped: Any, entry: str) -> None:
    machine = loader(LA48, PC)
    machine.ram.write(PhysAddr(INFO), bytes(8))
    with pytest.raises(stopped, match="no start information; expected PVH's structure with a memory map"):
        machine.call(f"startup.{entry}", INFO, LOAD, END, *([4] if entry == "startup_64" else []))


@pytest.mark.parametrize(
    ("outcome", "message"),
    [
        (multiboot2.BAD_PLACE, "multiboot2's information has a size or place that cannot be"),
        (multiboot2.BAD_TAG, "multiboot2's information has a tag that does not fit, or no end"),
        (multiboot2.NO_MAP, "multiboot2's information has no memory map"),
    ],
)
def test_what_a_multiboot2_loader_did_wrong_is_said(loader: Any, stopped: Any, outcome: int, message: str) -> None:
    machine = loader(LA48, PC)
    machine.ram.write(PhysAddr(INFO), outcome.to_bytes(4, "little"))
    with pytest.raises(stopped) as refusal:
        machine.call("startup.startup_64", INFO, LOAD, END, 0)
    assert str(refusal.value) == f"{BAIL}{message}\n"


@pytest.mark.parametrize(
    ("load", "message"),
    [
        (LOAD + 0x1000, "the load address is not aligned to 2 MiB"),
        (1 << 46, "the load address is beyond what this mode's direct map can hold"),
        (1 << 52, "the load address is beyond what this mode's direct map can hold"),
    ],
)
def test_load_addresses_that_cannot_be_are_said(loader: Any, stopped: Any, load: int, message: str) -> None:
    with pytest.raises(stopped, match=message):
        loader(LA48, PC).call("startup.startup_64", INFO, load, load + MIB, 4)


def test_five_levels_take_a_load_address_that_four_do_not(loader: Any) -> None:
    machine = loader(LA57, PC)
    assert early_space(machine, LA57, 1 << 46, MIB)


def early_space(machine: Loader, mode: PagingMode, load: int, size: int) -> AddressSpace:
    """Run `startup_64`; the address space of the tables that it returns, which lie in the program's buffers."""
    root = machine.call("startup.startup_64", INFO, load, load + size, len(mode.levels))
    assert root == machine.helpers.address("startup.early_top")
    return AddressSpace(machine.helpers.plain, root, mode, Cpu())


LOADS = [2 * MIB, LOAD, GIB - 2 * MIB, 4 * GIB, 512 * GIB - 2 * MIB, (1 << 46) - 4 * MIB]


@pytest.mark.parametrize("load", LOADS, ids=hex)
def test_early_tables_map_the_image_twice(loader: Any, mode: PagingMode, load: int) -> None:
    """INV-12 and the scenarios of images that cross a border: at itself, and where it was linked."""
    space = early_space(loader(mode, PC), mode, load, 5 * MIB)
    for offset in (0, 2 * MIB - 1, 2 * MIB, 5 * MIB - 1):
        for va in (load + offset, LINK_ADDRESS + offset):
            found = translate(space, VirtAddr(va))
            assert isinstance(found, Mapped), hex(va)
            assert found.pa == load + offset
            assert found.rights.write and found.rights.execute
            assert not found.leaf.raw & 0x100, "not global: it goes away"
    for outside in (load - 1, load + 6 * MIB, LINK_ADDRESS - 1, LINK_ADDRESS + 6 * MIB):
        assert not isinstance(translate(space, VirtAddr(outside)), Mapped)


def test_the_crossing_of_256_tib(loader: Any) -> None:
    load = (256 << 40) - 2 * MIB
    space = early_space(loader(LA57, PC), LA57, load, 4 * MIB)
    for va in (load, load + 4 * MIB - 1):
        found = translate(space, VirtAddr(va))
        assert isinstance(found, Mapped)
        assert found.pa == va


def test_what_only_the_boot_code_knows_is_passed_on(loader: Any, mode: PagingMode) -> None:
    machine = loader(mode, PC)
    early_space(machine, mode, 6 * MIB, 3 * MIB)
    helpers = machine.helpers
    table = helpers.plain.read(helpers.address("startup.table"), 0x400)
    from fivefold.kernel.report import WORDS

    words = dict(zip(WORDS, struct.unpack(f"<{len(WORDS)}Q", table[: 8 * len(WORDS)]), strict=True))
    assert words["load_address"] == 6 * MIB
    assert words["image_end"] == 9 * MIB
    assert words["phys_base"] == (6 * MIB - LOAD) & (1 << 64) - 1
    assert words["entered_levels"] == len(mode.levels)
    assert words["start_info"] == INFO
    assert words["early_top"] == helpers.address("startup.early_top")
    assert words["early_kernel_tables"] == len(mode.levels) - 2
    assert helpers.get("phys.phys_base") == words["phys_base"]


def test_write_protection_and_nx_are_turned_on(loader: Any, mode: PagingMode) -> None:
    machine = loader(mode, PC)
    early_space(machine, mode, LOAD, MIB)
    assert machine.cpu.cr0 == 0x8001_0011
    assert machine.cpu.efer == 0xD00


def test_a_cpu_without_nx_is_refused(loader: Any, mode: PagingMode, stopped: Any) -> None:
    machine = loader(mode, PC, leaves={(0x8000_0001, 0): (0, 0, 0, 0)})
    with pytest.raises(stopped) as refusal:
        early_space(machine, mode, LOAD, MIB)
    assert str(refusal.value) == f"{BAIL}the CPU has no NX: nothing could be writable and not executable\n"


def test_limit_is_where_firmware_begins() -> None:
    assert in_use.TRAMPOLINE_LIMIT == 0x9_F000


def test_pcid_is_refused_in_one_line(loader: Any, stopped: Any) -> None:
    """With it the low bits of CR3 are no part of an address, and a load of CR3 keeps translations of other numbers."""
    machine = loader(LA48, PC)
    machine.cpu.cr4 |= 1 << 17
    with pytest.raises(stopped, match=rf"^{BAIL}CR4.PCIDE is on; the 64-bit entry expects it off\n$"):
        machine.call("startup.switch_mode", INFO, LOAD, END)

"""The EFI application's own work, with a firmware in Python: its map, load options, and a map key that is stale."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import pytest

from fivefold.metal.program import Program
from fivefold.metal.run import interpreter

BASE = 0x10_0000
HANDOFF, BOOT, TEXT = BASE, BASE + 0x2_0000, BASE + 0x2_1000
ROWS, MAP, EFI = HANDOFF + 0x100, HANDOFF + 0x4080, HANDOFF + 0x4000
CMDLINE = HANDOFF + 0x3200
DESCRIPTOR = 48
"""Larger than the structure, as firmware does on purpose."""
ERROR = 1 << 63
GET_MEMORY_MAP, EXIT_BOOT_SERVICES, HANDLE_PROTOCOL = 1, 2, 3
CONVENTIONAL, LOADER, BOOT_CODE, RUNTIME, ACPI, NVS, MMIO = 7, 2, 3, 6, 9, 10, 11


class Firmware:
    """Boot services by number; *stale* is how often the map has changed before it lets go.

    *each* is what it says that a descriptor's size is, *filled* how large it says the map is.
    """

    def __init__(
        self,
        rows: Sequence[tuple[int, int, int]] = (),
        stale: int = 0,
        options: bytes = b"",
        each: int = DESCRIPTOR,
        filled: int | None = None,
    ) -> None:
        self.rows, self.stale, self.options, self.each, self.filled = rows, stale, options, each, filled
        self.memory: Any = None
        self.maps = 0
        self.left = 0

    def call(self, service: int, a: int, b: int, c: int, d: int, e: int) -> int:
        if service == GET_MEMORY_MAP:
            self.maps += 1
            data = b"".join(struct.pack("<IIQQQQ8x", kind, 0, at, 0, size, 0) for kind, at, size in self.rows)
            size = len(data) if self.filled is None else self.filled
            for at, value in ((a, size), (c, self.maps), (d, self.each), (e, 1)):
                self.memory.write(at, value.to_bytes(8, "little"))
            self.memory.write(b, data)
            return 0
        if service == EXIT_BOOT_SERVICES:
            self.left += 1
            return 0 if self.maps > self.stale and b == self.maps else ERROR | 2
        assert service == HANDLE_PROTOCOL
        self.memory.write(TEXT, struct.pack("<48xI4xQ", len(self.options), TEXT + 0x100))
        self.memory.write(TEXT + 0x100, self.options)
        self.memory.write(c, TEXT.to_bytes(8, "little"))
        return 0


def stub(firmware: Firmware) -> Any:
    """The application's functions over memory with a table of boot services."""
    name = "fivefold.kernel.efi.efi_stub"
    instance = interpreter.load(
        Program((name,), roots=(f"{name}.*",)),
        externs={"efi_call": firmware.call, "efi_jump": print, "efi_go_up": print, "efi_words": 0, "efi_base": 0,
                 "efi_up_start": 0, "efi_up_end": 0},
    )  # fmt: skip
    memory = bytearray(0x4_0000)
    for offset, service in ((56, GET_MEMORY_MAP), (232, EXIT_BOOT_SERVICES), (152, HANDLE_PROTOCOL)):
        struct.pack_into("<Q", memory, BOOT - BASE + offset, service)
    instance.map(memory, at=BASE)
    firmware.memory = instance
    return instance


MAPS = [
    ("boot services are memory", [(BOOT_CODE, 0x1000, 1), (CONVENTIONAL, 0x2000, 2)], [(0x1000, 0x3000, 1)]),
    ("what lies apart stays apart", [(LOADER, 0x1000, 1), (CONVENTIONAL, 0x3000, 1)],
     [(0x1000, 0x1000, 1), (0x3000, 0x1000, 1)]),
    ("runtime services are not memory", [(CONVENTIONAL, 0x1000, 1), (RUNTIME, 0x2000, 1)],
     [(0x1000, 0x1000, 1), (0x2000, 0x1000, 2)]),
    ("acpi", [(ACPI, 0x1000, 1), (NVS, 0x2000, 1)], [(0x1000, 0x1000, 3), (0x2000, 0x1000, 4)]),
    ("mmio and what nobody knows", [(MMIO, 0x1000, 1), (99, 0x2000, 1)], [(0x1000, 0x2000, 2)]),
    ("a region of all of memory, and more", [(CONVENTIONAL, 0x1000, (1 << 52) + 1)], [(0x1000, (1 << 64) - 0x1000, 1)]),
    ("wraps, with a neighbour at 0", [(MMIO, 0x1000, (1 << 52) - 1), (MMIO, 0, 1)],
     [(0x1000, (1 << 64) - 0x1000, 2), (0, 0x1000, 2)]),
    ("a neighbour that wraps", [(MMIO, 0x1000, 1), (MMIO, 0x2000, (1 << 52) - 1)],
     [(0x1000, 0x1000, 2), (0x2000, (1 << 64) - 0x1000, 2)]),
    ("empty regions", [(CONVENTIONAL, 0x1000, 0), (CONVENTIONAL, 0x1000, 1), (MMIO, 0x2000, 0)],
     [(0x1000, 0x1000, 1), (0x2000, 0, 2)]),
    ("overlaps are judged later", [(CONVENTIONAL, 0x1000, 4), (MMIO, 0x2000, 1)],
     [(0x1000, 0x4000, 1), (0x2000, 0x1000, 2)]),
    ("nothing", [], []),
]  # fmt: skip


@pytest.mark.parametrize(("rows", "expected"), [row[1:] for row in MAPS], ids=[row[0] for row in MAPS])
def test_memory_map(rows: list[tuple[int, int, int]], expected: list[tuple[int, int, int]]) -> None:
    made = stub(Firmware(rows))
    assert made.call("efi_stub.leave_boot_services", BOOT, 1, HANDOFF)
    count = made.call("efi_stub.write_rows", HANDOFF)
    found = struct.iter_unpack("<QQII", made.read(ROWS, 24 * count))
    assert [row[:3] for row in found] == expected


def test_more_rows_than_there_is_room_for_are_counted() -> None:
    """The kernel stops then: what is lost may be a row that takes memory back."""
    rows = [(CONVENTIONAL, 0x1000 * 2 * i, 1) for i in range(1, 601)]
    made = stub(Firmware(rows))
    made.call("efi_stub.leave_boot_services", BOOT, 1, HANDOFF)
    assert made.call("efi_stub.write_rows", HANDOFF) == 600
    assert struct.unpack("<QQI", made.read(ROWS + 24 * 511, 20)) == (0x1000 * 2 * 512, 0x1000, 1)
    assert made.read(CMDLINE, 8) == bytes(8)


@pytest.mark.parametrize(
    ("each", "filled"), [(0, None), (8, None), (39, None), (44, None), (DESCRIPTOR, 0x8000), (DESCRIPTOR, 1 << 63)]
)
def test_a_map_that_cannot_be_is_not_left_with(each: int, filled: int | None) -> None:
    """Boot services are kept, so that the firmware can say something to the user."""
    firmware = Firmware([(CONVENTIONAL, 0x1000, 1)], each=each, filled=filled)
    assert stub(firmware).call("efi_stub.leave_boot_services", BOOT, 1, HANDOFF) == 0
    assert firmware.left == 0


@pytest.mark.parametrize(("stale", "ok"), [(0, 1), (1, 1), (7, 1), (8, 0)])
def test_a_stale_map_key_is_met_with_a_new_map(stale: int, ok: int) -> None:
    firmware = Firmware([(CONVENTIONAL, 0x1000, 1)], stale)
    assert stub(firmware).call("efi_stub.leave_boot_services", BOOT, 1, HANDOFF) == ok
    assert firmware.maps == min(stale + 1, 8)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ("no5lvl kasan\0".encode("utf-16-le"), b"no5lvl kasan"),
        ("no5lvl".encode("utf-16-le"), b"no5lvl"),
        (b"", b""),
        (bytes.fromhex("4eac0881119f594d850ee21a522c59b2"), b""),
        ("x" * 3000, b"x" * 2048),
    ],
    ids=["text", "without its end", "none", "binary", "too long"],
)
def test_load_options(options: bytes | str, text: bytes) -> None:
    data = options.encode("utf-16-le") if isinstance(options, str) else options
    made = stub(Firmware(options=data))
    made.call("efi_stub.take_cmdline", BOOT, 1, HANDOFF)
    assert made.read(CMDLINE, 0x1000).split(b"\0")[0] == text


SYSTEM, TABLES, TABLE = BASE + 0x2_2000, BASE + 0x2_2100, BASE + 0x2_8000
KEPT = HANDOFF + 0xC000
GUID = bytes.fromhex("1d91fadceb269f46a22038b7dc461220")
OTHER = bytes.fromhex("11223344556677888877665544332211")


def kept_table(tables: Sequence[tuple[bytes, int]], data: bytes, count: int | None = None) -> bytes:
    """What is kept of the table of memory attributes *data*, with *tables* as the firmware's list."""
    made = stub(Firmware())
    made.write(SYSTEM, bytes(104) + struct.pack("<QQ", len(tables) if count is None else count, TABLES))
    made.write(TABLES, b"".join(guid + struct.pack("<Q", at) for guid, at in tables))
    made.write(TABLE, data)
    made.call("efi_stub.take_attributes", HANDOFF, SYSTEM)
    (size,) = struct.unpack("<Q", made.read(EFI + 40, 8))
    assert set(made.read(KEPT + size, 0x4000 - size)) <= {0}
    return bytes(made.read(KEPT, size))


def attributes(version: int = 1, each: int = DESCRIPTOR, count: int = 3) -> bytes:
    """A table of three rows, and what it says of itself."""
    rows = b"".join(struct.pack("<IIQQQQ8x", 5, 0, 0x1000 * i, 0, 1, 1 << 17) for i in (1, 2, 3))
    return struct.pack("<IIII", version, count, each, 0) + rows


@pytest.mark.parametrize("version", [1, 2])
def test_the_table_of_attributes_is_kept(version: int) -> None:
    table = attributes(version)
    assert kept_table([(OTHER, 0x1234), (GUID, TABLE)], table) == table
    assert kept_table([(GUID, TABLE)], attributes(version, count=2)) == attributes(version, count=2)[:-DESCRIPTOR]


@pytest.mark.parametrize(
    "table",
    [
        attributes(version=0),
        attributes(version=3),
        attributes(each=0),
        attributes(each=32),
        attributes(each=44),
        attributes(each=0xFFFF_FFF8),
        attributes(count=0xFFFF_FFFF),
        attributes(count=0x4000 // DESCRIPTOR + 1),
    ],
    ids=[
        "version 0",
        "version 3",
        "rows of 0",
        "rows of 32",
        "rows of 44",
        "rows of 4 GiB",
        "4 G rows",
        "one too many",
    ],
)
def test_a_table_of_attributes_that_cannot_be_is_left_out(table: bytes) -> None:
    assert kept_table([(GUID, TABLE)], table) == b""


def test_no_table_of_attributes() -> None:
    assert kept_table([], attributes()) == b""
    assert kept_table([(OTHER, TABLE)], attributes()) == b""
    assert kept_table([(OTHER, TABLE)] * 3 + [(GUID, TABLE)], attributes(), count=3) == b""


def test_a_list_of_tables_without_end_is_not_followed() -> None:
    """Firmware has a dozen; 256 are looked at."""
    assert kept_table([(OTHER, TABLE)] * 255 + [(GUID, TABLE)], attributes(), count=1 << 60) == attributes()
    assert kept_table([(OTHER, TABLE)] * 256 + [(GUID, TABLE)], attributes(), count=1 << 60) == b""

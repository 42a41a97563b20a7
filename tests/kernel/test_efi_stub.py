"""The EFI application's own work, with a firmware in Python: its map, load options, and a map key that is stale."""

from __future__ import annotations

import struct
from typing import Any

import pytest

from fivefold.metal import plain
from fivefold.metal.program import Program

BASE = 0x10_0000
HANDOFF, BOOT, TEXT = BASE, BASE + 0x2_0000, BASE + 0x2_1000
ROWS, MAP, EFI = HANDOFF + 0x100, HANDOFF + 0x4080, HANDOFF + 0x4000
DESCRIPTOR = 48
"""Larger than the structure, as firmware does on purpose."""
ERROR = 1 << 63
GET_MEMORY_MAP, EXIT_BOOT_SERVICES, HANDLE_PROTOCOL = 1, 2, 3
CONVENTIONAL, LOADER, BOOT_CODE, RUNTIME, ACPI, NVS, MMIO = 7, 2, 3, 6, 9, 10, 11


class Firmware:
    """Boot services by number; *stale* is how often the map has changed before it lets go."""

    def __init__(self, rows: list[tuple[int, int, int]] = (), stale: int = 0, options: bytes = b"") -> None:  # type: ignore[assignment]
        self.rows, self.stale, self.options = rows, stale, options
        self.memory: Any = None
        self.maps = 0

    def call(self, service: int, a: int, b: int, c: int, d: int, e: int) -> int:
        if service == GET_MEMORY_MAP:
            self.maps += 1
            data = b"".join(struct.pack("<IIQQQQ8x", kind, 0, at, 0, size, 0) for kind, at, size in self.rows)
            for at, value in ((a, len(data)), (c, self.maps), (d, DESCRIPTOR), (e, 1)):
                self.memory.write(at, value.to_bytes(8, "little"))
            self.memory.write(b, data)
            return 0
        if service == EXIT_BOOT_SERVICES:
            return 0 if self.maps > self.stale and b == self.maps else ERROR | 2
        assert service == HANDLE_PROTOCOL
        self.memory.write(TEXT, struct.pack("<48xI4xQ", len(self.options), TEXT + 0x100))
        self.memory.write(TEXT + 0x100, self.options)
        self.memory.write(c, TEXT.to_bytes(8, "little"))
        return 0


def stub(firmware: Firmware) -> Any:
    """The application's functions over memory with a table of boot services."""
    name = "fivefold.kernel.efi_stub"
    instance = plain.load(
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
    ("nothing", [], []),
]  # fmt: skip


@pytest.mark.parametrize(("rows", "expected"), [row[1:] for row in MAPS], ids=[row[0] for row in MAPS])
def test_memory_map(rows: list[tuple[int, int, int]], expected: list[tuple[int, int, int]]) -> None:
    made = stub(Firmware(rows))
    assert made.call("efi_stub.leave_boot_services", BOOT, 1, HANDOFF)
    count = made.call("efi_stub.write_rows", HANDOFF)
    found = struct.iter_unpack("<QQII", made.read(ROWS, 24 * count))
    assert [row[:3] for row in found] == expected


def test_more_rows_than_there_is_room_for_are_cut() -> None:
    rows = [(CONVENTIONAL, 0x1000 * 2 * i, 1) for i in range(1, 700)]
    made = stub(Firmware(rows))
    made.call("efi_stub.leave_boot_services", BOOT, 1, HANDOFF)
    assert made.call("efi_stub.write_rows", HANDOFF) == (0x3000 - 0x100) // 24


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
    assert made.read(HANDOFF + 0x3000, 0x1000).split(b"\0")[0] == text

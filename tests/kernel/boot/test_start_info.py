"""What the loader hands over, believed no further than it goes."""

from __future__ import annotations

import struct
from typing import Any

import pytest

from fivefold.kernel.boot import start_info as kernel_start_info

INFO = 0x10_0000
ROWS = 0x10_0100
CMDLINE = 0x10_F000
MODULES = 0x11_0000
RAM, RESERVED = 1, 2
TOP = 0xFFFF_FFFF_FFFF_F000


def hand_over(
    code: Any,
    rows: list[tuple[int, int, int]],
    *,
    magic: int = 0x336E_C578,
    version: int = 1,
    count: int | None = None,
    cmdline: bytes | None = b"quiet",
    modules: list[tuple[int, int]] | None = None,
) -> Any:
    """The reader, with a structure in memory."""
    helpers = code(None, "start_info", "memblock", extents=[(0x10_0000, 0x20_0000)])
    modules = modules or []
    head = struct.pack(
        "<IIIIQQQQII",
        magic,
        version,
        0,
        len(modules),
        MODULES if modules else 0,
        CMDLINE if cmdline is not None else 0,
        0,
        ROWS,
        len(rows) if count is None else count,
        0,
    )
    helpers.ram.write(INFO, head)
    helpers.ram.write(ROWS, b"".join(struct.pack("<QQII", *row, 0) for row in rows))
    helpers.ram.write(MODULES, b"".join(struct.pack("<QQQQ", at, size, 0, 0) for at, size in modules))
    if cmdline is not None:
        helpers.ram.write(CMDLINE, cmdline + b"\0")
    return helpers


def listed(helpers: Any, name: str) -> list[tuple[int, int]]:
    count = helpers.get(f"memblock.{name}_count")
    return list(struct.iter_unpack("<2Q", helpers.plain.read(helpers.address(f"memblock.{name}"), 16 * count)))


MAPS = [
    ("plain", [(0x1000, 0x5000, RAM)], [(0x1000, 0x6000)]),
    ("reserved in RAM", [(0x1000, 0x9000, RAM), (0x3000, 0x1000, RESERVED)], [(0x1000, 0x3000), (0x4000, 0xA000)]),
    ("reserved first", [(0x3000, 0x1000, RESERVED), (0x1000, 0x9000, RAM)], [(0x1000, 0x3000), (0x4000, 0xA000)]),
    ("part of a page reserved", [(0x1000, 0x3000, RAM), (0x2FFF, 1, RESERVED)], [(0x1000, 0x2000), (0x3000, 0x4000)]),
    ("descending, overlapping", [(0x5000, 0x3000, RAM), (0x1000, 0x5000, RAM)], [(0x1000, 0x8000)]),
    ("empty", [(0x1000, 0, RAM), (0x2000, 0x1000, RAM)], [(0x2000, 0x3000)]),
    ("wrapping", [(0x1000, 0x1000, RAM), (1 << 63, 1 << 63, RAM)], [(0x1000, 0x2000), (1 << 63, TOP)]),
    ("reserved wrapping", [(0x1000, 0x4000, RAM), (0x3000, (1 << 64) - 1, RESERVED)], [(0x1000, 0x3000)]),
    ("unknown kinds are not RAM", [(0x1000, 0x4000, RAM), (0x2000, 0x1000, 77)], [(0x1000, 0x2000), (0x3000, 0x5000)]),
    ("nothing", [], []),
]  # fmt: skip


@pytest.mark.parametrize(("name", "rows", "want"), MAPS, ids=[row[0] for row in MAPS])
def test_memory_map(code: Any, name: str, rows: list[tuple[int, int, int]], want: list[tuple[int, int]]) -> None:
    helpers = hand_over(code, rows)
    helpers.call("start_info.add_memory", INFO)
    assert listed(helpers, "memory") == want


def test_a_count_that_cannot_be_is_cut(code: Any) -> None:
    helpers = hand_over(code, [(0x1000, 0x1000, RAM)], count=0xFFFF_FFFF)
    assert helpers.call("start_info.map_count", INFO) == kernel_start_info.MAX_MAP_ENTRIES


@pytest.mark.parametrize(
    ("info", "magic", "version", "valid"),
    [(INFO, 0x336E_C578, 1, 1), (INFO, 0x336E_C578, 2, 1), (INFO, 0x336E_C578, 0, 0), (INFO, 0, 1, 0), (0, 0, 1, 0)],
)
def test_valid(code: Any, info: int, magic: int, version: int, valid: int) -> None:
    assert hand_over(code, [], magic=magic, version=version).call("start_info.is_valid", info) == valid


def test_all_that_the_structure_leads_to_is_reserved(code: Any) -> None:
    helpers = hand_over(code, [(0, 1, RAM)] * 3, modules=[(0x50_0800, 0x1000), (0x60_0000, 1)])
    helpers.call("start_info.reserve_memory", INFO)
    kept = listed(helpers, "reserved")
    for start, size in (
        (INFO, 56),
        (ROWS, 3 * 24),
        (CMDLINE, 6),
        (MODULES, 64),
        (0x50_0800, 0x1000),
        (0x60_0000, 1),
    ):
        assert any(low <= start and start + size <= high for low, high in kept), hex(start)


def test_command_line_without_end(code: Any) -> None:
    helpers = hand_over(code, [], cmdline=b"a" * 5000)
    assert helpers.call("start_info.cmdline_size", CMDLINE) == kernel_start_info.MAX_CMDLINE


def test_no_command_line_and_no_modules(code: Any) -> None:
    helpers = hand_over(code, [(0x1000, 0x1000, RAM)], cmdline=None)
    helpers.call("start_info.reserve_memory", INFO)
    assert listed(helpers, "reserved") == [(INFO, INFO + 0x1000)]

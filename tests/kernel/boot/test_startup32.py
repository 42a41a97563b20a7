"""The tables of the 32-bit entry, in memory that was full of ones."""

from __future__ import annotations

from typing import Any

import pytest

from fivefold.arch import LA48, LA57, AddressSpace, Cpu, Mapped, PagingMode, distinct_tables, regions, translate
from fivefold.kernel.boot import detect
from fivefold.kernel.boot.startup32 import BOOT_TABLE_PAGES
from fivefold.units import GIB, VirtAddr

TABLES = 0x20_0000
INFO = 0x30_0000
PAGE = 4096


def built(code: Any, mode: PagingMode) -> tuple[Any, AddressSpace]:
    """Tables for *mode* at `TABLES`, and the address space of their root."""
    helpers = code(None, "startup32", extents=[(0x1F_0000, 0x31_0000)], window=0)
    root = helpers.call("startup32.build_boot_tables", TABLES, int(mode is LA57))
    return helpers, AddressSpace(helpers.ram, root, mode, Cpu())


def test_four_gib_at_themselves(code: Any, mode: PagingMode) -> None:
    _, space = built(code, mode)
    (run,) = regions(space, contiguous=True)
    assert (run.start, run.end, run.phys) == (0, 4 * GIB, 0)
    assert run.rights.write and run.rights.execute
    for va in (0, 0x1F_FFFF, GIB - 1, 3 * GIB, 4 * GIB - 1):
        found = translate(space, VirtAddr(va))
        assert isinstance(found, Mapped)
        assert found.pa == va
        assert found.leaf.raw & 0x1FFF == 0x183
        assert {step.entry.raw & 0xFFF for step in found.steps[:-1]} == {0x7}


def test_nothing_is_written_beside_the_buffer(code: Any, mode: PagingMode) -> None:
    helpers, _ = built(code, mode)
    before = helpers.ram.read(0x1F_0000, TABLES - 0x1F_0000)
    behind = helpers.ram.read(TABLES + PAGE * BOOT_TABLE_PAGES, PAGE)
    assert set(before) == set(behind) == {0xFF}


def test_the_extra_level_takes_a_page_more(code: Any) -> None:
    count = {}
    for mode in (LA48, LA57):
        _, space = built(code, mode)
        tables = {frame for level in distinct_tables(space).values() for frame in level}
        assert tables == {TABLES + PAGE * i for i in range(len(tables))}
        count[mode] = len(tables)
    assert count == {LA48: 6, LA57: 7}


@pytest.mark.parametrize(
    ("ecx", "force", "levels", "reason"),
    [
        (1 << 16, 0, 5, detect.REASON_CPU_HAS_LA57),
        (0, 0, 4, detect.REASON_CPU_LACKS_LA57),
        (1 << 16, 4, 4, detect.REASON_CPU_LACKS_LA57),
        (0, 5, 5, detect.REASON_CPU_HAS_LA57),
    ],
)
def test_root_and_reason(code: Any, processor: Any, ecx: int, force: int, levels: int, reason: int) -> None:
    """The high half is what the assembly compares, the low half what it loads into CR3."""
    cpu = processor({(7, 0): (0, 0, ecx, 0)})
    helpers = code(None, "startup32", extents=[(0x1F_0000, 0x31_0000)], window=0, processor=cpu)
    helpers.ram.write(INFO, bytes(64))
    answer = helpers.call("startup32.startup_32", INFO, TABLES, force)
    assert (answer & 0xFFFF_FFFF, answer >> 32) == (TABLES, reason)
    space = AddressSpace(helpers.ram, TABLES, LA57 if levels == 5 else LA48, Cpu())
    assert isinstance(translate(space, VirtAddr(3 * GIB)), Mapped)


def test_no5lvl_is_read_from_the_command_line(code: Any, processor: Any) -> None:
    cpu = processor({(7, 0): (0, 0, 1 << 16, 0)})
    helpers = code(None, "startup32", extents=[(0x1F_0000, 0x31_0000)], window=0, processor=cpu)
    helpers.ram.write(INFO, bytes(24) + (INFO + 64).to_bytes(8, "little") + bytes(32) + b"quiet no5lvl\0")
    assert helpers.call("startup32.startup_32", INFO, TABLES, 0) >> 32 == detect.REASON_NO5LVL

"""Windows crash dumps, made field by field."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from fivefold.errors import FormatError
from fivefold.memory import open_source
from fivefold.units import PhysAddr

CR3 = 0x1AA000


def header(kind: int, runs: list[tuple[int, int]], machine: int = 0x8664) -> bytearray:
    head = bytearray(b"PAGE" * 0x800)
    head[:8] = b"PAGEDU64"
    struct.pack_into("<Q", head, 0x10, CR3)
    struct.pack_into("<II", head, 0x30, machine, 2)
    struct.pack_into("<IIQ", head, 0x88, len(runs), 0, sum(count for _, count in runs))
    for number, run in enumerate(runs):
        struct.pack_into("<QQ", head, 0x98 + 16 * number, *run)
    head[0x348 : 0x348 + 0x100] = bytes(0x100)
    struct.pack_into("<Q", head, 0x348 + 0xF8, 0xFFFFF80012345678)
    struct.pack_into("<Q", head, 0x348 + 0x98, 0xFFFFF80011111110)
    struct.pack_into("<I", head, 0xF98, kind)
    return head


def page(number: int) -> bytes:
    return struct.pack("<Q", number) * 512


def full() -> bytes:
    runs = [(1, 3), (0x100, 2)]
    return bytes(header(1, runs)) + b"".join(page(at + n) for at, count in runs for n in range(count))


def bitmap(kind: int = 5, mark: bytes = b"FDMP", pages: int = 300) -> bytes:
    present = [1, 2, 3, 0x100, 0x101, 299]
    bits = bytearray(-(-pages // 8))
    for number in present:
        bits[number // 8] |= 1 << number % 8
    summary = struct.pack("<4s4s24xQQQ", mark, b"DUMP", 0x3000, len(present), pages) + bits
    return bytes(header(kind, [])) + summary.ljust(0x1000, b"\0") + b"".join(map(page, present))


@pytest.mark.parametrize(
    ("data", "extents", "what"),
    [
        (full(), [(0x1000, 0x4000), (0x100000, 0x102000)], "full"),
        (bitmap(), [(0x1000, 0x4000), (0x100000, 0x102000), (299 * 4096, 300 * 4096)], "bitmap, full"),
        (bitmap(6, b"SDMP"), [(0x1000, 0x4000), (0x100000, 0x102000), (299 * 4096, 300 * 4096)], "bitmap, kernel"),
    ],
)
def test_memory_and_registers(tmp_path: Path, data: bytes, extents: list[tuple[int, int]], what: str) -> None:
    (tmp_path / "dump").write_bytes(data)
    with open_source(tmp_path / "dump") as source:
        assert source.format == f"Windows crash dump ({what})" and source.extents == extents
        for start, end in extents:
            for at in range(start, end, 4096):
                assert source.memory.read(PhysAddr(at), 4096) == page(at >> 12)
        (cpu,) = source.cpus
        assert (cpu.cr3, cpu.cr4, cpu.rip, cpu.rsp) == (CR3, None, 0xFFFFF80012345678, 0xFFFFF80011111110)


@pytest.mark.parametrize("data", [full(), bitmap()])
def test_cut(tmp_path: Path, data: bytes) -> None:
    for size in [*range(16, len(data), 211), len(data) - 1]:
        (tmp_path / "dump").write_bytes(data[:size])
        with pytest.raises(FormatError):
            open_source(tmp_path / "dump")


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (bytes(header(1, [(1, 1)], machine=0x14C)) + page(1), "machine 0x14c"),
        (bytes(header(4, [])), "kind 4; expected 1"),
        (bytes(header(1, [])), "0 runs"),
        (bytes(header(1, [(1, 2), (2, 1)])) + page(1) * 3, "overlap"),
        (bytes(header(1, [(1, 1 << 50)])) + page(1), "truncated or forged"),
        (bitmap(mark=b"XXXX"), "begins with b'XXXX'"),
        (bitmap()[:0x2030] + struct.pack("<Q", 1 << 60) + bytes(0x2000), "a bitmap of 1152921504606846976 pages"),
    ],
)
def test_forged(tmp_path: Path, data: bytes, says: str) -> None:
    (tmp_path / "dump").write_bytes(data)
    with pytest.raises(FormatError, match=says):
        open_source(tmp_path / "dump")


def test_a_context_that_was_never_written(tmp_path: Path) -> None:
    """The header is full of the word PAGE until the crash writes to it."""
    data = bytearray(full())
    data[0x348:0x34C] = b"PAGE"
    (tmp_path / "dump").write_bytes(data)
    with open_source(tmp_path / "dump") as source:
        assert (source.cpus[0].cr3, source.cpus[0].rip, source.cpus[0].general) == (CR3, None, {})
    data[0x34B] = 0
    (tmp_path / "dump").write_bytes(data)
    with open_source(tmp_path / "dump") as source:
        assert source.cpus[0].rip == 0xFFFFF80012345678


@pytest.mark.parametrize(
    ("runs", "number"), [([(1, 3), (0x100, 3)], 1), ([(1, 6), (0x100, 0)], 0), ([(1 << 40, 1)], 0)]
)
def test_a_run_that_the_file_does_not_hold(tmp_path: Path, runs: list[tuple[int, int]], number: int) -> None:
    """The file has five pages. A page further, or beyond what an address can be, is refused, with the run."""
    (tmp_path / "dump").write_bytes(bytes(header(1, runs)) + bytes(5 * 4096))
    with pytest.raises(
        FormatError, match=rf": run {number} has {runs[number][1]} pages from page {runs[number][0]:#x} on"
    ):
        open_source(tmp_path / "dump")

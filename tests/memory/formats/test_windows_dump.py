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


def test_a_bitmap_that_is_read_in_parts(tmp_path: Path) -> None:
    """More than a mebibyte of bits, which are looked at a mebibyte at a time; one run goes on in the next part."""
    part = 8 << 20
    present = [*range(part - 3, part + 2), part + 9, 2 * part - 1]
    pages = 2 * part - 1 + 1
    bits = bytearray(pages // 8)
    for number in present:
        bits[number // 8] |= 1 << number % 8
    first = 0x2000 + 56 + len(bits) + 8
    summary = struct.pack("<4s4s24xQQQ", b"SDMP", b"DUMP", first, len(present), pages) + bits + bytes(8)
    data = bytes(header(7, [])) + summary + b"".join(map(page, present))
    (tmp_path / "dump").write_bytes(data)
    with open_source(tmp_path / "dump") as source:
        assert source.format == "Windows crash dump (bitmap, automatic)"
        assert source.extents == [
            ((part - 3) << 12, (part + 2) << 12),
            ((part + 9) << 12, (part + 10) << 12),
            ((2 * part - 1) << 12, 2 * part << 12),
        ]
        assert all(source.memory.read(PhysAddr(at << 12), 4096) == page(at) for at in present)
        assert source.notes == (
            "the header has one CPU's registers and no CR4: levels are judged by the tables; pages that the dump left "
            "out are holes",
        )


@pytest.mark.parametrize(("pages", "last"), [(299, False), (300, True), (297, False), (304, True)])
def test_bits_beyond_the_number_of_pages_count_for_nothing(tmp_path: Path, pages: int, last: bool) -> None:
    data = bytearray(bitmap())
    struct.pack_into("<Q", data, 0x2000 + 48, pages)
    (tmp_path / "dump").write_bytes(data)
    with open_source(tmp_path / "dump") as source:
        assert (len(source.extents) == 3) is last


@pytest.mark.parametrize("count", [1, 42, 43])
def test_as_many_runs_as_the_header_has_room_for(tmp_path: Path, count: int) -> None:
    """Up to the CPU's registers: 42 of 16 bytes."""
    head = header(1, [])
    struct.pack_into("<I", head, 0x88, count)
    for number in range(count):
        struct.pack_into("<QQ", head, 0x98 + 16 * number, 2 * number + 1, 1)
    (tmp_path / "dump").write_bytes(bytes(head) + b"".join(page(2 * number + 1) for number in range(count)))
    with open_source(tmp_path / "dump") as source:
        assert len(source.extents) == count
        assert source.memory.read(PhysAddr(0x2000 * count - 0x1000), 4096) == page(2 * count - 1)
        assert source.notes[0].endswith("levels are judged by the tables")
    struct.pack_into("<I", head, 0x88, 44)
    (tmp_path / "dump").write_bytes(bytes(head))
    with pytest.raises(FormatError, match=r": 44 runs of physical memory; expected 1 to 43$"):
        open_source(tmp_path / "dump")


def test_the_last_page_that_there_can_be(tmp_path: Path) -> None:
    (tmp_path / "dump").write_bytes(bytes(header(1, [((1 << 40) - 1, 1)])) + page(7))
    with open_source(tmp_path / "dump") as source:
        assert source.extents == [((1 << 52) - 4096, 1 << 52)]


@pytest.mark.parametrize("kind", [0, 2, 3, 4, 5, 6, 7, 8])
def test_kinds(tmp_path: Path, kind: int) -> None:
    (tmp_path / "dump").write_bytes(bitmap(kind))
    names = {2: "kernel", 5: "full", 6: "kernel", 7: "automatic"}
    if kind in names:
        with open_source(tmp_path / "dump") as source:
            assert source.format == f"Windows crash dump (bitmap, {names[kind]})"
    else:
        with pytest.raises(FormatError, match=rf"is a crash dump of kind {kind}; expected 1 \(full\), 2, 5, 6 or 7"):
            open_source(tmp_path / "dump")
    changed = bitmap(5).replace(b"FDMPDUMP", b"FDMPDUMB")
    (tmp_path / "dump").write_bytes(changed)
    with pytest.raises(FormatError, match=r"begins with b'FDMP', b'DUMB'; expected SDMP or FDMP, DUMP$"):
        open_source(tmp_path / "dump")

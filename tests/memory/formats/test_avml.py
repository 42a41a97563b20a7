"""AVML's compressed dumps, made with the public Snappy package's own framing."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import pytest
import snappy

from fivefold.errors import FormatError
from fivefold.memory import open_source
from fivefold.units import PhysAddr


def avml(ranges: list[tuple[int, bytes]], *, exclusive: bool = False) -> bytes:
    """A range each: header, framed stream, its length."""
    out = b""
    for start, data in ranges:
        packed = snappy.StreamCompressor().add_chunk(data)
        out += struct.pack("<4sIQQ8x", b"AVML", 2, start, start + len(data) - (not exclusive)) + packed
        out += struct.pack("<Q", len(packed))
    return out


DATA = random.Random(4).randbytes(0x3000) + bytes(0x20000) + b"\x77" * 0x1000
RANGES = [(0x100000, DATA), (0x1000, b"\x44" * 0x2000)]


@pytest.mark.parametrize("exclusive", [False, True])
def test_ranges(tmp_path: Path, exclusive: bool) -> None:
    path = tmp_path / "dump"
    path.write_bytes(avml(RANGES, exclusive=exclusive))
    with open_source(path) as source:
        assert source.format == "AVML, compressed"
        assert source.extents == [(0x1000, 0x3000), (0x100000, 0x100000 + len(DATA))]
        assert source.memory.read(PhysAddr(0x100000), len(DATA)) == DATA
        assert source.memory.read(PhysAddr(0x100FFF), 0x1002) == DATA[0xFFF:0x2001]
        assert source.memory.read(PhysAddr(0x2FFF), 1) == b"\x44"


def test_cut(tmp_path: Path) -> None:
    """Wherever the file ends, but behind its last length, it is refused."""
    path, whole = tmp_path / "dump", avml(RANGES)
    for size in [*range(5, 64), *range(64, len(whole) - 8, 97)]:
        path.write_bytes(whole[:size])
        with pytest.raises(FormatError):
            open_source(path).close()


def test_damaged(tmp_path: Path) -> None:
    """A byte of a block that is wrong is an error when it is read, never other bytes of another length."""
    whole = bytearray(avml([(0x1000, bytes(range(256)) * 16)]))
    whole[54:60] = b"\xff" * 6
    (tmp_path / "dump").write_bytes(whole)
    with open_source(tmp_path / "dump") as source, pytest.raises(FormatError, match="broken Snappy data"):
        source.memory.read(PhysAddr(0x1000), 16)


@pytest.mark.parametrize(
    ("ranges", "says"),
    [
        ([(0x1000, bytes(0x1000)), (0x1000, bytes(0x1000))], "ranges overlap at physical 0x1000"),
        ([(0x1001, bytes(0x1000))], "which no memory can be"),
    ],
)
def test_forged(tmp_path: Path, ranges: list[tuple[int, bytes]], says: str) -> None:
    (tmp_path / "dump").write_bytes(avml(ranges))
    with pytest.raises(FormatError, match=says):
        open_source(tmp_path / "dump")

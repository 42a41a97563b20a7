"""AVML's frames, put together chunk by chunk: the kinds of chunk that its writer does not make, and forged ones."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
import snappy

from fivefold.errors import FormatError
from fivefold.memory import open_source
from fivefold.units import PhysAddr

STREAM = b"\xff\x06\0\0sNaPpY"
PACKED, PLAIN, PADDING = 0, 1, 0xFE
PAGE = bytes(range(256)) * 16
MOST = 1 << 16


def chunk(kind: int, data: bytes) -> bytes:
    """Kind, length, four bytes of check sum, data."""
    return bytes([kind]) + (len(data) + 4).to_bytes(3, "little") + b"sum." + data


def header(first: int = 0x1000, last: int = 0x1FFF, magic: bytes = b"AVML", version: int = 2) -> bytes:
    return struct.pack("<4sIQQ8x", magic, version, first, last)


def opened(path: Path, *parts: bytes) -> bytes:
    """All that the file of *parts* holds from 0x1000 on."""
    (path / "dump").write_bytes(b"".join(parts) + bytes(8))
    with open_source(path / "dump") as source:
        (extent,) = source.extents
        assert extent.start == 0x1000
        return source.memory.read(PhysAddr(0x1000), extent.end - 0x1000)


def claiming(size: int) -> bytes:
    """A packed block that says that it unpacks to *size* bytes: 7 bits a byte, the lowest first."""
    out = bytearray()
    while size > 0x7F:
        out.append(size & 0x7F | 0x80)
        size >>= 7
    return bytes([*out, size])


def test_chunks_of_every_kind(tmp_path: Path) -> None:
    """Packed and plain chunks of any length follow each other; padding and a second beginning hold nothing."""
    parts = [chunk(PLAIN, PAGE[:100]), chunk(PADDING, b"nothing"), chunk(PACKED, snappy.compress(PAGE[100:3000]))]
    parts += [STREAM, chunk(0x80, b""), chunk(PLAIN, PAGE[3000:3001]), chunk(PLAIN, PAGE[3001:])]
    assert opened(tmp_path, header(), STREAM, *parts) == PAGE
    (tmp_path / "dump").write_bytes(b"".join([header(), STREAM, *parts]) + bytes(8))
    with open_source(tmp_path / "dump") as source:
        for start, size in ((0, 4096), (99, 2), (100, 2900), (2999, 2), (2999, 3), (3000, 1), (4095, 1), (50, 3500)):
            assert source.memory.read(PhysAddr(0x1000 + start), size) == PAGE[start : start + size], (start, size)


@pytest.mark.parametrize("size", [MOST, MOST - 1])
@pytest.mark.parametrize("kind", [PACKED, PLAIN])
def test_the_longest_chunk(tmp_path: Path, kind: int, size: int) -> None:
    data = bytes(size - 5) + b"ahead"
    told = snappy.compress(data) if kind == PACKED else data
    rest = bytes(MOST - size)
    parts = [chunk(kind, told), *([chunk(PLAIN, rest)] if rest else [])]
    assert opened(tmp_path, header(last=0x1000 + MOST - 1), STREAM, *parts) == data + rest


WHOLE = chunk(PLAIN, PAGE)
FORGED: dict[str, tuple[list[bytes], str]] = {
    "another magic": (
        [header(), WHOLE, bytes(8), header(0x3000, 0x3FFF, magic=b"AVMM"), WHOLE],
        "no AVML header of version 2 at 0x1030",
    ),
    "another version": (
        [header(), WHOLE, bytes(8), header(0x3000, 0x3FFF, version=3), WHOLE],
        "no AVML header of version 2",
    ),
    "ends before it begins": ([header(0x2000, 0x1FFF - 1)], "is 0x2000-0x1ffe, which no memory can be"),
    "beyond 52 bits": ([header(0x1000, (1 << 52) + 1)], "which no memory can be"),
    "begins inside a page": ([header(0x1010, 0x200F)], "which no memory can be"),
    "a byte too many": ([header(), chunk(PLAIN, PAGE + b"x")], "AVML range 0x1000-0x2000 unpacks to more than it has"),
    "a byte too many at last": ([header(), chunk(PLAIN, PAGE[1:]), chunk(PLAIN, b"xx")], "unpacks to more than it has"),
    "a packed byte too many": ([header(), chunk(PACKED, claiming(4097))], "unpacks to more than it has"),
    "no stream": ([header(), b"\xff\x06\0\0sNaPpy", WHOLE], "no Snappy stream at 0x24"),
    "a kind that may not be skipped": (
        [header(), chunk(0x7F, b"what"), WHOLE],
        "chunk of kind 0x7f at 0x20; expected 0, 1",
    ),
    "the first such kind": ([header(), chunk(2, b"what"), WHOLE], "chunk of kind 0x2 at 0x20"),
    "an empty chunk": ([header(), chunk(PLAIN, b""), WHOLE], "an empty chunk at 0x24"),
    "less than a check sum": ([header(), b"\x01\x03\0\0sum", WHOLE], "an empty chunk at 0x24"),
    "unpacks to nothing": ([header(), chunk(PACKED, claiming(0)), WHOLE], "of 0 bytes; expected 1 to 65536"),
    "too long": ([header(last=0x4_0FFF), chunk(PACKED, claiming(MOST + 1))], "of 65537 bytes; expected 1 to 65536"),
    "too long and plain": (
        [header(last=0x4_0FFF), chunk(PLAIN, bytes(MOST + 1))],
        "of 65537 bytes; expected 1 to 65536",
    ),
    "a length without an end": ([header(), chunk(PACKED, b"\x81" * 9)], "of 0 bytes; expected 1 to"),
    "cut": ([header(), b"\x01\x00\x20\0sum"], "a chunk of 8192 bytes at 0x20, the file ends at 0x2f"),
    "cut by a byte": ([header(), b"\x01\x0c\0\0sum"], "a chunk of 12 bytes at 0x20, the file ends at 0x2f"),
}


@pytest.mark.parametrize("name", FORGED)
def test_forged(tmp_path: Path, name: str) -> None:
    parts, says = FORGED[name]
    with pytest.raises(FormatError, match=says):
        opened(tmp_path, *parts)


@pytest.mark.parametrize("size", [4095, 4097, 1])
def test_a_block_of_another_length_than_it_says(tmp_path: Path, size: int) -> None:
    """The length in front is forged, and behind it is a block that holds more or less: never other bytes."""
    block = claiming(4096) + snappy.compress((PAGE + b"x")[:size])[len(claiming(size)) :]
    with pytest.raises(FormatError, match=r"broken Snappy data|unpacks to \d+ bytes, expected 4096"):
        opened(tmp_path, header(), chunk(PACKED, block))

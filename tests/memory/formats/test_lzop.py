"""lzop's files, put together field by field: each checksum, blocks that did not shrink, and what is refused."""

from __future__ import annotations

import io
import random
import struct
import zlib
from typing import Any

import pytest
from lzallright import LZOCompressor

from fivefold.memory.formats.lzop import MAGIC, LzopError, LzopFile
from fivefold.units import MIB

PLAIN = bytes(range(200)) * 50
NOISE = random.Random(6).randbytes(3000)
ADLER_OUT, ADLER_IN, EXTRA, CRC_OUT, CRC_IN, FILTER = 0x1, 0x2, 0x40, 0x100, 0x200, 0x800


def header(
    flags: int = 0, version: int = 0x1040, method: int = 1, name: bytes = b"a name", magic: bytes = MAGIC
) -> bytes:
    parts = struct.pack(">HHHBBIIII", 0x1040, 0x20A0, version, method, 5, flags, 0o644, 1, 0)
    return magic + parts + bytes([len(name)]) + name + b"sum."


def block(data: bytes, flags: int = 0, *, packed: bytes | None = None, **wrong: int) -> bytes:
    """A block of *data*, with the sums that *flags* ask for; those of the packed bytes only where it shrank."""
    packed = bytes(LZOCompressor().compress(data)) if packed is None else packed
    packed = packed if len(packed) < len(data) else data
    out = struct.pack(">II", wrong.get("size", len(data)), wrong.get("length", len(packed)))
    sums = [(ADLER_OUT, zlib.adler32(data)), (CRC_OUT, zlib.crc32(data))]
    if len(packed) < len(data):
        sums += [(ADLER_IN, zlib.adler32(packed)), (CRC_IN, zlib.crc32(packed))]
    return out + b"".join(struct.pack(">I", value) for bit, value in sums if flags & bit) + packed


def unpacked(raw: bytes) -> list[bytes]:
    with LzopFile(io.BufferedReader(io.BytesIO(raw))) as file:  # type: ignore[arg-type]
        return list(iter(lambda: file.read(1), b""))


END = bytes(4)
SUMS = [0, ADLER_OUT, ADLER_IN, CRC_OUT, CRC_IN, ADLER_OUT | ADLER_IN, CRC_OUT | CRC_IN, 0x303, ADLER_OUT | CRC_IN]


@pytest.mark.parametrize("flags", SUMS)
@pytest.mark.parametrize("name", [b"", b"a", b"n" * 255])
def test_blocks(flags: int, name: bytes) -> None:
    """Packed blocks and those that did not shrink follow each other; behind the end nothing is looked at."""
    blocks = [PLAIN, NOISE, PLAIN[:9], b"x", PLAIN]
    raw = header(flags, name=name) + b"".join(block(data, flags) for data in blocks) + END + b"more"
    assert unpacked(raw) == blocks


@pytest.mark.parametrize("method", [1, 2, 3])
def test_methods(method: int) -> None:
    assert unpacked(header(method=method) + block(PLAIN) + END) == [PLAIN]


def test_nothing() -> None:
    assert unpacked(header() + END) == []


PACKED = bytes(LZOCompressor().compress(PLAIN))
REFUSED: dict[str, tuple[bytes, str]] = {
    "another magic": (header(magic=MAGIC[:-1] + b"\r"), "no header of lzop"),
    "a later lzop": (header(version=0x1041) + END, "written for a later lzop than 1.04"),
    "no method": (header(method=0) + END, "method 0 with flags 0x0"),
    "another method": (header(method=4) + END, "method 4 with flags 0x0"),
    "an extra field": (header(EXTRA) + END, "method 1 with flags 0x40"),
    "a filter": (header(FILTER | 1) + END, "method 1 with flags 0x801"),
    "a block of nothing": (header() + block(PLAIN, length=0), "a block of 0 bytes for 10000"),
    "a block that grew": (header() + block(NOISE, length=3001), "a block of 3001 bytes for 3000"),
    "too large a block": (header() + block(NOISE, size=64 * MIB + 1), "a block of 3000 bytes for 67108865"),
    "as large as it may be": (
        header() + block(b"\x00" * 3000, packed=b"\xff" * 2000, size=64 * MIB) + END,
        "broken LZO data",
    ),
    "a longer block": (
        header() + block(PLAIN, packed=PACKED, size=10_001) + END,
        "a block unpacks to 10000 bytes, expected 10001",
    ),
    "a shorter block": (
        header() + block(PLAIN, packed=PACKED, size=9_999) + END,
        r"broken LZO data|a block unpacks to 10000 bytes, expected 9999",
    ),
    "broken data": (header() + block(PLAIN, packed=b"\xff" * 30) + END, "broken LZO data"),
    "another sum": (header(ADLER_OUT) + block(PLAIN, CRC_OUT, packed=PACKED) + END, "a block's checksum does not fit"),
    "another sum of plain bytes": (header(ADLER_OUT) + block(NOISE, CRC_OUT) + END, "a block's checksum does not fit"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    raw, says = REFUSED[name]
    with pytest.raises(LzopError, match=says):
        unpacked(raw)


@pytest.mark.parametrize("flags", [0, 0x303])
def test_cut(flags: int) -> None:
    whole: Any = header(flags) + block(NOISE[:40], flags) + block(PLAIN, flags) + END
    for size in range(len(whole)):
        with pytest.raises(EOFError):
            unpacked(whole[:size])


def test_a_block_that_does_not_end_where_it_should() -> None:
    """The package attaches all that it unpacked to its error; the message has none of it."""
    packed = bytes(LZOCompressor().compress(PLAIN)) + b"more"
    with pytest.raises(LzopError, match=r"^broken LZO data: [\w.]{1,60}$"):
        unpacked(header() + struct.pack(">II", len(PLAIN), len(packed)) + packed + END)

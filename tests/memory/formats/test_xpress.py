"""Hyper-V's packed blocks: each tag, and plain LZ77 against a packer that spells every kind of length."""

from __future__ import annotations

import random
import struct
from itertools import groupby

import pytest

from fivefold.errors import FormatError
from fivefold.memory.formats.snapshots.xpress import BLOCK, unpack, unpack_block
from fivefold.units import PAGE

END, FILL, FILL_MANY, PART = 0xFFFF_FFFF, 0xFFFF_FFFE, 0xFFFF_FFFD, 0xFFFF_FFFC
NOISE = random.Random(1).randbytes(PAGE)
EIGHT = b"eightish"


def packed(pieces: list[bytes | tuple[int, int]]) -> bytes:
    """Plain LZ77 of literal bytes and of matches, each as distance and length, by [MS-XCA] 2.4."""
    units = [unit for piece in pieces for unit in ([piece] if isinstance(piece, tuple) else list(piece))]
    out, half = bytearray(), 0
    for at in range(0, len(units) + 1, 32):
        group = units[at : at + 32]
        bits = "".join("01"[isinstance(unit, tuple)] for unit in group)
        out += struct.pack("<I", int(bits.ljust(32, "1"), 2))
        for unit in group:
            if not isinstance(unit, tuple):
                out.append(unit)
                continue
            distance, length = unit[0] - 1, unit[1] - 3
            out += struct.pack("<H", distance << 3 | min(length, 7))
            if length < 7:
                continue
            low = min(length - 7, 15)
            if half:
                out[half] |= low << 4
                half = 0
            else:
                half = len(out)
                out.append(low)
            if low < 15:
                continue
            if length < 22 + 255:
                out.append(length - 22)
            elif length < 1 << 16:
                out += b"\xff" + struct.pack("<H", length)
            else:
                out += b"\xff\0\0" + struct.pack("<I", length)
    return bytes(out)


def plain(pieces: list[bytes | tuple[int, int]]) -> bytes:
    """What the pieces stand for, byte by byte."""
    out = bytearray()
    for piece in pieces:
        if isinstance(piece, bytes):
            out += piece
        else:
            for _ in range(piece[1]):
                out.append(out[-piece[0]])
    return bytes(out)


LENGTHS = [3, 4, 9, 10, 11, 12, 24, 25, 26, 30, 200, 279, 280, 281, 282, 1000, 4000]


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("distance", [1, 2, 3, 7])
def test_matches_of_every_length(distance: int, length: int) -> None:
    """Also twice: of two lengths of 10 or more the second shares a byte with the first."""
    pieces: list[bytes | tuple[int, int]] = [
        b"abcdefg",
        (distance, length),
        b"x",
        (distance, length),
        b"yz",
        (3, 11),
        b"!",
    ]
    assert unpack(packed(pieces), len(plain(pieces))) == plain(pieces)


def test_many_flags_and_the_farthest_match() -> None:
    pieces: list[bytes | tuple[int, int]] = [
        random.Random(2).randbytes(1 << 13),
        (1 << 13, 3),
        b"a" * 70,
        (1, 70_000),
        b"b",
    ]
    assert unpack(packed(pieces), len(plain(pieces))) == plain(pieces)


def test_a_match_ends_with_the_page() -> None:
    assert unpack(packed([b"abc", (3, 100)]), 10) == b"abcabcabca"
    assert unpack(packed([b"abcd"]), 4) == b"abcd"


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (packed([b"ab", (3, 4)]), "a match 3 bytes back, of 2"),
        (struct.pack("<IH", 0xFFFF_FFFF, 0), "a match 1 bytes back, of 0"),
        (packed([b"abc", (3, 5000)])[:-2] + struct.pack("<H", 21), "a long match of 21"),
        (packed([b"abc", (3, 5000)])[:-2] + struct.pack("<HI", 0, 21), "a long match of 21"),
    ],
)
def test_broken_matches(raw: bytes, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        unpack(raw, 200)


@pytest.mark.parametrize("cut", range(1, 12))
def test_cut_data(cut: int) -> None:
    raw = packed([b"abc", (3, 5000)])
    with pytest.raises((IndexError, struct.error)):
        unpack(raw[:-cut], PAGE)


def test_the_shortest_long_match() -> None:
    raw = packed([b"abc", (3, 5000)])[:-2] + struct.pack("<H", 22)
    assert unpack(raw, 28) == (b"abc" * 10)[:28]


def filled(count: int, pattern: bytes = EIGHT) -> bytes:
    return struct.pack("<I8sI", FILL_MANY, pattern, count)


BLOCKS = {
    "nothing": (b"", []),
    "a page as it is": (struct.pack("<I", PAGE) + NOISE, [NOISE]),
    "a packed page": (
        struct.pack("<I", len(packed([b"abc", (3, 4093)]))) + packed([b"abc", (3, 4093)]),
        [(b"abc" * PAGE)[:PAGE]],
    ),
    "a filled page": (struct.pack("<I8s", FILL, EIGHT), [EIGHT * 512]),
    "filled pages": (filled(3), [EIGHT * 512] * 3),
    "no filled page": (filled(0) + filled(1, b"another "), [b"another " * 512]),
    "all are filled": (filled(256), [EIGHT * 512] * 256),
    "a part": (struct.pack("<III", PART, 100, 100) + NOISE[:100], [NOISE[:100]]),
    "a byte": (struct.pack("<III", PART, 1, 1) + b"x", [b"x"]),
    "a packed part": (
        struct.pack("<III", PART, 90, len(packed([b"abc", (3, 87)]))) + packed([b"abc", (3, 87)]),
        [b"abc" * 30],
    ),
    "an end": (struct.pack("<I8sI", FILL, EIGHT, END) + struct.pack("<I8s", FILL, NOISE), [EIGHT * 512]),
    "several": (
        struct.pack("<I", PAGE)
        + NOISE
        + filled(2)
        + struct.pack("<I8s", FILL, bytes(8))
        + struct.pack("<I", PAGE)
        + NOISE,
        [NOISE, EIGHT * 1024, bytes(PAGE), NOISE],
    ),
    "less than a tag behind": (filled(1) + b"\1\2\3", [EIGHT * 512]),
    "behind a whole block nothing is read": (filled(256) + b"\0" * 9, [EIGHT * 512] * 256),
}


@pytest.mark.parametrize("name", BLOCKS)
def test_blocks(name: str) -> None:
    raw, parts = BLOCKS[name]
    assert unpack_block(raw, "here") == b"".join(parts).ljust(BLOCK, b"\0")


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (filled(257), "here is broken at 0x4: 257 pages filled, expected at most 256"),
        (filled(256)[:-4] + struct.pack("<I", 255) + filled(2), "here unpacks to more than 1048576 bytes"),
        (struct.pack("<I", FILL) + EIGHT[:7], "here is broken at 0x4: a pattern is cut"),
        (filled(1)[:-1], "here is broken at 0x4: "),
        (struct.pack("<I", 0), "here is broken at 0x4: 0 bytes for 4096"),
        (struct.pack("<I", PAGE + 1) + bytes(PAGE + 1), "here is broken at 0x4: 4097 bytes for 4096"),
        (struct.pack("<I", PAGE) + bytes(PAGE - 1), "here is broken at 0x4: 4096 bytes for 4096"),
        (struct.pack("<III", PART, PAGE + 1, 9) + bytes(9), "here is broken at 0x4: 9 bytes for 4097"),
        (struct.pack("<III", PART, 8, 9) + bytes(9), "here is broken at 0x4: 9 bytes for 8"),
        (struct.pack("<III", PART, 0, 0), "here is broken at 0x4: 0 bytes for 0"),
        (struct.pack("<II", PART, 8), "here is broken at 0x4: "),
        (struct.pack("<I", 3) + b"abc", "here is broken at 0x4: "),
    ],
)
def test_broken_blocks(raw: bytes, says: str) -> None:
    with pytest.raises(FormatError) as caught:
        unpack_block(raw, "here")
    assert str(caught.value).startswith(says)


def test_pages_as_they_come() -> None:
    """Runs of equal bytes, packed as a packer would: what comes out is the page."""
    draw = random.Random(8)
    for _ in range(20):
        page = b"".join(bytes([draw.randrange(4)]) * draw.choice([1, 2, 3, 9, 10, 11, 30, 300]) for _ in range(400))[
            :PAGE
        ]
        pieces: list[bytes | tuple[int, int]] = []
        for value, run in groupby(page):
            length = len(list(run))
            pieces.append(bytes([value]) * (length if length < 4 else 1))
            if length >= 4:
                pieces.append((1, length - 1))
        assert unpack(packed(pieces), PAGE) == page

"""A packed block of Hyper-V's memory: pages that are filled, as they are, or packed with plain LZ77.

Source: Microsoft, "[MS-XCA] Xpress Compression Algorithm", section "Plain LZ77 Decompression Algorithm Details".
"""

from __future__ import annotations

import struct
from typing import Final

from fivefold.errors import FormatError
from fivefold.units import MIB, PAGE

BLOCK: Final = MIB
_END, _FILL, _FILL_MANY, _PART = 0xFFFF_FFFF, 0xFFFF_FFFE, 0xFFFF_FFFD, 0xFFFF_FFFC


def unpack_block(raw: bytes, where: str) -> bytes:
    """The mebibyte that *raw* packs, zeros behind its end; `FormatError` that begins with *where* if it is broken."""
    out, at = bytearray(), 0
    try:
        while len(out) < BLOCK and at + 4 <= len(raw):
            (tag,) = struct.unpack_from("<I", raw, at)
            at += 4
            if tag == _END:
                break
            at = _page(raw, at, tag, out)
    except (struct.error, ValueError, IndexError) as error:
        raise FormatError(f"{where} is broken at {at:#x}: {error}") from error
    if len(out) > BLOCK:
        raise FormatError(f"{where} unpacks to more than {BLOCK} bytes")
    return bytes(out.ljust(BLOCK, b"\0"))


def _page(raw: bytes, at: int, tag: int, out: bytearray) -> int:
    """Unpack what *tag* says to *out*; where the next tag lies."""
    if tag == _FILL:
        out += _pattern(raw, at) * (PAGE // 8)
        return at + 8
    if tag == _FILL_MANY:
        (count,) = struct.unpack_from("<I", raw, at + 8)
        if count > BLOCK // PAGE:
            raise ValueError(f"{count} pages filled, expected at most {BLOCK // PAGE}")
        out += _pattern(raw, at) * (PAGE // 8 * count)
        return at + 12
    size, length = PAGE, tag
    if tag == _PART:
        size, length = struct.unpack_from("<II", raw, at)
        at += 8
    if not 0 < length <= size <= PAGE or at + length > len(raw):
        raise ValueError(f"{length} bytes for {size}")
    piece = raw[at : at + length]
    out += piece if length == size else unpack(piece, size)
    return at + length


def _pattern(raw: bytes, at: int) -> bytes:
    if at + 8 > len(raw):
        raise ValueError("a pattern is cut")
    return raw[at : at + 8]


def unpack(raw: bytes, size: int) -> bytes:
    """Exactly *size* bytes of plain LZ77 data; `ValueError`, `IndexError` or `struct.error` where it is broken."""
    out = bytearray()
    at = half = flags = left = 0
    while len(out) < size:
        if not left:
            (flags,), at, left = struct.unpack_from("<I", raw, at), at + 4, 32
        left -= 1
        if not flags >> left & 1:
            out.append(raw[at])
            at += 1
            continue
        (word,) = struct.unpack_from("<H", raw, at)
        length, at, half = _length(raw, at + 2, word & 7, half)
        _repeat(out, (word >> 3) + 1, length, size)
    return bytes(out)


def _length(raw: bytes, at: int, length: int, half: int) -> tuple[int, int, int]:
    """A match's length, where the data goes on, and the byte whose upper half the next long length takes."""
    if length == 7:
        if half:
            length, half = raw[half] >> 4, 0
        else:
            length, half, at = raw[at] & 15, at, at + 1
        if length == 15:
            length, at = raw[at], at + 1
            if length == 255:
                (length,) = struct.unpack_from("<H", raw, at)
                at += 2
                if not length:
                    (length,) = struct.unpack_from("<I", raw, at)
                    at += 4
                if length < 22:
                    raise ValueError(f"a long match of {length}")
                length -= 22
            length += 15
        length += 7
    return length + 3, at, half


def _repeat(out: bytearray, distance: int, length: int, size: int) -> None:
    if distance > len(out):
        raise ValueError(f"a match {distance} bytes back, of {len(out)}")
    length = min(length, size - len(out))
    piece = bytes(out[len(out) - distance :][:length])
    out += (piece * (length // len(piece) + 1))[:length]

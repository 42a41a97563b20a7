"""One block of LZ4, unpacked natively by a loop of the subset; a kernel in plain Python would take a minute.

Source: *LZ4 Block Format Description*.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from fivefold.metal.lang import export, load8, load16, load64, store8, store64, u64
from fivefold.metal.program import Program

if TYPE_CHECKING:
    from fivefold.metal.run.instance import Instance

BROKEN: Final = (1 << 64) - 1
PROGRAM: Final = Program((__name__,))
"""The build of this file, which a wheel has as prebuilt code."""

_known: list[Instance] = []


def unpack_block(packed: bytes, room: int) -> bytes:
    """What the block *packed* unpacks to, at most *room* bytes; `ValueError` where it is broken."""
    if not _known:
        from fivefold.metal.run import host

        _known.append(host.load(PROGRAM))
    native = _known[0]
    source, target = bytearray(packed) + bytes(8), bytearray(room + 8)
    at, to = native.map(source), native.map(target)
    try:
        size = native.call("lz4_blocks.unpack", at, len(packed), to, room)
    finally:
        native.unmap(at)
        native.unmap(to)
    if size == BROKEN:
        raise ValueError("an LZ4 block points outside itself")
    return bytes(target[:size])


@export
def unpack(at: u64, size: u64, to: u64, room: u64) -> u64:
    """Unpack *size* bytes at *at* to *to*; the number of bytes that came of it, or `BROKEN`.

    Both buffers have eight bytes more than their sizes, so that words can be copied.
    """
    end = at + size
    out = to
    stop = to + room
    while at < end:
        token = load8(at)
        at += 1
        length = token >> 4
        if length == 15:
            more = 255
            while more == 255:
                if at >= end:
                    return BROKEN
                more = load8(at)
                at += 1
                length += more
        if length > end - at or length > stop - out:
            return BROKEN
        copy(out, at, length)
        at += length
        out += length
        if at == end:
            return out - to
        if end - at < 2:
            return BROKEN
        distance = load16(at)
        at += 2
        length = (token & 15) + 4
        if token & 15 == 15:
            more = 255
            while more == 255:
                if at >= end:
                    return BROKEN
                more = load8(at)
                at += 1
                length += more
        if distance == 0 or distance > out - to or length > stop - out:
            return BROKEN
        repeat(out, distance, length)
        out += length
    return BROKEN


def copy(to: u64, source: u64, size: u64) -> None:
    """Copy bytes that do not overlap; up to seven more may be written."""
    done = 0
    while done < size:
        store64(to + done, load64(source + done))
        done += 8


def repeat(to: u64, distance: u64, size: u64) -> None:
    """Copy from *distance* bytes before, which may overlap what is written."""
    if distance >= 8:
        copy(to, to - distance, size)
    else:
        for i in range(size):
            store8(to + i, load8(to + i - distance))

"""The kernel's log as it lies in memory: what it said before it had a console, or could not say any more."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final

from fivefold.errors import MemoryReadError
from fivefold.matrix.run.places import MachinePlaces
from fivefold.survey.names.kernel_memory import KernelMemory

MOST_BYTES: Final = 1 << 24
_HEAD: Final = struct.Struct("<I4xQQ")
"""Of the ring of descriptors: the binary logarithm of their number, the descriptors, what is known of each."""
_DATA_AT: Final = (48, 40)
"""Where the ring of texts begins: since 5.12; before that it had one number less in front of it."""
_TEXTS: Final = struct.Struct("<I4xQ")
_DESCRIPTOR: Final = struct.Struct("<QQQ")
_KNOWN: Final = struct.Struct("<QQH")
_KNOWN_SIZE: Final = 88
_NUMBER: Final = 8
"""A text has the number of its descriptor before it."""


def log_in_memory(places: MachinePlaces) -> bytes:
    """The lines of the log, oldest first, as `dmesg` shows them; empty where it is not found or not whole.

    Source: Linux since 5.10, *kernel/printk/printk_ringbuffer.h*: ``printk_ringbuffer``, ``prb_desc``, ``printk_info``.
    """
    memory, at = places.memory, places.symbols.only_address("prb")
    if memory is None or at is None:
        return b""
    try:
        return b"".join(_lines(memory, memory.word(at)))
    except (MemoryReadError, struct.error):
        return b""


def _lines(memory: KernelMemory, ring: int) -> Iterator[bytes]:
    count_bits, descriptors, known = _HEAD.unpack(memory.read(ring, _HEAD.size))
    rings = [_TEXTS.unpack(memory.read(ring + at, _TEXTS.size)) for at in _DATA_AT]
    bits, texts = next((one for one in rings if one[1] >> 63), (0, 0))
    size = 1 << min(bits, 64)
    if not texts or size > MOST_BYTES or not 0 < count_bits < 20:
        return
    data = memory.read(texts, size)
    found = []
    for number in range(1 << count_bits):
        place = memory.read(descriptors + number * _DESCRIPTOR.size, _DESCRIPTOR.size)
        sequence, when, length = _KNOWN.unpack(memory.read(known + number * _KNOWN_SIZE, _KNOWN.size))
        if length:
            found.append((sequence, when, _text(data, place, length)))
    for _, when, text in sorted(found):
        yield b"[%5d.%06d] %s\n" % (when // 10**9, when // 1000 % 10**6, text.rstrip(b"\n"))


def _text(data: bytes, place: bytes, length: int) -> bytes:
    """A text in the ring; one that would reach over its end lies at its beginning."""
    _, begin, end = _DESCRIPTOR.unpack(place)
    at = begin % len(data) if begin // len(data) == (end - 1) // len(data) else 0
    return data[at + _NUMBER : at + _NUMBER + length]

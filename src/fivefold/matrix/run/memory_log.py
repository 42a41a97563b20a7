"""The kernel's log as it lies in memory: what it said before it had a console, or could not say any more."""

from __future__ import annotations

import re
from typing import Final

from fivefold.errors import MemoryReadError
from fivefold.matrix.run.places import MachinePlaces

MOST_BYTES: Final = 1 << 22
_SIZES: Final = (1 << 17, 1 << 12)
_TEXT: Final = re.compile(rb"[\t\n\x20-\x7e]{4,}")


def log_in_memory(places: MachinePlaces) -> bytes:
    """The lines of the log's buffer in the order in which they lie there; empty where it is not found.

    Each text has a number of 8 bytes before it whose last ones cannot be printed. Source: Linux,
    *kernel/printk/printk_ringbuffer.c*: ``prb_data_block``; names of variables since 2.6.12.
    """
    at, size = places.symbols.only_address("log_buf"), places.symbols.only_address("log_buf_len")
    memory = places.memory
    if memory is None or at is None:
        return b""
    try:
        start = memory.word(at)
        length = memory.half(size) if size is not None else _SIZES[0]
    except MemoryReadError:
        return b""
    if not start >> 63 or not 0 < length <= MOST_BYTES:
        return b""
    for part in (length, *_SIZES):
        try:
            found = memory.read(start, min(part, length))
        except MemoryReadError:
            continue
        return b"".join(line.strip(b"\n") + b"\n" for line in _TEXT.findall(found))
    return b""

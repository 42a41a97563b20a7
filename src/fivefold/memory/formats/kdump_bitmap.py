"""The bitmap of a kdump file: a bit for each page, the least significant first."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

import numpy as np

_TOGETHER: Final = 1 << 13
"""Steps of a bitmap that are counted together."""

_BITS: Final = np.array([number.bit_count() for number in range(256)], np.uint8)

_RUNS_OF_BYTES: Final = re.compile(rb"\xff+|[^\x00\xff]", re.DOTALL)


def ranks(bitmap: bytes, step: int) -> list[int]:
    """How many bits are set before each *step* bytes of *bitmap*, and at last how many in all.

    >>> ranks(bytes([7, 0, 0, 1, 255]), 2)
    [0, 3, 4, 12]
    """
    counts = [np.zeros(1, np.int64)]
    for at in range(0, len(bitmap), _TOGETHER * step):
        part = np.frombuffer(bitmap, np.uint8, min(_TOGETHER * step, len(bitmap) - at), at)
        starts = np.arange(0, len(part), step)
        counts.append(np.add.reduceat(_BITS[part], starts, dtype=np.int64) if part.any() else np.zeros_like(starts))
    total: list[int] = np.cumsum(np.concatenate(counts)).tolist()
    return total


def runs_of_bits(bitmap: bytes) -> Iterator[tuple[int, int]]:
    """Set bits as (first, end) pairs, ascending; neighbours are not always joined."""
    for match in _RUNS_OF_BYTES.finditer(bitmap):
        byte = bitmap[match.start()]
        if byte == 0xFF:
            yield match.start() * 8, match.end() * 8
            continue
        for bit in range(8):
            if byte >> bit & 1:
                yield match.start() * 8 + bit, match.start() * 8 + bit + 1

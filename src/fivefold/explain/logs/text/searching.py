"""Where bytes lie in a file, by libc's ``memmem`` where there is one: it is some times faster than `bytes.find`."""

from __future__ import annotations

import functools
import mmap
import os
from collections.abc import Callable, Iterator
from typing import Any, Final

SEGMENT: Final = 64 << 20
"""No more of a file is mapped at a time."""

_Search = Callable[[int, int, bytes, int], int | None]
"""``memmem``: address and size of what is searched, then of what is looked for; None if it is not there."""


def places(file: int, size: int, mark: bytes, overlap: int) -> Iterator[tuple[int, bytes]]:
    """Where *mark* is in the first *size* bytes of *file*, each with up to *overlap* bytes before and after it.

    *mark* is no longer than *overlap*. What cannot be mapped raises `OSError` or `ValueError`.
    """
    for start in range(0, size, SEGMENT):
        length = min(SEGMENT + overlap, size - start)
        with mmap.mmap(file, length, access=mmap.ACCESS_COPY, offset=start) as data:
            for at in _all(data, mark):
                if at < SEGMENT:  # else it is the next one's, too
                    before = min(start + at, overlap)
                    yield start + at, os.pread(file, before + overlap, start + at - before)


def _all(data: mmap.mmap, mark: bytes) -> Iterator[int]:
    at = _find(data, mark, 0)
    while at >= 0:
        yield at
        at = _find(data, mark, at + 1)


def _find(data: mmap.mmap, mark: bytes, start: int) -> int:
    search = _memmem()
    if search is None or start >= len(data):
        return data.find(mark, start)
    import ctypes

    first = ctypes.c_char.from_buffer(data)
    try:
        base = ctypes.addressof(first)
        found = search(base + start, len(data) - start, mark, len(mark))
    finally:
        del first  # or the mapping cannot be closed
    return -1 if found is None else found - base


@functools.cache
def _memmem() -> _Search | None:
    """libc's function, None where there is none, as in a browser."""
    try:
        import ctypes

        function: Any = ctypes.CDLL(None).memmem
        function.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p, ctypes.c_size_t)
        function.restype = ctypes.c_void_p
    except (ImportError, OSError, AttributeError, TypeError):
        return None
    found: _Search = function
    return found

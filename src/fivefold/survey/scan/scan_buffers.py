"""Memory for the scan to work in: for ranges, and for the walks that it remembers."""

from __future__ import annotations

import mmap
import resource
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

import numpy as np

from fivefold.metal.run.instance import Instance
from fivefold.survey.scan.scan_result import RANGE, Rows, Words

MAX_REMEMBERED: Final = 1 << 23
RIGHTS: Final = 8
"""Sets of rights that a table can be met with."""

_RANGE_BYTES: Final = 48
_WALK_BYTES: Final = 64
_INDEX_BYTES: Final = 4
_MAP_FLAGS: Final = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000
"""The last is MAP_NORESERVE: pages exist once they are written."""

_RESTING_INDEX: Final = 1 << 18
"""An index larger than this is given back to the system to be cleared; a smaller one is faster to overwrite."""

_COUNTED: Final = 1 << 24
"""A reservation smaller than this is counted like what is written."""

_SMALL: Final = 1 << 18
"""So much of a buffer comes in small pages, for the many scans that need no more; the rest in large ones."""


def memory(size: int) -> mmap.mmap:
    """Zeroed memory that exists once it is written: in small pages alone, their faults cost a third of a large scan."""
    memory = mmap.mmap(-1, size, _MAP_FLAGS)
    if size > _SMALL:
        with suppress(OSError):  # a kernel without transparent large pages
            memory.madvise(mmap.MADV_HUGEPAGE, _SMALL, size - _SMALL)
    return memory


def reserved(size: int) -> mmap.mmap:
    """Like `memory`, for what is hardly ever written: a limit on memory that may be written moves by its size."""
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    if soft != resource.RLIM_INFINITY and size >= _COUNTED:
        allowed = soft + size if hard == resource.RLIM_INFINITY else min(soft + size, hard)
        resource.setrlimit(resource.RLIMIT_DATA, (allowed, hard))
    return memory(size)


class Records:
    """A buffer of ranges that native code writes to, and that the result keeps."""

    def __init__(self, code: Instance, room: int) -> None:
        self._mapped = False
        self.room = room
        self._code = code
        self._memory = memory(room * _RANGE_BYTES)
        self.address = code.map(self._memory)
        self._mapped = True

    def rows(self, count: int) -> Rows:
        """The first *count* ranges, without a copy."""
        rows: Rows = np.frombuffer(self._memory, RANGE, count)
        return rows

    def grown(self, room: int) -> Records:
        """A larger buffer with the same ranges."""
        larger = Records(self._code, room)
        larger.rows(self.room)[:] = self.rows(self.room)
        self.close()
        return larger

    def close(self) -> None:
        """Tell native code to forget it; rows that were handed out stay."""
        if self._mapped:
            self._code.unmap(self.address)
            self._mapped = False

    def __del__(self, _is_ending: Callable[[], bool] = sys.is_finalizing) -> None:
        # When Python ends, what would release the buffer may be gone, as may this module's names.
        if not _is_ending():
            self.close()


@dataclass(frozen=True)
class Memo:
    """Memory for what was met before: an index word for each frame, and walks."""

    index: mmap.mmap
    index_address: int
    frames: int
    walks_address: int
    walks: int

    @classmethod
    def of(cls, code: Instance, frames: int, levels: int) -> Memo:
        """Room for every walk there can be, up to a limit; unused memory costs nothing."""
        walks = min(frames * levels * RIGHTS + 2 * levels, MAX_REMEMBERED)
        index = reserved(max(frames, 1) * _INDEX_BYTES)
        return cls(index, code.map(index), frames, code.map(reserved(walks * _WALK_BYTES)), walks)

    @property
    def words(self) -> Words:
        """The index word of each frame: not 0 for a table that was walked."""
        words: Words = np.frombuffer(self.index, "<u4", self.frames)
        return words

    def release(self, code: Instance) -> None:
        """Tell native code to forget both."""
        code.unmap(self.index_address)
        code.unmap(self.walks_address)

    def clear(self) -> None:
        """Forget all frames."""
        if len(self.index) > _RESTING_INDEX:
            self.index.madvise(mmap.MADV_DONTNEED)
        else:
            np.frombuffer(self.index, np.uint8)[:] = 0

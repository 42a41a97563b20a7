"""The flattened form of kdump files: records of (where, how much, bytes) that can go through a pipe.

Layout: makedumpfile's ``struct makedumpfile_header`` and ``makedumpfile_data_header``, big-endian.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from itertools import pairwise
from typing import TYPE_CHECKING, Final

from fivefold.errors import FormatError
from fivefold.memory.files import FileBytes
from fivefold.memory.spans import Span, without_overlap

if TYPE_CHECKING:
    from fivefold.memory.files import Numbers

SIGNATURE: Final = b"makedumpfile"

_HEADER: Final = struct.Struct(">16sqq")
_HEADER_SIZE: Final = 4096
_RECORD: Final = struct.Struct(">qq")
_END: Final = (-1, -1)
MAX_RECORDS: Final = 1 << 22


class FlatBytes:
    """The file that the records of a flattened one rebuild, by offset, without copying it."""

    def __init__(self, file: FileBytes) -> None:
        """Index the records of *file*, which stays open; later ones win where they overlap."""
        self.name = file.name
        self._file = file
        self._columns: Numbers | None = None
        signature, kind, version = _HEADER.unpack(file.read_at(0, _HEADER.size))
        if signature.rstrip(b"\0") != SIGNATURE or (kind, version) != (1, 1):
            raise FormatError(f"{file.name}: flattened kdump of type {kind}, version {version}; expected 1, 1")
        # Writers go back and write the header again when they know the counts.
        records = self._records()
        ordered = sorted(records)
        apart = all(low.end <= high.start for low, high in pairwise(ordered))
        self._pieces = ordered if apart else without_overlap(records[::-1])
        self._starts = [piece.start for piece in self._pieces]
        self.size = self._pieces[-1].end if self._pieces else 0

    def _records(self) -> list[Span]:
        records: list[Span] = []
        at, view, size_of_file = _HEADER_SIZE, self._file.view(0, self._file.size), self._file.size
        while at + _RECORD.size <= size_of_file:
            offset, size = _RECORD.unpack_from(view, at)
            if (offset, size) == _END:
                self._file.check_alive()
                return records
            at += _RECORD.size
            if offset < 0 or size <= 0 or at + size > size_of_file:
                raise FormatError(
                    f"{self.name}: flattened record before {at:#x} claims {size} bytes at {offset}, "
                    f"{size_of_file - at} are left: truncated or forged; copy or take it again"
                )
            if len(records) == MAX_RECORDS:
                raise FormatError(f"{self.name}: more than {MAX_RECORDS} flattened records")
            records.append(Span(offset, offset + size, at))
            at += size
        self._file.view(at, _RECORD.size)  # which says that the file ends here
        return records

    def places(self, offsets: Numbers, sizes: Numbers) -> tuple[memoryview, Numbers]:
        """All bytes of the file, and where in them the *sizes* bytes from *offsets* are; -1 if not in one piece."""
        import numpy as np  # a log is explained without it

        if self._columns is None:
            self._columns = np.array(self._pieces, np.int64).reshape(-1, 3)
        starts, ends, behind = self._columns.T
        piece = np.searchsorted(starts, offsets, "right") - 1
        there = (piece >= 0) & (offsets <= ends[piece] - sizes)
        return self._file.view(0, self._file.size), np.where(there, behind[piece] + offsets - starts[piece], -1)

    def read_at(self, offset: int, size: int, /) -> bytes:
        """Exactly *size* bytes; what no record wrote reads as zeros, as in the rebuilt file."""
        if offset < 0 or size < 0 or offset + size > self.size:
            raise FormatError(
                f"{self.name} rebuilds to {self.size:#x} bytes; expected {size} at {offset:#x}: "
                "truncated or forged; copy or take it again"
            )
        parts, at, end = [], offset, offset + size
        index = max(bisect_right(self._starts, offset) - 1, 0)
        while at < end:
            piece = self._pieces[index]
            if at < piece.start:
                parts.append(bytes(min(piece.start, end) - at))
                at += len(parts[-1])
            elif at < piece.end:
                take = min(piece.end, end) - at
                parts.append(self._file.read_at(piece.offset + at - piece.start, take))
                at += take
            else:
                index += 1
        return b"".join(parts)

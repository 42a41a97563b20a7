"""The flattened form of kdump files: records of (where, how much, bytes) that can go through a pipe.

Layout: makedumpfile's ``struct makedumpfile_header`` and ``makedumpfile_data_header``, big-endian.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from typing import Final

from fivefold.errors import FormatError
from fivefold.memory.files import FileBytes
from fivefold.memory.spans import Span, without_overlap

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
        signature, kind, version = _HEADER.unpack(file.read_at(0, _HEADER.size))
        if signature.rstrip(b"\0") != SIGNATURE or (kind, version) != (1, 1):
            raise FormatError(f"{file.name}: flattened kdump of type {kind}, version {version}; expected 1, 1")
        # Writers go back and write the header again when they know the counts.
        self._pieces = without_overlap(self._records()[::-1])
        self._starts = [piece.start for piece in self._pieces]
        self.size = self._pieces[-1].end if self._pieces else 0

    def _records(self) -> list[Span]:
        records: list[Span] = []
        at = _HEADER_SIZE
        while True:
            offset, size = _RECORD.unpack(self._file.read_at(at, _RECORD.size))
            if (offset, size) == _END:
                return records
            at += _RECORD.size
            if offset < 0 or size <= 0 or at + size > self._file.size:
                raise FormatError(
                    f"{self.name}: flattened record before {at:#x} claims {size} bytes at {offset}, "
                    f"{self._file.size - at} are left: truncated or forged; copy or take it again"
                )
            if len(records) == MAX_RECORDS:
                raise FormatError(f"{self.name}: more than {MAX_RECORDS} flattened records")
            records.append(Span(offset, offset + size, at))
            at += size

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

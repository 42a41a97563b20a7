"""AVML's compressed dumps: LiME's ranges with another mark, each packed as a framed Snappy stream.

Sources: AVML, ``src/image.rs`` (header and what follows a range); Snappy, "framing format description".
What AVML does not compress is LiME.
"""

from __future__ import annotations

import importlib
import struct
from bisect import bisect_right
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Final, NamedTuple

from fivefold.errors import FormatError, MachineError, said_by
from fivefold.memory.banked import MAX_COPY, PagedMemory
from fivefold.memory.files import FileBytes
from fivefold.memory.source import Source
from fivefold.memory.spans import extents_of
from fivefold.units import PAGE

MAGIC: Final = b"AVML"
MOST_CHUNKS: Final = 1 << 24
_HEADER: Final = struct.Struct("<4sIQQ8x")
_TAIL: Final = 8
"""Bytes behind each range: how long it is when packed."""

_COMPRESSED, _PLAIN, _STREAM, _SKIPPED = 0, 1, 0xFF, 0x80
_CHECKSUM: Final = 4
_MOST_OF_CHUNK: Final = 1 << 16
_KEPT: Final = 64
"""Chunks that stay unpacked."""


class _Chunk(NamedTuple):
    start: int
    size: int
    offset: int
    packed: int
    """Bytes in the file; as many as *size* where it is not packed."""
    is_packed: bool


def read_avml(file: FileBytes, *, max_copy: int = MAX_COPY) -> Source:
    """The ranges of a compressed AVML file; takes over *file*. `FormatError` for a forged or truncated one."""
    chunks: list[_Chunk] = []
    at = 0
    while at < file.size:
        at = _range_at(file, at, chunks)
    chunks.sort()
    for low, high in pairwise(chunks):
        if high.start < low.start + low.size:
            raise FormatError(f"{file.name}: ranges overlap at physical {high.start:#x}, expected each byte once")
    pages = _Unpacked(file, chunks)
    return Source(
        memory=PagedMemory(
            extents_of((chunk.start, chunk.start + chunk.size) for chunk in chunks),
            pages.fetch,
            file.name,
            on_close=file.close,
            max_copy=max_copy,
        ),
        format="AVML, compressed",
        notes=("AVML holds no registers: give the root and the number of levels",),
    )


def _range_at(file: FileBytes, at: int, chunks: list[_Chunk]) -> int:
    """Add the chunks of the range at *at*; return where the next begins."""
    magic, version, first, last = _HEADER.unpack(file.read_at(at, _HEADER.size))
    if magic != MAGIC or version != 2:
        raise FormatError(f"{file.name}: no AVML header of version 2 at {at:#x}")
    if last < first or first % PAGE or last > 1 << 52:
        raise FormatError(f"{file.name}: AVML range at {at:#x} is {first:#x}-{last:#x}, which no memory can be")
    # The last address is inclusive, as in LiME; a build that wrote it exclusive is recognised by its page.
    end = last if last % PAGE == 0 and last > first else last + 1
    here, at = first, at + _HEADER.size
    while here < end:
        kind, size = _chunk_head(file, at)
        at += 4
        if kind in (_COMPRESSED, _PLAIN):
            chunk = _chunk(file, at, size, here, kind == _COMPRESSED)
            if chunk.start + chunk.size > end or len(chunks) == MOST_CHUNKS:
                raise FormatError(
                    f"{file.name}: AVML range {first:#x}-{end:#x} unpacks to more than it has, at {at:#x}"
                )
            chunks.append(chunk)
            here += chunk.size
        elif kind == _STREAM:
            if file.read_at(at, size) != b"sNaPpY":
                raise FormatError(f"{file.name}: no Snappy stream at {at:#x}")
        elif kind < _SKIPPED:
            raise FormatError(f"{file.name}: Snappy chunk of kind {kind:#x} at {at - 4:#x}; expected 0, 1 or 0xff")
        at += size
    return at + _TAIL


def _chunk_head(file: FileBytes, at: int) -> tuple[int, int]:
    word = int.from_bytes(file.read_at(at, 4), "little")
    if at + 4 + (word >> 8) > file.size:
        raise FormatError(f"{file.name}: a chunk of {word >> 8} bytes at {at:#x}, the file ends at {file.size:#x}")
    return word & 0xFF, word >> 8


def _chunk(file: FileBytes, at: int, size: int, start: int, is_packed: bool) -> _Chunk:
    if size <= _CHECKSUM:
        raise FormatError(f"{file.name}: an empty chunk at {at:#x}")
    offset, packed = at + _CHECKSUM, size - _CHECKSUM
    unpacked = _claimed(file.read_at(offset, min(packed, 5))) if is_packed else packed
    if not 0 < unpacked <= _MOST_OF_CHUNK:
        raise FormatError(f"{file.name}: chunk at {at:#x} of {unpacked} bytes; expected 1 to {_MOST_OF_CHUNK}")
    return _Chunk(start, unpacked, offset, packed, is_packed)


def _claimed(head: bytes) -> int:
    """How long a Snappy block says that it is: 7 bits a byte, the lowest first."""
    value = 0
    for number, byte in enumerate(head):
        value |= (byte & 0x7F) << 7 * number
        if byte < 0x80:
            return value
    return 0


@dataclass
class _Unpacked:
    """Chunks, unpacked when they are read."""

    file: FileBytes
    chunks: list[_Chunk]

    def __post_init__(self) -> None:
        self._starts = [chunk.start for chunk in self.chunks]
        self._unpack = lru_cache(_KEPT)(self._unpacked)

    def fetch(self, pa: int, size: int) -> bytes:
        """*size* bytes inside one extent."""
        parts, at, number = [], pa, bisect_right(self._starts, pa) - 1
        while at < pa + size:
            chunk = self.chunks[number]
            parts.append(self._unpack(number)[at - chunk.start : pa + size - chunk.start])
            at, number = chunk.start + chunk.size, number + 1
        return b"".join(parts)

    def _unpacked(self, number: int) -> bytes:
        chunk = self.chunks[number]
        raw = self.file.read_at(chunk.offset, chunk.packed)
        where = f"{self.file.name}: chunk at {chunk.offset:#x}"
        if not chunk.is_packed:
            return raw
        try:
            snappy = importlib.import_module("snappy")
        except ImportError as error:
            raise MachineError(f"{where} is packed with Snappy; expected the package python-snappy") from error
        try:
            found = bytes(snappy.uncompress(raw))
        except Exception as error:
            raise FormatError(f"{where} has broken Snappy data: {said_by(error)}") from error
        if len(found) != chunk.size:
            raise FormatError(f"{where} unpacks to {len(found)} bytes, expected {chunk.size}")
        return found

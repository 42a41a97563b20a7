"""LiME: ranges of physical memory, each behind a header of 32 bytes (version 1)."""

from __future__ import annotations

import struct
from typing import Final

from fivefold.errors import FormatError
from fivefold.memory.file_memory import file_memory
from fivefold.memory.files import FileBytes
from fivefold.memory.source import Source
from fivefold.memory.spans import MAX_SPANS, Span, without_overlap

MAGIC: Final = b"EMiL"
"""0x4C694D45, little-endian."""

_HEADER: Final = struct.Struct("<4sIQQ8x")


def read_lime(file: FileBytes) -> Source:
    """The ranges of a LiME file; takes over *file*. `FormatError` for a forged or truncated one."""
    spans: list[Span] = []
    at = 0
    while at < file.size:
        span = _range_at(file, at)
        if len(spans) == MAX_SPANS:
            raise FormatError(f"{file.name}: more than {MAX_SPANS} ranges")
        spans.append(span)
        at = span.offset + span.end - span.start
    pieces = without_overlap(spans)
    if sum(s.end - s.start for s in pieces) != sum(s.end - s.start for s in spans):
        raise FormatError(f"{file.name}: ranges overlap in physical memory, expected each byte once")
    return Source(
        memory=file_memory(file, pieces),
        format="LiME",
        notes=("LiME holds no registers: give the root and the number of levels",),
    )


def _range_at(file: FileBytes, at: int) -> Span:
    magic, version, first, last = _HEADER.unpack(file.read_at(at, _HEADER.size))
    if magic != MAGIC:
        raise FormatError(f"{file.name}: no LiME header at {at:#x}, expected {MAGIC.decode()!r}")
    if version != 1:
        raise FormatError(f"{file.name}: LiME header at {at:#x} has version {version}, expected 1")
    if last < first:
        raise FormatError(f"{file.name}: LiME range at {at:#x} ends at {last:#x}, before its start {first:#x}")
    if at + _HEADER.size + last - first + 1 > file.size:
        raise FormatError(
            f"{file.name}: LiME range {first:#x}-{last:#x} at {at:#x} needs {last - first + 1} bytes, "
            f"{file.size - at - _HEADER.size} are left: truncated or forged; copy or take it again"
        )
    return Span(first, last + 1, at + _HEADER.size)

"""Hyper-V's saved states, ``.vmrs``: a store of keys and values, with memory in blocks of a mebibyte.

Tables of keys lie on page boundaries, each with a checksum; of two with the same number the later sequence counts.
``RamMemoryBlockN`` places a run of blocks in the guest's memory, ``RamBlockN`` is one of them, packed or not. Sources:
OpenVMM, "HyperV Storage File Format"; for packed blocks what vmkatz found out of Microsoft's own reader. CPUs lie in
a value of a form that is not published: they are not read.
"""

from __future__ import annotations

import re
import struct
import zlib
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from operator import attrgetter, itemgetter
from typing import Final

import numpy as np

from fivefold.errors import FormatError
from fivefold.memory.banked import MAX_COPY, PagedMemory
from fivefold.memory.base import Extent
from fivefold.memory.files import FileBytes
from fivefold.memory.formats.snapshots.xpress import BLOCK, unpack_block
from fivefold.memory.source import Source
from fivefold.memory.spans import MAX_SPANS, extents_of
from fivefold.units import PAGE

MAGIC: Final = struct.pack("<I", 0x0128_2014)
MOST_TABLES: Final = 1 << 16
MOST_KEYS: Final = 1 << 22
_TABLE: Final = struct.Struct("<HHHI")
_ENTRY: Final = struct.Struct("<BBIHIIIB")
_PLACE: Final = struct.Struct("<IQ")
_RANGE: Final = struct.Struct("<IIQQQ")
_ARRAY, _AWAY = 7, 1
_KEY: Final = re.compile(rb"(RamMemoryBlock|RamBlock)(\d{1,8})\0", re.DOTALL)
_CACHED: Final = 16


@dataclass
class _Store:
    """The blocks by number, and the runs of them."""

    file: FileBytes
    blocks: dict[int, tuple[int, int]] = field(default_factory=dict)
    runs: dict[int, tuple[int, int, int]] = field(default_factory=dict)
    _kept: dict[int, bytes] = field(default_factory=dict)

    def block(self, number: int) -> bytes:
        """A block's bytes, unpacked."""
        if number not in self._kept:
            at, size = self.blocks[number]
            raw = self.file.read_at(at, size)
            if len(self._kept) >= _CACHED:
                del self._kept[next(iter(self._kept))]
            self._kept[number] = raw if size == BLOCK else unpack_block(raw, f"{self.file.name}: RamBlock{number}")
        return self._kept[number]

    @cached_property
    def ordered(self) -> list[tuple[int, int, int]]:
        """The runs by their place in memory."""
        return sorted(self.runs.values())

    def fetch(self, pa: int, size: int) -> bytes:
        """Bytes inside one extent."""
        parts, at, end = [], pa, pa + size
        index = bisect_right(self.ordered, pa, key=itemgetter(0)) - 1
        while at < end:
            start, length, first = self.ordered[index]
            offset = first + at - start
            step = min(BLOCK - offset % BLOCK, end - at, start + length - at)
            parts.append(self.block(offset // BLOCK)[offset % BLOCK :][:step])
            at += step
            index += at == start + length
        return b"".join(parts)

    def extents(self) -> list[Extent]:
        """Memory whose blocks are in the file; `FormatError` where it comes in too many parts."""
        found = []
        present = extents_of((number * BLOCK, (number + 1) * BLOCK) for number in sorted(self.blocks))
        for start, size, first in self.ordered:
            for index in range(bisect_right(present, first, key=attrgetter("end")), len(present)):
                low, high = max(present[index].start, first), min(present[index].end, first + size)
                if low >= high:
                    break
                found.append((start + low - first, start + high - first))
                if len(found) > MAX_SPANS:
                    raise FormatError(f"{self.file.name}: more than {MAX_SPANS} parts of memory")
        return extents_of(found)


def read_hyperv(file: FileBytes, *, max_copy: int = MAX_COPY) -> Source:
    """The memory of a saved state; takes over *file*. `FormatError` for a forged one, or one without memory."""
    _check_header(file)
    store = _Store(file)
    for name, number, raw in _values(file):
        if name == b"RamBlock":
            at, size = _PLACE.unpack(raw)[::-1]
            if size > BLOCK or not size or at + size > file.size:
                raise FormatError(
                    f"{file.name}: RamBlock{number} of {size} bytes at {at:#x}, the file ends at {file.size:#x}: "
                    "truncated or forged; copy or take it again"
                )
            store.blocks[number] = at, size
        else:
            store.runs[number] = _run(file.name, number, raw)
    if not store.blocks or not store.runs:
        raise FormatError(f"{file.name} holds no memory (RamBlock, RamMemoryBlock): expected a saved state, .vmrs")
    _check_apart(file.name, store)
    extents = store.extents()
    missing = sum(size for _, size, _ in store.ordered) - sum(one.end - one.start for one in extents)
    notes = ["Hyper-V's registers are not read: the root is looked for in memory"]
    if missing:
        notes.append(f"{missing} bytes of memory are not in the file, and are a hole")
    memory = PagedMemory(extents, store.fetch, file.name, on_close=file.close, max_copy=max_copy)
    return Source(memory=memory, format="Hyper-V saved state", notes=tuple(notes))


def _check_header(file: FileBytes) -> None:
    for at in (0, PAGE):
        raw = file.read_at(at, 46)
        if raw[:4] == MAGIC and zlib.crc32(raw[:4] + bytes(4) + raw[8:]) == struct.unpack_from("<I", raw, 4)[0]:
            return
    raise FormatError(f"{file.name}: neither header of Hyper-V's store has a checksum that fits")


def _values(file: FileBytes) -> Iterator[tuple[bytes, int, bytes]]:
    """Names, numbers and raw values of what is about memory, in the order of their tables' sequence."""
    tables = []
    for page in _pages_of_tables(file):
        head = file.read_at(page * PAGE, _TABLE.size)
        _, _, sequence, checksum = _TABLE.unpack(head)
        if zlib.crc32(head[:6] + bytes(4)) == checksum:
            tables.append((sequence, page))
            if len(tables) > MOST_TABLES:
                raise FormatError(f"{file.name}: more than {MOST_TABLES} tables of keys")
    found: dict[tuple[bytes, int], bytes] = {}
    looked_at = 0
    for _, page in sorted(tables):
        for entry in _entries(file, page * PAGE):
            looked_at += 1  # also what is not kept: forged tables may lie over each other
            if looked_at > MOST_KEYS:
                raise FormatError(f"{file.name}: more than {MOST_KEYS} keys")
            if entry is not None:
                found[entry[:2]] = entry[2]
    yield from ((name, number, raw) for (name, number), raw in found.items())


def _pages_of_tables(file: FileBytes) -> list[int]:
    """Numbers of pages that begin as a table of keys does."""
    words = np.frombuffer(file.view(0, file.size // PAGE * PAGE), "<u2").reshape(-1, PAGE // 2)[:, 0]
    found: list[int] = np.flatnonzero(words == 2).tolist()
    return found


def _entries(file: FileBytes, at: int) -> Iterator[tuple[bytes, int, bytes] | None]:
    """What is in the table of keys at *at*, to its end or to what is no entry; None for what is not about memory."""
    end = min(at + 16 * PAGE, file.size)
    at += _TABLE.size
    while at + _ENTRY.size < end:
        kind, flags, size, _, _, _, _, length = _ENTRY.unpack(file.read_at(at, _ENTRY.size))
        if kind == 0 or size < _ENTRY.size or at + size > end:
            return
        body = file.read_at(at + _ENTRY.size, size - _ENTRY.size)
        match = _KEY.fullmatch(body[:length]) if kind == _ARRAY else None
        raw = match and _value(file, body[length:], bool(flags & _AWAY), match[1] == b"RamBlock")
        yield None if match is None or raw is None else (match[1], int(match[2]), raw)
        at += size


def _value(file: FileBytes, body: bytes, is_away: bool, is_place: bool) -> bytes | None:
    """A value's bytes; of a block only its size and its place."""
    if is_place:
        return body[: _PLACE.size] if is_away and len(body) >= _PLACE.size else None
    if is_away and len(body) >= _PLACE.size:
        size, at = _PLACE.unpack_from(body)
        return file.read_at(at, min(size, PAGE))
    return body[4:]


def _run(name: str, number: int, raw: bytes) -> tuple[int, int, int]:
    """Start and size in bytes of a run, and where it begins among the blocks."""
    if len(raw) < _RANGE.size:
        raise FormatError(f"{name}: RamMemoryBlock{number} has {len(raw)} bytes, expected {_RANGE.size} or more")
    _, _, pages, first, start = _RANGE.unpack_from(raw)
    if not pages or max(pages, first, start) >= 1 << 40:
        raise FormatError(f"{name}: RamMemoryBlock{number} has {pages} pages from page {start:#x} on")
    return start * PAGE, pages * PAGE, first * PAGE


def _check_apart(name: str, store: _Store) -> None:
    runs = store.ordered
    if len(runs) > MAX_SPANS or any(low[0] + low[1] > high[0] for low, high in pairwise(runs)):
        raise FormatError(f"{name}: runs of memory overlap, expected each byte once")
    if sum(size for _, size, _ in runs) > 1 << 44:
        raise FormatError(f"{name}: more than {1 << 44} bytes of memory")

"""The little of ELF that a loader needs: segments by physical address, and the PVH entry.

Written against "ELF-64 Object File Format" and the PVH boot ABI (Xen, docs/misc/pvh).
Images are hostile input: every offset is checked against the file.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from itertools import pairwise
from typing import Final, NamedTuple

from fivefold.errors import ImageError
from fivefold.units import hex64

PT_LOAD: Final = 1
PT_NOTE: Final = 4
XEN_PHYS32_ENTRY: Final = 18
_EHDR: Final = struct.Struct("<16sHHIQQQIHHHHHH")
_PHDR: Final = struct.Struct("<IIQQQQQQ")
_EM_X86_64: Final = 62


class LoadSegment(NamedTuple):
    """A PT_LOAD: *data* goes to physical *start*; up to *end* the rest is zeroed."""

    start: int
    end: int
    data: bytes


def load_segments(image: bytes) -> list[LoadSegment]:
    """The parts to place, ascending; raises `ImageError` for a file that is not a sound ELF64."""
    found = []
    for kind, _flags, offset, _va, pa, filesz, memsz, _align in _headers(image):
        if kind == PT_LOAD and memsz:
            if memsz < filesz:
                raise ImageError(f"segment at {hex64(pa)} has {filesz} bytes in the file, {memsz} in memory")
            if pa + memsz > 1 << 52:
                raise ImageError(f"segment at {hex64(pa)} ends beyond 52 physical address bits")
            found.append(LoadSegment(pa, pa + memsz, _slice(image, offset, filesz)))
    if not found:
        raise ImageError("the image has no segment to load")
    return _apart(sorted(found))


def pvh_entry(image: bytes) -> int:
    """Physical address of the 32-bit entry, from the Xen note; raises `ImageError` without one."""
    for kind, _flags, offset, _va, _pa, filesz, _memsz, _align in _headers(image):
        if kind == PT_NOTE:
            for name, note_type, desc in _notes(_slice(image, offset, filesz)):
                if name == b"Xen\0" and note_type == XEN_PHYS32_ENTRY and len(desc) >= 4:
                    return int.from_bytes(desc[:4], "little")
    raise ImageError("the image has no PVH entry (a PT_NOTE named Xen of type 18)")


def _headers(image: bytes) -> Iterator[tuple[int, ...]]:
    if len(image) < _EHDR.size or image[:6] != b"\x7fELF\x02\x01":
        raise ImageError("the image is not a little-endian ELF64 file")
    _id, _type, machine, _v, _entry, phoff, _sh, _fl, _eh, phentsize, phnum, *_ = _EHDR.unpack_from(image)
    if machine != _EM_X86_64:
        raise ImageError(f"the image is for ELF machine {machine}, expected {_EM_X86_64} (x86-64)")
    if phnum and phentsize != _PHDR.size:
        raise ImageError(f"the image has program headers of {phentsize} bytes, expected {_PHDR.size}")
    table = _slice(image, phoff, phnum * _PHDR.size)
    yield from _PHDR.iter_unpack(table)


def _slice(image: bytes, offset: int, size: int) -> bytes:
    if offset + size > len(image):
        raise ImageError(
            f"the image is cut short: {size} bytes at offset {offset:#x} expected, the file has {len(image):#x}"
        )
    return image[offset : offset + size]


def _apart(segments: list[LoadSegment]) -> list[LoadSegment]:
    for low, high in pairwise(segments):
        if high.start < low.end:
            raise ImageError(f"segments overlap at {hex64(high.start)}")
    return segments


def _notes(data: bytes) -> Iterator[tuple[bytes, int, bytes]]:
    at = 0
    while at + 12 <= len(data):
        namesz, descsz, note_type = struct.unpack_from("<III", data, at)
        name_at = at + 12
        desc_at = name_at + (namesz + 3 & ~3)
        yield data[name_at : name_at + namesz], note_type, data[desc_at : desc_at + descsz]
        at = desc_at + (descsz + 3 & ~3)

"""kdump-compressed files: makedumpfile's and QEMU's, page by page, plain or flattened.

Layout: makedumpfile's ``struct disk_dump_header``, ``kdump_sub_header`` and ``page_desc`` of its
``diskdump_mod.h``, for 64-bit little-endian kernels. Two bitmaps, a bit a page: memory that
exists, then pages that were written. What was left out of the dump is a hole.
"""

from __future__ import annotations

import struct
from typing import Any, Final, NamedTuple

from fivefold.errors import FormatError
from fivefold.memory.banked import MAX_COPY, PagedMemory
from fivefold.memory.files import ByteSource, FileBytes
from fivefold.memory.formats import kdump_flat
from fivefold.memory.formats.notes import MAX_NOTE_BYTES, cpus_of, parse_vmcoreinfo, split_notes, vmcoreinfo_of
from fivefold.memory.source import Source
from fivefold.units import GIB, PAGE

SIGNATURES: Final = (b"KDUMP   ", b"DISKDUMP", kdump_flat.SIGNATURE)

MAX_BITMAP: Final = 4 * GIB // 8
"""Bytes of one bitmap that are taken: 16 TiB of memory."""

_HEADER: Final = struct.Struct("<8si390s6x16sIiiIIIIIIi")
_SUB: Final = struct.Struct("<QiiQQQQQQQQQQQ")
_BLOCK_SIZE_32: Final = 416
"""Where the block size stands in a 32-bit kernel's header, whose time stamp is two words of 32 bits."""


class _Geometry(NamedTuple):
    """Where the parts lie, in bytes from the start; *pages* is one more than the last page number."""

    bitmap: int
    bitmap_size: int
    descriptors: int
    pages: int


LEAST_UNPACKED: Final = GIB
MAX_RATIO: Final = 32
"""All pages together may be so many times as large as the file, or `LEAST_UNPACKED`: a forged dump can have a million
pages that are the same bytes of it. What makedumpfile writes is packed to a tenth at best."""


def read_kdump(file: FileBytes, *, max_copy: int = MAX_COPY) -> Source:
    """The memory, CPUs and VMCOREINFO of a kdump file; takes over *file*.

    `FormatError` for forged and truncated files. Pages are unpacked when they are read; their
    damage shows then, as `FormatError` too, and a missing unpacker as `MachineError`.
    """
    from fivefold.memory.formats.kdump_pages import KdumpPages  # a log is explained without numpy

    flat = file.read_at(0, min(file.size, 16)).startswith(kdump_flat.SIGNATURE)
    data: ByteSource = kdump_flat.FlatBytes(file) if flat else file
    header = _HEADER.unpack(data.read_at(0, _HEADER.size))
    # Version 1 has the first field only, and nothing here depends on that.
    sub = _SUB.unpack(data.read_at(PAGE, _SUB.size)) if header[1] >= 2 else (0,) * 14
    geometry = _geometry(data, header, sub)
    written = geometry.bitmap + geometry.bitmap_size
    pages = KdumpPages(data, written, geometry.descriptors, geometry.pages, on_disk=file.on_disk)
    notes = _notes(data, header[1], sub)
    return Source(
        memory=PagedMemory(
            pages.extents(),
            pages.fetch,
            data.name,
            on_close=file.close,
            max_copy=max_copy,
            max_written=max(LEAST_UNPACKED, MAX_RATIO * file.size),
            written=pages.written,
            heads=pages.that_begin,
            batches=pages.batches,
        ),
        format="kdump, flattened" if flat else "kdump",
        cpus=cpus_of(notes, data.name),
        vmcoreinfo=_vmcoreinfo(data, header[1], sub) or vmcoreinfo_of(notes),
        notes=("pages that the dump left out are holes",),
    )


def _geometry(data: ByteSource, header: tuple[Any, ...], sub: tuple[int, ...]) -> _Geometry:
    signature, version, block, sub_blocks, bitmap_blocks = header[0], header[1], *header[5:8]
    if signature not in SIGNATURES[:2]:
        raise FormatError(f"{data.name}: kdump signature is {signature!r}, expected {SIGNATURES[0]!r}")
    if not 1 <= version <= 6:
        raise FormatError(f"{data.name}: kdump header version {version}, expected 1 to 6")
    if block != PAGE and struct.unpack_from("<i", data.read_at(_BLOCK_SIZE_32, 4))[0] == PAGE:
        raise FormatError(
            f"{data.name} is a kdump of a 32-bit system, whose tables are those of 32-bit or PAE paging; "
            "expected 4- or 5-level paging"
        )
    if block != PAGE:
        raise FormatError(f"{data.name}: kdump block size {block}, expected {PAGE}")
    if not 0 <= sub_blocks <= 1 << 20:
        raise FormatError(f"{data.name}: kdump sub-header of {sub_blocks} blocks, expected a few")
    if sub[2]:
        raise FormatError(f"{data.name} is one part of a split dump; join the parts with makedumpfile --reassemble")
    bitmap = (1 + sub_blocks) * PAGE
    bitmap_size = bitmap_blocks * PAGE // 2
    descriptors = bitmap + bitmap_blocks * PAGE
    if descriptors > data.size or bitmap_size > MAX_BITMAP:
        raise FormatError(
            f"{data.name}: two bitmaps of {bitmap_size} bytes at {bitmap:#x}, the file has {data.size} bytes: "
            "truncated or forged; copy or take it again"
        )
    pages = sub[13] if version >= 6 and sub[13] else header[8]
    return _Geometry(bitmap, bitmap_size, descriptors, min(pages, bitmap_size * 8))


def _part(data: ByteSource, what: str, offset: int, size: int) -> bytes:
    if size > MAX_NOTE_BYTES:
        raise FormatError(f"{data.name}: {what} of {size} bytes, at most {MAX_NOTE_BYTES} are read")
    return data.read_at(offset, size) if size else b""


def _notes(data: ByteSource, version: int, sub: tuple[int, ...]) -> list[Any]:
    if version < 4:
        return []
    return list(split_notes(_part(data, "notes", sub[7], sub[8]), data.name))


def _vmcoreinfo(data: ByteSource, version: int, sub: tuple[int, ...]) -> dict[str, str]:
    if version < 3:
        return {}
    return parse_vmcoreinfo(_part(data, "VMCOREINFO", sub[5], sub[6]))

"""kdump-compressed files: makedumpfile's and QEMU's, page by page, plain or flattened.

Layout: makedumpfile's ``struct disk_dump_header``, ``kdump_sub_header`` and ``page_desc`` of its
``diskdump_mod.h``, for 64-bit little-endian kernels. Two bitmaps, a bit a page: memory that
exists, then pages that were written. What was left out of the dump is a hole.
"""

from __future__ import annotations

import importlib
import re
import struct
import zlib
from collections.abc import Callable, Iterator
from functools import lru_cache
from itertools import accumulate
from typing import Any, Final, NamedTuple

from fivefold.errors import FormatError, MachineError, MemoryReadError
from fivefold.memory.banked import MAX_COPY, PagedMemory
from fivefold.memory.base import Extent
from fivefold.memory.files import ByteSource, FileBytes
from fivefold.memory.formats import kdump_flat
from fivefold.memory.formats.notes import MAX_NOTE_BYTES, cpus_of, parse_vmcoreinfo, split_notes, vmcoreinfo_of
from fivefold.memory.source import Source
from fivefold.units import GIB, PAGE

SIGNATURES: Final = (b"KDUMP   ", b"DISKDUMP", kdump_flat.SIGNATURE)

MAX_RUNS: Final = 1 << 20
MAX_BITMAP: Final = 4 * GIB // 8
"""Bytes of one bitmap that are taken: 16 TiB of memory."""

_HEADER: Final = struct.Struct("<8si390s6x16sIiiIIIIIIi")
_SUB: Final = struct.Struct("<QiiQQQQQQQQQQQ")
_DESCRIPTOR: Final = struct.Struct("<QIIQ")
_BLOCK_SIZE_32: Final = 416
"""Where the block size stands in a 32-bit kernel's header, whose time stamp is two words of 32 bits."""
_RANK_STEP: Final = 512  # bytes of bitmap behind one entry of the rank index

_DESCRIPTORS: Final = 1 << 16
"""Page descriptors that are read together."""
_SHARED: Final = 4
"""Pages in the file that several page numbers share, and that are looked at to see whether they are empty."""

_ZLIB, _LZO, _SNAPPY, _ZSTD = 1, 2, 4, 0x20
_SNAPPY_PAGE: Final = b"\x80\x20"  # 4096 as snappy spells lengths


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
    flat = file.read_at(0, min(file.size, 16)).startswith(kdump_flat.SIGNATURE)
    data: ByteSource = kdump_flat.FlatBytes(file) if flat else file
    header = _HEADER.unpack(data.read_at(0, _HEADER.size))
    sub = _SUB.unpack(data.read_at(PAGE, _SUB.size)) if header[1] >= 1 else (0,) * 14
    geometry = _geometry(data, header, sub)
    pages = _Pages(data, geometry)
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


class _Pages:
    """The pages that were written: which there are, and the bytes of each."""

    def __init__(self, data: ByteSource, geometry: _Geometry) -> None:
        self._data = data
        self._descriptors = geometry.descriptors
        bitmap = bytearray(data.read_at(geometry.bitmap + geometry.bitmap_size, (geometry.pages + 7) // 8))
        if geometry.pages % 8:
            bitmap[-1] &= (1 << geometry.pages % 8) - 1
        self._bitmap = bytes(bitmap)
        counts = (
            int.from_bytes(self._bitmap[at : at + _RANK_STEP], "little").bit_count()
            for at in range(0, len(self._bitmap), _RANK_STEP)
        )
        self._ranks = list(accumulate(counts, initial=0))
        need = geometry.descriptors + self._ranks[-1] * _DESCRIPTOR.size
        if need > data.size:
            raise FormatError(
                f"{data.name}: {self._ranks[-1]} page descriptors need bytes up to {need:#x}, "
                f"the file ends at {data.size:#x}: truncated or forged; copy or take it again"
            )
        self._page = lru_cache(maxsize=64)(self._unpack_page)

    def extents(self) -> list[Extent]:
        """Runs of pages that were written, in bytes."""
        runs: list[Extent] = []
        for first, end in _runs(self._bitmap):
            if runs and runs[-1].end == first * PAGE:
                runs[-1] = Extent(runs[-1].start, end * PAGE)
                continue
            if len(runs) == MAX_RUNS:
                raise FormatError(f"{self._data.name}: more than {MAX_RUNS} separate runs of pages")
            runs.append(Extent(first * PAGE, end * PAGE))
        return runs

    def written(self) -> list[Extent]:
        """The pages that may be anything but zeros: QEMU keeps one page of zeros, and all that are empty share it."""
        import numpy as np  # a log is explained without it

        numbers = np.flatnonzero(np.unpackbits(np.frombuffer(self._bitmap, np.uint8), bitorder="little"))
        offsets = np.empty(len(numbers), np.uint64)
        for at in range(0, len(numbers), _DESCRIPTORS):
            count = min(_DESCRIPTORS, len(numbers) - at)
            raw = self._data.read_at(self._descriptors + at * _DESCRIPTOR.size, count * _DESCRIPTOR.size)
            offsets[at : at + count] = np.frombuffer(raw, "<u8").reshape(count, _DESCRIPTOR.size // 8)[:, 0]
        shared, times = np.unique(offsets, return_counts=True)
        for offset in shared[times > 1][:_SHARED].tolist():
            first = int(numbers[offsets == offset][0])
            if not any(self._page(first)):
                numbers, offsets = numbers[offsets != offset], offsets[offsets != offset]
        breaks = np.flatnonzero(np.diff(numbers) != 1)
        firsts, lasts = np.r_[0, breaks + 1], np.r_[breaks, len(numbers) - 1]
        if not len(numbers):
            return []
        return [
            Extent(low * PAGE, (high + 1) * PAGE)
            for low, high in zip(numbers[firsts].tolist(), numbers[lasts].tolist(), strict=True)
        ]

    def fetch(self, pa: int, size: int) -> bytes:
        """*size* bytes from *pa*, all inside one extent."""
        first, skip = divmod(pa, PAGE)
        last = (pa + size - 1) // PAGE
        if first == last:
            return self._page(first)[skip : skip + size]
        joined = b"".join(self._page(number) for number in range(first, last + 1))
        return joined[skip : skip + size]

    def _unpack_page(self, number: int) -> bytes:
        at = self._descriptors + self._rank(number) * _DESCRIPTOR.size
        offset, size, flags, _ = _DESCRIPTOR.unpack(self._data.read_at(at, _DESCRIPTOR.size))
        where = f"{self._data.name}: page {number:#x}"
        if not 0 < size <= PAGE:
            raise FormatError(f"{where} has {size} bytes in the file, expected 1 to {PAGE}")
        page = _unpacked(self._data.read_at(offset, size), flags, where)
        if len(page) != PAGE:
            raise FormatError(f"{where} unpacks to {len(page)} bytes, expected {PAGE}")
        return page

    def _rank(self, number: int) -> int:
        """How many pages with a smaller number were written."""
        byte, bit = divmod(number, 8)
        if byte >= len(self._bitmap) or not self._bitmap[byte] >> bit & 1:
            raise MemoryReadError(number * PAGE, PAGE, self._data.name)
        block = byte // _RANK_STEP
        before = int.from_bytes(self._bitmap[block * _RANK_STEP : byte], "little").bit_count()
        return self._ranks[block] + before + (self._bitmap[byte] & (1 << bit) - 1).bit_count()


_RUNS_OF_BYTES: Final = re.compile(rb"\xff+|[^\x00\xff]", re.DOTALL)


def _runs(bitmap: bytes) -> Iterator[tuple[int, int]]:
    """Set bits as (first, end) pairs, ascending; neighbours are not always joined."""
    for match in _RUNS_OF_BYTES.finditer(bitmap):
        byte = match[0][0]
        if byte == 0xFF:
            yield match.start() * 8, match.end() * 8
            continue
        for bit in range(8):
            if byte >> bit & 1:
                yield match.start() * 8 + bit, match.start() * 8 + bit + 1


def _unpacked(packed: bytes, flags: int, where: str) -> bytes:
    kind = flags & (_ZLIB | _LZO | _SNAPPY | _ZSTD)
    if kind == 0:
        return packed
    if kind == _ZLIB:
        return _inflate(packed, where)
    if kind not in _OPTIONAL:
        raise FormatError(f"{where} has flags {flags:#x}, expected one way of compression at most")
    package, unpack = _OPTIONAL[kind]
    try:
        return unpack(packed)
    except ImportError as error:
        raise MachineError(f"{where} is packed with {package}: pip install {package}") from error
    except Exception as error:  # each package has an error class of its own; readers see one
        raise FormatError(f"{where} has broken {package} data: {error}") from error


def _inflate(packed: bytes, where: str) -> bytes:
    try:
        return zlib.decompressobj().decompress(packed, PAGE + 1)
    except zlib.error as error:
        raise FormatError(f"{where} has broken zlib data: {error}") from error


def _unlzo(packed: bytes) -> bytes:
    lzo = importlib.import_module("lzallright")
    return bytes(lzo.LZOCompressor.decompress(packed, PAGE))


def _unsnappy(packed: bytes) -> bytes:
    snappy = importlib.import_module("snappy")
    # The unpacker believes the length in front and allocates it: look before it does.
    if not packed.startswith(_SNAPPY_PAGE):
        raise ValueError("length in front is not that of a page")
    return bytes(snappy.uncompress(packed))


def _unzstd(packed: bytes) -> bytes:
    zstandard = importlib.import_module("zstandard")
    # The size in front is allocated as well, whatever the limit says; not every frame has one.
    claimed = zstandard.frame_content_size(packed)
    if claimed > PAGE:
        raise ValueError(f"claims {claimed} bytes, expected {PAGE}")
    return bytes(zstandard.ZstdDecompressor().decompress(packed, max_output_size=PAGE))


_OPTIONAL: Final[dict[int, tuple[str, Callable[[bytes], bytes]]]] = {
    _LZO: ("lzallright", _unlzo),
    _SNAPPY: ("python-snappy", _unsnappy),
    _ZSTD: ("zstandard", _unzstd),
}

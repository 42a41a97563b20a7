"""The pages of a kdump file: which there are, and the bytes of each.

A bitmap has a bit for each page; the descriptors of the pages that were written follow each other in the same order,
each with the place, the size and the packing of its page. Pages may share their bytes: QEMU keeps one page of zeros,
and a forged dump can have a million pages that are the same bytes of it.
"""

from __future__ import annotations

import importlib
import re
import struct
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import lru_cache
from itertools import accumulate
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from fivefold.errors import FormatError, MachineError, MemoryReadError
from fivefold.memory.base import Extent
from fivefold.memory.files import ByteSource
from fivefold.units import PAGE

if TYPE_CHECKING:
    import numpy.typing as npt

    _Numbers = npt.NDArray[np.int64]
    _Rows = npt.NDArray[np.uint64]

MAX_RUNS: Final = 1 << 20

_DESCRIPTOR: Final = struct.Struct("<QIIQ")
_RANK_STEP: Final = 512  # bytes of bitmap behind one entry of the rank index
_CHUNK: Final = 1 << 13
"""Bytes of bitmap whose descriptors are looked at together: 65,536 pages."""

_SHARED: Final = 4
"""Descriptors that many pages share, and that are looked at to see whether these are empty."""

_KEPT: Final = 64
_KEPT_DESCRIPTORS: Final = 1024

_ZLIB, _LZO, _SNAPPY, _ZSTD = 1, 2, 4, 0x20
_SNAPPY_PAGE: Final = b"\x80\x20"  # 4096 as snappy spells lengths


class _Descriptor(NamedTuple):
    """Where the bytes of a page are in the file, how many, and how they are packed."""

    offset: int
    size: int
    flags: int

    @property
    def packing(self) -> int:
        """The flags that say how."""
        return self.flags & (_ZLIB | _LZO | _SNAPPY | _ZSTD)


class KdumpPages:
    """The pages that were written, in the order of their numbers."""

    def __init__(self, data: ByteSource, bitmap: int, descriptors: int, count: int) -> None:
        """*bitmap* and *descriptors* are places in *data*; *count* is one more than the last page number."""
        self._data = data
        self._descriptors = descriptors
        self._bitmap = data.read_at(bitmap, (count + 7) // 8)
        if count % 8:
            self._bitmap = self._bitmap[:-1] + bytes([self._bitmap[-1] & (1 << count % 8) - 1])
        counts = (
            int.from_bytes(self._bitmap[at : at + _RANK_STEP], "little").bit_count()
            for at in range(0, len(self._bitmap), _RANK_STEP)
        )
        self._ranks = list(accumulate(counts, initial=0))
        need = descriptors + self._ranks[-1] * _DESCRIPTOR.size
        if need > data.size:
            raise FormatError(
                f"{data.name}: {self._ranks[-1]} page descriptors need bytes up to {need:#x}, "
                f"the file ends at {data.size:#x}: truncated or forged; copy or take it again"
            )
        self._descriptor = lru_cache(maxsize=_KEPT_DESCRIPTORS)(self._read_descriptor)
        self._kept: dict[_Descriptor, bytes] = {}

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
        empty = self._empty()
        runs: list[Extent] = []
        for numbers, rows in self._chunks():
            holds = np.ones(len(numbers), bool)
            for offset, packing in empty:
                holds &= (rows[:, 0] != offset) | (rows[:, 1] != packing)
            kept = numbers[holds]
            if not len(kept):
                continue
            breaks = np.flatnonzero(np.diff(kept) != 1)
            for low, high in zip(kept[np.r_[0, breaks + 1]].tolist(), kept[np.r_[breaks, -1]].tolist(), strict=True):
                start = runs.pop().start if runs and runs[-1].end == low * PAGE else low * PAGE
                runs.append(Extent(start, (high + 1) * PAGE))
            if len(runs) > MAX_RUNS:
                return self.extents()
        return runs

    def that_begin(self, head: bytes) -> Iterator[int]:
        """The addresses of pages that begin with *head*; pages that cannot be unpacked do not.

        Pages that are the same bytes of the file are unpacked once for each `_CHUNK` of the bitmap.
        """
        for numbers, rows in self._chunks():
            order, starts = _groups(rows)
            found = [
                number
                for part in np.split(order, starts[1:])
                if self._begins(_descriptor(rows[part[0]].tolist()), head)
                for number in numbers[part].tolist()
            ]
            yield from (number * PAGE for number in sorted(found))

    def _chunks(self) -> Iterator[tuple[_Numbers, _Rows]]:
        """Page numbers with the words of their descriptors, for each part of the bitmap with pages."""
        for at in range(0, len(self._bitmap), _CHUNK):
            block = at // _RANK_STEP
            low, high = self._ranks[block], self._ranks[min(block + _CHUNK // _RANK_STEP, len(self._ranks) - 1)]
            if low == high:
                continue
            part = np.frombuffer(self._bitmap[at : at + _CHUNK], np.uint8)
            numbers = np.flatnonzero(np.unpackbits(part, bitorder="little")) + 8 * at
            raw = self._data.read_at(self._descriptors + low * _DESCRIPTOR.size, (high - low) * _DESCRIPTOR.size)
            yield numbers, np.frombuffer(raw, "<u8").reshape(-1, _DESCRIPTOR.size // 8)

    def _empty(self) -> list[tuple[int, int]]:
        """The first two words of descriptors that many pages share, and whose bytes are zeros."""
        times: Counter[tuple[int, int]] = Counter()
        for _, rows in self._chunks():
            order, starts = _groups(rows)
            counts = np.diff(np.r_[starts, len(order)])
            for group in np.argsort(-counts, kind="stable")[:_SHARED].tolist():
                if counts[group] > 1:
                    offset, packing, _ = rows[order[starts[group]]].tolist()
                    times[offset, packing] += int(counts[group])
        shared = [words for words, _ in times.most_common(_SHARED)]
        return [words for words in shared if self._is_empty(_descriptor(words))]

    def _is_empty(self, descriptor: _Descriptor) -> bool:
        with suppress(FormatError, MachineError):
            return not any(self._unpacked(descriptor, self._data.name))
        return False

    def _begins(self, descriptor: _Descriptor, head: bytes) -> bool:
        with suppress(FormatError):
            if descriptor.packing == _ZLIB and 0 < descriptor.size <= PAGE:
                return _inflate(self._data.read_at(descriptor.offset, descriptor.size), "", len(head)) == head
            return self._unpacked(descriptor, self._data.name).startswith(head)
        return False

    def fetch(self, pa: int, size: int) -> bytes:
        """*size* bytes from *pa*, all inside one extent."""
        first, skip = divmod(pa, PAGE)
        last = (pa + size - 1) // PAGE
        if first == last:
            return self._page(first)[skip : skip + size]
        joined = b"".join(self._page(number) for number in range(first, last + 1))
        return joined[skip : skip + size]

    def _page(self, number: int) -> bytes:
        descriptor = self._descriptor(number)
        page = self._kept.get(descriptor)
        if page is None:
            page = self._unpacked(descriptor, f"{self._data.name}: page {number:#x}")
            if len(self._kept) >= _KEPT:
                self._kept.pop(next(iter(self._kept)))
            self._kept[descriptor] = page
        return page

    def _unpacked(self, descriptor: _Descriptor, where: str) -> bytes:
        offset, size, flags = descriptor
        if not 0 < size <= PAGE:
            raise FormatError(f"{where} has {size} bytes in the file, expected 1 to {PAGE}")
        page = _unpacked(self._data.read_at(offset, size), flags, where)
        if len(page) != PAGE:
            raise FormatError(f"{where} unpacks to {len(page)} bytes, expected {PAGE}")
        return page

    def _read_descriptor(self, number: int) -> _Descriptor:
        at = self._descriptors + self._rank(number) * _DESCRIPTOR.size
        return _Descriptor(*_DESCRIPTOR.unpack(self._data.read_at(at, _DESCRIPTOR.size))[:3])

    def _rank(self, number: int) -> int:
        """How many pages with a smaller number were written."""
        byte, bit = divmod(number, 8)
        if byte >= len(self._bitmap) or not self._bitmap[byte] >> bit & 1:
            raise MemoryReadError(number * PAGE, PAGE, self._data.name)
        block = byte // _RANK_STEP
        before = int.from_bytes(self._bitmap[block * _RANK_STEP : byte], "little").bit_count()
        return self._ranks[block] + before + (self._bitmap[byte] & (1 << bit) - 1).bit_count()


def _descriptor(words: Sequence[int]) -> _Descriptor:
    return _Descriptor(words[0], words[1] & 0xFFFFFFFF, words[1] >> 32)


def _groups(rows: _Rows) -> tuple[_Numbers, _Numbers]:
    """An order of *rows* that has those together that describe the same bytes, and where in it each group begins."""
    order = np.lexsort((rows[:, 1], rows[:, 0]))
    ordered = rows[order, :2]
    return order, np.r_[0, np.flatnonzero((ordered[1:] != ordered[:-1]).any(axis=1)) + 1]


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


def _inflate(packed: bytes, where: str, most: int = PAGE + 1) -> bytes:
    try:
        return zlib.decompressobj().decompress(packed, most)
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

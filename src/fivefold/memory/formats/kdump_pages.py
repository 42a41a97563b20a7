"""The pages of a kdump file: which there are, and the bytes of each.

A bitmap has a bit for each page; the descriptors of the pages that were written follow each other in the same order,
each with the place, the size and the packing of its page. Pages may share their bytes: QEMU keeps one page of zeros,
and a forged dump can have a million pages that are the same bytes of it.
"""

from __future__ import annotations

import struct
import zlib
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from fivefold.errors import FormatError, MachineError, MemoryReadError
from fivefold.memory.base import Extent
from fivefold.memory.files import ByteSource
from fivefold.memory.formats.kdump_bitmap import ranks, runs_of_bits
from fivefold.memory.formats.kdump_packing import PACKED, ZLIB, inflate, unpacked
from fivefold.memory.page_batches import BATCH, PageBatch
from fivefold.memory.page_heads import Sieve
from fivefold.units import GIB, PAGE, format_size

if TYPE_CHECKING:
    import numpy.typing as npt

    _Numbers = npt.NDArray[np.int64]
    _Rows = npt.NDArray[np.uint64]

MAX_RUNS: Final = 1 << 20

LEAST_DESCRIBED: Final = 64 * GIB // PAGE
"""A file of any size may describe so many pages; beyond, one for each byte that it takes on disk."""

LEAST_FILLED: Final = GIB // PAGE
"""And so many that are not known to be empty; beyond, one for each descriptor that fits into what it takes on disk."""

_DESCRIPTOR: Final = struct.Struct("<QIIQ")
_RANK_STEP: Final = 512  # bytes of bitmap behind one entry of the rank index
_CHUNK: Final = 1 << 13
"""Bytes of bitmap whose descriptors are looked at together: 65,536 pages."""

_SHARED: Final = 4
"""Descriptors that many pages share, and that are looked at to see whether these are empty."""

_KEPT: Final = 64
_KEPT_DESCRIPTORS: Final = 1024


class _Descriptor(NamedTuple):
    """Where the bytes of a page are in the file, how many, and how they are packed."""

    offset: int
    size: int
    flags: int

    @property
    def packing(self) -> int:
        """The flags that say how."""
        return self.flags & PACKED


class KdumpPages:
    """The pages that were written, in the order of their numbers."""

    def __init__(self, data: ByteSource, bitmap: int, descriptors: int, count: int, *, on_disk: int) -> None:
        """*bitmap* and *descriptors* are places in *data*; *count* is one more than the last page number.

        *on_disk* is what the file takes there, packed as it is: a dump that describes far more is refused.
        """
        self._data = data
        self._descriptors = descriptors
        self._bitmap = data.read_at(bitmap, (count + 7) // 8)
        if count % 8:
            self._bitmap = self._bitmap[:-1] + bytes([self._bitmap[-1] & (1 << count % 8) - 1])
        self._on_disk = on_disk
        self._ranks = ranks(self._bitmap, _RANK_STEP)
        self._check_share(self._ranks[-1], max(LEAST_DESCRIBED, on_disk), "describes")
        need = descriptors + self._ranks[-1] * _DESCRIPTOR.size
        if need > data.size:
            raise FormatError(
                f"{data.name}: {self._ranks[-1]} page descriptors need bytes up to {need:#x}, "
                f"the file ends at {data.size:#x}: truncated or forged; copy or take it again"
            )
        self._descriptor = lru_cache(maxsize=_KEPT_DESCRIPTORS)(self._read_descriptor)
        self._kept: dict[_Descriptor, bytes] = {}
        self._alike: dict[int, tuple[int, int]] = {}

    def extents(self) -> list[Extent]:
        """Runs of pages that were written, in bytes."""
        runs: list[Extent] = []
        for first, end in runs_of_bits(self._bitmap):
            if runs and runs[-1].end == first * PAGE:
                runs[-1] = Extent(runs[-1].start, end * PAGE)
                continue
            if len(runs) == MAX_RUNS:
                raise FormatError(f"{self._data.name}: more than {MAX_RUNS} separate runs of pages")
            runs.append(Extent(first * PAGE, end * PAGE))
        return runs

    def written(self) -> list[Extent]:
        """The pages that may be anything but zeros: QEMU keeps one page of zeros, and all that are empty share it."""
        runs: list[Extent] = []
        for kept, _ in self._filled():
            breaks = np.flatnonzero(np.diff(kept) != 1)
            for low, high in zip(kept[np.r_[0, breaks + 1]].tolist(), kept[np.r_[breaks, -1]].tolist(), strict=True):
                start = runs.pop().start if runs and runs[-1].end == low * PAGE else low * PAGE
                runs.append(Extent(start, (high + 1) * PAGE))
            if len(runs) > MAX_RUNS:
                return self.extents()
        return runs

    def that_begin(self, head: bytes, sieve: Sieve | None = None) -> Iterator[int]:
        """The addresses of pages that begin with *head*; pages that cannot be unpacked do not.

        Pages that are the same bytes of the file are unpacked once for each `_CHUNK` of the bitmap.
        """
        self._check_filled()
        for numbers, rows in self._filled() if any(head) else self._all_chunks():
            order, starts = _groups(rows)
            ends = np.r_[starts[1:], len(order)]
            begin = self._that_begin(rows[order[starts]], head, sieve)
            found = [number for one in begin for number in numbers[order[starts[one] : ends[one]]].tolist()]
            yield from (number * PAGE for number in sorted(found))

    def _that_begin(self, rows: _Rows, head: bytes, sieve: Sieve | None) -> list[int]:
        """Which of the pages that *rows* describe begin with *head*."""
        offsets, sizes, flags = _columns(rows)
        view, places = self._data.places(offsets, sizes)
        usual = (places >= 0) & (flags == ZLIB) & (sizes > 0) & (sizes <= PAGE)
        packed = np.flatnonzero(usual)
        if sieve is not None:
            packed = packed[sieve(view, places[packed], head[0])]
        found = _packed_that_begin(view, packed, places, places + sizes, head)
        plain = (places >= 0) & (flags == 0) & (sizes == PAGE)
        for number, at in zip(np.flatnonzero(plain).tolist(), places[plain].tolist(), strict=True):
            if view[at : at + len(head)] == head:
                found.append(number)
        for number in np.flatnonzero(~usual & ~plain).tolist():
            if self._begins(_descriptor(rows[number].tolist()), head):
                found.append(number)
        return found

    def _filled(self) -> Iterator[tuple[_Numbers, _Rows]]:
        """`_chunks` without the pages that are known to be empty."""
        empty = self._empty
        for _, numbers, rows in self._chunks({at for at, words in self._alike.items() if words in empty}):
            holds = _not_empty(rows, empty)
            if holds.any():
                yield numbers[holds], rows[holds]

    def _all_chunks(self) -> Iterator[tuple[_Numbers, _Rows]]:
        return ((numbers, rows) for _, numbers, rows in self._chunks())

    def _chunks(self, leave_out: Container[int] = ()) -> Iterator[tuple[int, _Numbers, _Rows]]:
        """Each part of the bitmap with pages: where it begins, page numbers, and the words of their descriptors."""
        for at in range(0, len(self._bitmap), _CHUNK):
            if at in leave_out:
                continue
            block = at // _RANK_STEP
            low, high = self._ranks[block], self._ranks[min(block + _CHUNK // _RANK_STEP, len(self._ranks) - 1)]
            if low == high:
                continue
            part = np.frombuffer(self._bitmap[at : at + _CHUNK], np.uint8)
            numbers = np.flatnonzero(np.unpackbits(part, bitorder="little")) + 8 * at
            raw = self._data.read_at(self._descriptors + low * _DESCRIPTOR.size, (high - low) * _DESCRIPTOR.size)
            yield at, numbers, np.frombuffer(raw, "<u8").reshape(-1, _DESCRIPTOR.size // 8)

    def _check_share(self, pages: int, most: int, does: str) -> None:
        if pages > most:
            raise FormatError(
                f"{self._data.name} {does} {pages} pages, a file that takes {format_size(self._on_disk)} on disk may "
                f"have {most}: forged, or packed once more; unpack it first"
            )

    def _check_filled(self) -> None:
        filled = self._ranks[-1] - sum(self._empty.values())
        self._check_share(filled, max(LEAST_FILLED, self._on_disk // _DESCRIPTOR.size), "fills")

    @cached_property
    def _empty(self) -> dict[tuple[int, int], int]:
        """The first two words of descriptors that many pages share, and whose bytes are zeros; at least so many do."""
        times: Counter[tuple[int, int]] = Counter()
        for at, _, rows in self._chunks():
            order, starts = _groups(rows)
            if len(starts) == 1:
                self._alike[at] = int(rows[0, 0]), int(rows[0, 1])
            counts = np.diff(np.r_[starts, len(order)])
            for group in np.argsort(-counts, kind="stable")[:_SHARED].tolist():
                if counts[group] > 1:
                    offset, packing, _ = rows[order[starts[group]]].tolist()
                    times[offset, packing] += int(counts[group])
        return {words: count for words, count in times.most_common(_SHARED) if self._is_empty(_descriptor(words))}

    def _is_empty(self, descriptor: _Descriptor) -> bool:
        with suppress(FormatError, MachineError):
            return not any(self._unpacked(descriptor, self._data.name))
        return False

    def _begins(self, descriptor: _Descriptor, head: bytes) -> bool:
        with suppress(FormatError):
            if descriptor.packing == ZLIB and 0 < descriptor.size <= PAGE:
                return inflate(self._data.read_at(descriptor.offset, descriptor.size), "", len(head)) == head
            return self._unpacked(descriptor, self._data.name).startswith(head)
        return False

    def fetch(self, pa: int, size: int) -> bytes:
        """*size* bytes from *pa*, all inside one extent."""
        first, skip = divmod(pa, PAGE)
        last = (pa + size - 1) // PAGE
        if first == last:
            return self._page(first)[skip : skip + size]
        rank, count = self._rank(first), last - first + 1
        raw = self._data.read_at(self._descriptors + rank * _DESCRIPTOR.size, count * _DESCRIPTOR.size)
        rows = np.frombuffer(raw, "<u8").reshape(-1, _DESCRIPTOR.size // 8)
        return b"".join(self._all(range(first, last + 1), rows))[skip : skip + size]

    def batches(self, damaged: Callable[[int], None]) -> Iterator[PageBatch]:
        """All pages that may be anything but zeros; *damaged* is told where those are that cannot be unpacked."""
        self._check_filled()
        for numbers, rows in self._filled():
            for at in range(0, len(numbers), BATCH):
                part = slice(at, at + BATCH)
                yield from self._batch(numbers[part], rows[part], damaged)

    def _batch(self, numbers: _Numbers, rows: _Rows, damaged: Callable[[int], None]) -> Iterator[PageBatch]:
        kept: list[int] = []
        pages = bytearray()
        for number, page in self._each(numbers.tolist(), rows):
            if isinstance(page, FormatError):
                damaged(number * PAGE)
            else:
                kept.append(number)
                pages += page
        if kept:
            addresses = np.array(kept, np.uint64) * np.uint64(PAGE)
            yield PageBatch(addresses, np.frombuffer(pages, "<u8").reshape(-1, 512))

    def _all(self, numbers: Sequence[int], rows: _Rows) -> Iterator[bytes]:
        for _, page in self._each(numbers, rows):
            if isinstance(page, FormatError):
                raise page
            yield page

    def _each(self, numbers: Sequence[int], rows: _Rows) -> Iterator[tuple[int, bytes | FormatError]]:
        """The pages that *rows* describe, or what is wrong with them; the same bytes in a row are unpacked once."""
        offsets, sizes, flags = _columns(rows)
        view, places = self._data.places(offsets, sizes)
        last, page = None, b""
        for number, at, size, flag, row in zip(
            numbers, places.tolist(), sizes.tolist(), flags.tolist(), range(len(rows)), strict=True
        ):
            if (at, size, flag) == last:
                yield number, page
                continue
            last = None
            if at >= 0 and flag == ZLIB and 0 < size <= PAGE:
                with suppress(zlib.error):
                    page = zlib.decompressobj().decompress(view[at : at + size], PAGE + 1)
                    last = (at, size, flag)
            elif at >= 0 and flag == 0 and size == PAGE:
                page, last = bytes(view[at : at + size]), (at, size, flag)
            if last is None or len(page) != PAGE:
                last = None
                try:
                    page = self._unpacked(_descriptor(rows[row].tolist()), f"{self._data.name}: page {number:#x}")
                except FormatError as error:
                    yield number, error
                    continue
            yield number, page

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
        page = unpacked(self._data.read_at(offset, size), flags, where)
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


def _packed_that_begin(view: memoryview, numbers: _Numbers, starts: _Numbers, ends: _Numbers, head: bytes) -> list[int]:
    """Which of the zlib streams *numbers*, each from a start to an end in *view*, begin with *head* unpacked.

    There are some 100,000 of them in a gigabyte that is used, so the loop does nothing else; a sieve goes before it.
    """
    found, inflater, size = [], zlib.decompressobj, len(head)
    for number, start, end in zip(numbers.tolist(), starts[numbers].tolist(), ends[numbers].tolist(), strict=True):
        try:
            if inflater().decompress(view[start:end], size) == head:
                found.append(number)
        except zlib.error:
            continue
    return found


def _columns(rows: _Rows) -> tuple[_Numbers, _Numbers, _Numbers]:
    """Where the bytes are, how many, and the flags that say how they are packed."""
    packing = np.uint64(PACKED)
    columns = (rows[:, 0], rows[:, 1] & np.uint64(0xFFFFFFFF), rows[:, 1] >> np.uint64(32) & packing)
    offsets, sizes, flags = (column.astype(np.int64) for column in columns)
    return offsets, sizes, flags


def _not_empty(rows: _Rows, empty: Iterable[tuple[int, int]]) -> npt.NDArray[np.bool_]:
    """Which *rows* do not describe one of the *empty* pages."""
    holds = np.ones(len(rows), np.bool_)
    for offset, packing in empty:
        holds &= (rows[:, 0] != offset) | (rows[:, 1] != packing)
    return holds


def _descriptor(words: Sequence[int]) -> _Descriptor:
    return _Descriptor(words[0], words[1] & 0xFFFFFFFF, words[1] >> 32)


def _groups(rows: _Rows) -> tuple[_Numbers, _Numbers]:
    """An order of *rows* that has those together that describe the same bytes, and where in it each group begins."""
    if (rows[:, :2] == rows[0, :2]).all():
        return np.arange(len(rows)), np.zeros(1, np.int64)
    if (rows[1:, 0] > rows[:-1, 0]).all():
        return np.arange(len(rows)), np.arange(len(rows))
    order = np.lexsort((rows[:, 1], rows[:, 0]))
    ordered = rows[order, :2]
    return order, np.r_[0, np.flatnonzero((ordered[1:] != ordered[:-1]).any(axis=1)) + 1]

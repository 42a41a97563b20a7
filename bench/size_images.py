"""Memories of sizes that servers have, for sizes.py: a guest's tables in a kdump or a raw image, sparse on disk.

The tables are those of a capture in tests/data; what else the memory holds is made here.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np

from fivefold.memory import Source, open_source
from fivefold.units import GIB, PAGE, PhysAddr

GUEST: Final = Path(__file__).parent.parent / "tests" / "data" / "guests" / "debian-la48-nokaslr-6G-pc.elf.xz"
TIB: Final = 1 << 40
_HEADER: Final = struct.Struct("<8si390s6x16sIiiIIIIIIi")
_SUB: Final = struct.Struct("<QiiQQQQQQQQQQQ")
_DESCRIPTOR: Final = struct.Struct("<QIIQ")
_ZLIB: Final = 1
KINDS: Final = 256
"""Different pages of data; each is in the file once for every place that has it, as a dumper writes it."""


class Made(NamedTuple):
    """A file, and how to ask for the address space in it."""

    path: Path
    options: tuple[str, ...]


def guest_pages() -> tuple[dict[int, bytes], int]:
    """The pages of the capture by their numbers, and its root."""
    with open_source(GUEST) as source:
        return dict(_pages(source)), int(source.cpus[0].cr3)


def _pages(source: Source) -> Iterator[tuple[int, bytes]]:
    for start, end in source.extents:
        for at in range(start, end, PAGE):
            yield at // PAGE, source.memory.read(PhysAddr(at), PAGE)


def data_pages() -> list[bytes]:
    """Pages as memory has them: words of text, code and pointers, which pack to a third."""
    rng = np.random.default_rng(12)
    words = rng.integers(0, 1 << 62, 300, dtype=np.uint64) << np.uint64(1)
    return [words[rng.integers(0, len(words), 512)].astype("<u8").tobytes() for _ in range(KINDS)]


class KdumpWriter:
    """Writes a kdump file page by page, in the order of their numbers; what is not written is a hole."""

    def __init__(self, path: Path, pages: int, written: Iterable[int]) -> None:
        """*pages* is one more than the highest number; *written* are the numbers that come, ascending."""
        self._numbers = np.fromiter(written, np.int64)
        bits = np.zeros(-(-pages // 8), np.uint8)
        np.bitwise_or.at(bits, self._numbers >> 3, (1 << (self._numbers & 7)).astype(np.uint8))
        half = -(-len(bits) // PAGE) * PAGE
        self._file = path.open("wb")
        header = (b"KDUMP   ", 6, b"", b"", 0, PAGE, 1, 2 * half // PAGE, 0, len(self._numbers), 0, 0, 0, 1)
        self._file.write(_HEADER.pack(*header))
        self._file.seek(PAGE)
        self._file.write(_SUB.pack(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, pages))
        for copy in range(2):
            self._file.seek(2 * PAGE + copy * half)
            self._file.write(bits)
        self._at = 2 * PAGE + 2 * half
        self._data = self._at + _DESCRIPTOR.size * len(self._numbers)
        self._shared: dict[bytes, tuple[int, int]] = {}

    def write(self, pages: Iterable[bytes]) -> None:
        """All pages, one for each number; pages of zeros are in the file once, others each time."""
        descriptors = bytearray()
        packed_before: dict[bytes, bytes] = {}
        empty: int | None = None
        self._file.seek(self._data)
        for page in pages:
            packed = packed_before.get(page)
            if packed is None:
                packed = packed_before[page] = zlib.compress(page, 1)
            if page == bytes(PAGE) and empty is not None:
                descriptors += _DESCRIPTOR.pack(empty, len(packed), _ZLIB, 0)
                continue
            empty = self._data if page == bytes(PAGE) else empty
            descriptors += _DESCRIPTOR.pack(self._data, len(packed), _ZLIB, 0)
            self._file.write(packed)
            self._data += len(packed)
        self._file.seek(self._at)
        self._file.write(descriptors)
        self._file.close()


def kdump(path: Path, pages: int, others: Iterable[int], *, empty: bool = False) -> Made:
    """The guest in a kdump of *pages* page numbers, with data at *others*; *empty*: all others are there, as zeros."""
    guest, root = guest_pages()
    data = data_pages()
    filled = set(others) - guest.keys()
    numbers = range(pages) if empty else sorted(filled | guest.keys())
    zeros = bytes(PAGE)

    def page(number: int) -> bytes:
        return guest[number] if number in guest else data[number % KINDS] if number in filled else zeros

    KdumpWriter(path, pages, numbers).write(map(page, numbers))
    return Made(path, ("--cr3", hex(root), "--levels", "4"))


def nine_gib(path: Path) -> Made:
    """A guest of 9 GiB, of which 430 MiB are used: every page is in the dump."""
    return kdump(path, 9 * GIB // PAGE, range(0x10_0000, 0x10_0000 + 110_000), empty=True)


def one_tib(path: Path) -> Made:
    """A kdump whose bitmap has 2**28 bits, and which has some 100,000 pages, anywhere."""
    return kdump(path, TIB // PAGE, range(0x20_0000, TIB // PAGE, 2600))


def isolated(path: Path) -> Made:
    """A kdump of 70,000 pages that do not touch each other."""
    return kdump(path, 16 * GIB // PAGE, range(0x20_0001, 0x20_0001 + 140_000, 2))


def damaged(path: Path) -> Made:
    """A kdump in which one page of data is broken."""
    made = kdump(path, 8 * GIB // PAGE, range(0x1F_0000, 0x1F_1000))
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(size - 200)
        file.write(b"\xff" * 200)
    return made


def sparse(path: Path) -> Made:
    """A raw image of 1 TiB that is sparse on disk: the guest's tables, and a page of data in each 16 MiB."""
    guest, root = guest_pages()
    data = data_pages()
    with path.open("wb") as file:
        file.truncate(TIB)
        for number, page in guest.items():
            file.seek(number * PAGE)
            file.write(page)
        for number in range(0x20_0000, TIB // PAGE, 4096):
            file.seek(number * PAGE)
            file.write(data[number % KINDS])
    return Made(path, ("--cr3", hex(root), "--levels", "4", "--ram-map", "0-1T"))

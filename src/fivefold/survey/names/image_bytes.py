"""The bytes of a kernel's image as it is mapped, to look for tables in."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from operator import attrgetter
from typing import Final

import numpy as np

from fivefold.arch import AddressSpace, Mapped, translate
from fivefold.errors import MemoryReadError
from fivefold.memory import Extent, SourceMemory
from fivefold.survey.guest.vmcoreinfo import KERNEL_WINDOW
from fivefold.survey.scan.scan_result import RegionKind, ScanResult
from fivefold.units import GIB, MIB, PAGE, PhysAddr, VirtAddr

MOST_OF_IMAGE: Final = 256 * MIB
"""Bytes of one piece that are read; images are of some 10 to 100 MiB."""

MOST_PAGES: Final = 96 * MIB // PAGE
"""Pages that are looked up one by one, some 40 µs each."""

LEAST_OF_PIECE: Final = MIB
"""Kallsyms alone take more."""

_STEP: Final = MIB


@dataclass(frozen=True, slots=True)
class ImagePiece:
    """What is mapped from *start* on without a gap; what is not in memory is zero."""

    start: int
    data: bytearray


ImageRow = tuple[int, int, int]
"""Virtual address, size, physical address."""


def image_rows(scan: ScanResult) -> list[ImageRow]:
    """What the kernel maps for itself in the window of its image, ascending.

    Where it is all user-mode pages, those: as a guest of Xen's paravirtualisation a kernel runs at privilege level 3.
    Such rows may be of pages that lie anywhere, of which only the first one's address is told.
    """
    inside = (scan.start >= np.uint64(KERNEL_WINDOW)) & (scan.start < np.uint64(KERNEL_WINDOW + GIB))
    inside &= scan.kind == RegionKind.MAPPED
    own = inside & scan.contiguous & ~scan.user
    rows = np.flatnonzero(own if own.any() else inside & scan.user)
    return list(zip(*(part[rows].tolist() for part in (scan.start, scan.size, scan.phys)), strict=True))


def single_pages(scan: ScanResult, tables: AddressSpace) -> list[ImageRow]:
    """`image_rows` where pages lie anywhere: each page is looked up, up to `MOST_PAGES`; empty for other kernels."""
    rows = [(start, size) for start, size, _ in image_rows(scan)]
    if not rows or not scan.user[scan.start == np.uint64(rows[0][0])].any():
        return []
    pages = islice((va for start, size in rows for va in range(start, start + size, PAGE)), MOST_PAGES)
    found = ((va, translate(tables, VirtAddr(va))) for va in pages)
    return [(va, PAGE, int(leads.pa)) for va, leads in found if isinstance(leads, Mapped)]


def image_pieces(scan: ScanResult, memory: SourceMemory, tables: AddressSpace) -> Iterator[ImagePiece]:
    """The bytes of `image_rows`, by virtual address: a piece for each run of rows without a gap.

    Pages of an image that lies anywhere are looked up in *tables*. Pieces of which next to nothing is in memory, as in
    a dump of tables alone, are left out.
    """
    runs: list[list[ImageRow]] = []
    for start, size, phys in single_pages(scan, tables) or image_rows(scan):
        if runs and sum(runs[-1][-1][:2]) == start:
            runs[-1].append((start, size, phys))
        else:
            runs.append([(start, size, phys)])
    extents = memory.extents
    for run in runs:
        if (piece := _piece(run, memory, extents)) is not None:
            yield piece


def _piece(run: list[ImageRow], memory: SourceMemory, extents: list[Extent]) -> ImagePiece | None:
    first = run[0][0]
    parts = [
        (va - first + low - phys, low, high) for va, size, phys in run for low, high in _inside(extents, phys, size)
    ]
    if sum(high - low for _, low, high in parts) < LEAST_OF_PIECE:
        return None
    data = bytearray(min(sum(size for _, size, _ in run), MOST_OF_IMAGE))
    for offset, low, high in parts:
        _copy(memory, low, memoryview(data)[offset : offset + high - low])
    return ImagePiece(first, data)


def _inside(extents: list[Extent], phys: int, size: int) -> Iterator[tuple[int, int]]:
    """What there is of a run of physical memory: the ends of each part."""
    end = phys + size
    for number in range(max(bisect_right(extents, phys, key=attrgetter("start")) - 1, 0), len(extents)):
        low, high = max(phys, extents[number].start), min(end, extents[number].end)
        if extents[number].start >= end:
            return
        if low < high:
            yield low, high


def _copy(memory: SourceMemory, phys: int, into: memoryview) -> None:
    """Fill *into* from *phys* on, a step at a time; a step that cannot be read stays zero."""
    for at in range(0, len(into), _STEP):
        size = min(_STEP, len(into) - at)
        try:
            into[at : at + size] = memory.read(PhysAddr(phys + at), size)
        except MemoryReadError:
            continue

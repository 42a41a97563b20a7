"""Which Linux a kernel image says that it is: ``Linux version …``, looked for in what is mapped of the image only."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final
from weakref import WeakKeyDictionary

import numpy as np

from fivefold.errors import MemoryReadError
from fivefold.memory import SourceMemory
from fivefold.survey.guest.vmcoreinfo import KERNEL_WINDOW
from fivefold.survey.scan.scan_result import RegionKind, ScanResult
from fivefold.units import GIB, MIB, PhysAddr

MOST_OF_IMAGE: Final = 96 * MIB
"""So much of an image is searched; the banner is read-only data, which follows the code."""

_BANNER: Final = re.compile(rb"Linux version ([0-9]+\.[0-9]+[!-~]{0,60}) \(")
_PIECE: Final = MIB
_OVERLAP: Final = 128

Runs = tuple[tuple[int, int], ...]
"""Physical ranges: start and size."""


@dataclass(frozen=True, slots=True)
class ImageBanner:
    """The *release* in the banner and the physical address *at* which that stands; None and 0 without a banner.

    *is_whole*: all of the image that is mapped was read, and is not empty, so that the lack of a banner says something.
    """

    release: str | None
    at: int
    is_whole: bool


_KNOWN: WeakKeyDictionary[SourceMemory, dict[Runs, ImageBanner]] = WeakKeyDictionary()


def image_banner(scan: ScanResult, memory: SourceMemory) -> ImageBanner:
    """The banner in the kernel image that *scan* has mapped in the kernel's window."""
    runs = _image_runs(scan)
    known = _KNOWN.setdefault(memory, {})
    if runs not in known:
        known[runs] = _search(runs, memory)
    return known[runs]


def _image_runs(scan: ScanResult) -> Runs:
    """What is mapped from the first code in the window on, as far as it is contiguous in physical memory."""
    inside = (scan.start >= np.uint64(KERNEL_WINDOW)) & (scan.start < np.uint64(KERNEL_WINDOW + GIB))
    rows = np.flatnonzero(inside & (scan.kind == RegionKind.MAPPED) & scan.contiguous)
    code = rows[scan.executable[rows]]
    if not len(code):
        return ()
    rows = rows[rows >= code[0]]
    return tuple(zip(scan.phys[rows].tolist(), scan.size[rows].tolist(), strict=True))


def _search(runs: Runs, memory: SourceMemory) -> ImageBanner:
    left, whole, filled = MOST_OF_IMAGE, bool(runs), False
    for start, size in runs:
        tail = b""
        for at in range(start, start + size, _PIECE):
            if left <= 0:
                return ImageBanner(None, 0, is_whole=False)
            want = min(_PIECE, start + size - at)
            left -= want
            try:
                piece = memory.read(PhysAddr(at), want)
            except MemoryReadError:
                whole, tail = False, b""
                continue
            filled = filled or piece.count(0) != len(piece)
            if (found := _BANNER.search(tail + piece)) is not None:
                return ImageBanner(found[1].decode("ascii"), at - len(tail) + found.start(), is_whole=True)
            tail = piece[-_OVERLAP:]
    return ImageBanner(None, 0, whole and filled)

"""Which pages begin with some bytes: one word of each is looked at, so that large memories are searched fast."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Final

from fivefold.memory.base import Extent
from fivefold.memory.page_batches import parts_of
from fivefold.units import MIB, PAGE

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Numbers = npt.NDArray[np.int64]

Sieve = Callable[[memoryview, "Numbers", int], "Numbers"]
"""Tells of zlib streams that begin at places of a buffer, by their numbers, which may unpack to something that begins
with a byte: all that do are among them."""

_WORD: Final = 8
_PAGES: Final = 1 << 16
"""Pages that are looked at together."""

_STEP: Final = MIB


def in_buffer(start: int, data: memoryview, written: Sequence[Extent], head: bytes) -> Iterator[int]:
    """The pages of *data*, which lies at *start*, that begin with *head* (8 bytes or more), as physical addresses.

    Only what is in *written*, ascending, is looked at.
    """
    skip = -start % PAGE
    count = (len(data) - skip) // PAGE
    if count <= 0:
        return
    import numpy as np  # a log is explained without it

    words = np.frombuffer(data, "<u8", count * (PAGE // _WORD), skip)[:: PAGE // _WORD]
    wanted = np.uint64(int.from_bytes(head[:_WORD], "little"))
    for numbers in _numbered(start + skip, count, written):
        for number in numbers[words[numbers] == wanted].tolist():
            offset = skip + number * PAGE
            if data[offset : offset + len(head)] == head:
                yield start + offset


def _numbered(start: int, count: int, written: Sequence[Extent]) -> Iterator[npt.NDArray[np.intp]]:
    """The numbers of the pages that may hold something, ascending, some at a time."""
    import numpy as np

    held: list[npt.NDArray[np.intp]] = []
    pages = 0
    for low, high in parts_of(start, count, written):
        for at in range(low, high, _PAGES):
            held.append(np.arange(at, min(at + _PAGES, high)))
            pages += len(held[-1])
            if pages >= _PAGES:
                yield np.concatenate(held)
                held, pages = [], 0
    if held:
        yield np.concatenate(held)


def by_fetching(written: Sequence[Extent], fetch: Callable[[int, int], bytes], head: bytes) -> Iterator[int]:
    """Like `in_buffer`, for memory behind a function that reads it."""
    for extent in written:
        for at in range(extent.start + -extent.start % PAGE, extent.end, _STEP):
            part = fetch(at, min(_STEP, extent.end - at))
            for offset in range(0, len(part), PAGE):
                if part.startswith(head, offset):
                    yield at + offset

"""All of a memory that may be anything but zeros, page by page, some at a time: so that its size does not matter."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from operator import attrgetter
from typing import TYPE_CHECKING, Final, NamedTuple

from fivefold.memory.base import Extent
from fivefold.units import MIB, PAGE

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from fivefold.memory.banked import Bank

    Words = npt.NDArray[np.uint64]

BATCH: Final = 2048
"""Pages that are looked at together at most."""

_LONG: Final = 64
"""A run of so many pages or more is looked at in place; shorter ones are copied together."""

_STEP: Final = MIB


class PageBatch(NamedTuple):
    """Whole pages: their *addresses*, ascending, and a row of 512 entries for each."""

    addresses: Words
    rows: Words

    @property
    def bytes(self) -> int:
        """How many bytes they are."""
        return PAGE * len(self.addresses)


def in_buffers(banks: Iterable[Bank], written: Sequence[Extent]) -> Iterator[PageBatch]:
    """The whole pages of *banks* that touch *written*, ascending; a page comes once."""
    import numpy as np  # a log is explained without it

    short: list[tuple[int, Words]] = []
    held = 0
    for bank in _with_seams(banks):
        skip = -bank.start % PAGE
        count = (len(bank.data) - skip) // PAGE if len(bank.data) > skip else 0
        if count <= 0:
            continue
        start, rows = bank.start + skip, np.frombuffer(bank.data, "<u8", count * 512, skip).reshape(count, 512)
        for low, high in parts_of(start, count, written):
            for at in range(low, high, BATCH):
                part = rows[at : min(at + BATCH, high)]
                if held + len(part) > BATCH or (short and len(part) >= _LONG):
                    yield _joined(short)
                    short, held = [], 0
                if len(part) >= _LONG:
                    yield _joined([(start + at * PAGE, part)])
                else:
                    short.append((start + at * PAGE, part))
                    held += len(part)
    if short:
        yield _joined(short)


def _with_seams(banks: Iterable[Bank]) -> Iterator[Bank]:
    """*banks*, and each page that lies in several of them that touch as one of its own, ascending."""
    from fivefold.memory.banked import Bank  # which takes batches from here

    begun, start = b"", 0
    for bank in banks:
        begun = begun + bytes(bank.data[: PAGE - len(begun)]) if begun and start + len(begun) == bank.start else b""
        if len(begun) == PAGE:
            yield Bank(start, memoryview(begun))
        yield bank
        rest = bank.end % PAGE
        if len(bank.data) >= rest:
            begun, start = bytes(bank.data[len(bank.data) - rest :]), bank.end - rest


def _joined(runs: list[tuple[int, Words]]) -> PageBatch:
    import numpy as np

    addresses = [np.uint64(start) + np.uint64(PAGE) * np.arange(len(rows), dtype=np.uint64) for start, rows in runs]
    if len(runs) == 1:
        return PageBatch(addresses[0], runs[0][1])
    return PageBatch(np.concatenate(addresses), np.concatenate([rows for _, rows in runs]))


def parts_of(start: int, count: int, written: Sequence[Extent]) -> Iterator[tuple[int, int]]:
    """Which of *count* pages from *start* on may hold something: numbers, the end exclusive; a page comes once."""
    done = 0
    for index in range(bisect_right(written, start, key=attrgetter("end")), len(written)):
        first = max((written[index].start - start) // PAGE, done)
        done = min(-(-(written[index].end - start) // PAGE), count)
        if first >= count:
            return
        if first < done:
            yield first, done


Parts = Callable[[int, int], Iterator[tuple[int, bytes | None]]]


def by_fetching(extents: Sequence[Extent], written: Sequence[Extent], parts: Parts) -> Iterator[PageBatch]:
    """Like `in_buffers`, for memory of *extents* behind a function that reads a part of one.

    *parts* gives pieces with their addresses, None for what cannot be read: pages with such a piece are left out.
    """
    import numpy as np  # a log is explained without it

    short: list[tuple[int, Words]] = []
    held = 0
    for extent in extents:
        start = extent.start + -extent.start % PAGE
        for low, high in parts_of(start, max((extent.end - start) // PAGE, 0), written):
            for at in range(start + low * PAGE, start + high * PAGE, _STEP):
                for where, data in parts(at, min(at + _STEP, start + high * PAGE)):
                    if data is None:
                        continue
                    short.append((where, np.frombuffer(data, "<u8").reshape(-1, 512)))
                    held += len(data) // PAGE
                if held >= _STEP // PAGE:
                    yield _joined(short)
                    short, held = [], 0
    if short:
        yield _joined(short)

"""Read-only physical memory: in buffers, or behind something that is asked page by page."""

from __future__ import annotations

import mmap
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from itertools import pairwise
from operator import attrgetter
from types import TracebackType
from typing import Final, NamedTuple, Protocol, Self

from fivefold.errors import DamagedPageError, FormatError, MachineError, MemoryReadError, both_told
from fivefold.memory import page_batches, page_heads
from fivefold.memory.base import Extent, PhysReader
from fivefold.memory.page_batches import PageBatch
from fivefold.memory.spans import extents_of
from fivefold.units import GIB, PAGE, PhysAddr

MAX_COPY: Final = 8 * GIB
"""How much `PagedMemory.banks` copies at most by default."""

COPY_STEP: Final = 1 << 20

_NO_RESERVE: Final = 0x4000
"""MAP_NORESERVE of Linux: memory may be far larger than what is written of it."""


class Bank(NamedTuple):
    """A run of physical memory and its bytes."""

    start: int
    data: memoryview

    @property
    def end(self) -> int:
        """Exclusive."""
        return self.start + len(self.data)


class SourceMemory(PhysReader, Protocol):
    """Read-only physical memory with its extents, and as buffers for native code.

    ``extents`` are ascending and never touch. ``banks`` are ascending and do not overlap, but two may
    touch. ``zero_copy`` says whether ``banks`` costs nothing, ``searchable`` whether reading all of it takes seconds
    rather than minutes.
    """

    name: str
    zero_copy: bool
    searchable: bool

    @property
    def extents(self) -> list[Extent]:
        """Runs that can be read."""
        ...

    def banks(self) -> list[Bank]:
        """All memory as buffers, read-only; valid until `close`."""
        ...

    def written(self) -> list[Extent]:
        """The parts of `extents` that may hold anything but zeros; more may be listed than need be."""
        ...

    def pages_that_begin(self, head: bytes, /, sieve: page_heads.Sieve | None = None) -> Iterator[int]:
        """The addresses of pages that begin with *head*, of 8 bytes or more, ascending; *sieve* changes no answer."""
        ...

    def page_batches(self) -> Iterator[PageBatch]:
        """All whole pages that may be anything but zeros, ascending; pages that cannot be read are left out."""
        ...

    def readable(self, pa: PhysAddr, size: int, /) -> Iterator[tuple[int, bytes]]:
        """What can be read of *size* bytes inside one extent, as pieces with their addresses, ascending."""
        ...

    def when_closed(self, action: Callable[[], None], /) -> None:
        """Have *action* run by `close`, before what was registered earlier."""
        ...

    def close(self) -> None:
        """Let go of files, sockets and copies; reading afterwards raises `MemoryReadError`."""
        ...


class _Closing:
    """Runs what was registered when closed, last first, once."""

    def __init__(self, on_close: Callable[[], None] | None) -> None:
        self.closed = False
        self._on_close = ExitStack()
        if on_close is not None:
            self._on_close.callback(on_close)

    def when_closed(self, action: Callable[[], None]) -> None:
        """Have *action* run by `close`, before what was registered earlier."""
        self._on_close.callback(action)

    def close(self) -> None:
        """Let go of buffers, copies, files and sockets; closing twice does nothing."""
        self.closed = True
        self._forget()
        self._on_close.close()  # all of it, also where a part fails

    def _forget(self) -> None:
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with both_told(error):
            self.close()


class BankedMemory(_Closing):
    """Memory that lies in buffers of this process: a mapped file, guest RAM that is shared.

    *on_close* is called once; *check* before every access, to raise where the buffers' file
    is no longer what it was; *written* says which parts may be anything but zeros.

    >>> ram = BankedMemory([Bank(0x1000, memoryview(b"abcd")), Bank(0x1004, memoryview(b"efgh"))], "demo")
    >>> ram.read(PhysAddr(0x1002), 4)
    b'cdef'
    """

    zero_copy = True
    searchable = True

    def __init__(
        self,
        banks: Iterable[Bank],
        name: str,
        *,
        on_close: Callable[[], None] | None = None,
        check: Callable[[], None] | None = None,
        written: Callable[[], list[Extent]] | None = None,
    ) -> None:
        """*banks* in any order; `ValueError` when two overlap."""
        super().__init__(on_close)
        self.name = name
        self._banks = sorted((bank for bank in banks if len(bank.data)), key=lambda bank: bank.start)
        for low, high in pairwise(self._banks):
            if high.start < low.end:
                raise ValueError(f"banks overlap at {high.start:#x}")
        self._starts = [bank.start for bank in self._banks]
        self.check = check or (lambda: None)
        self._written = written

    @property
    def extents(self) -> list[Extent]:
        """Runs that can be read, ascending; banks that touch are one run."""
        return extents_of((bank.start, bank.end) for bank in self._banks)

    def banks(self) -> list[Bank]:
        """The buffers themselves."""
        self.check()
        return list(self._banks)

    def written(self) -> list[Extent]:
        """What is on disk of a sparse file, else all there is."""
        self.check()
        return self.extents if self._written is None else self._written()

    def pages_that_begin(self, head: bytes, /, sieve: page_heads.Sieve | None = None) -> Iterator[int]:
        """The addresses of pages that begin with *head*, ascending; none is packed, so *sieve* is not asked."""
        written = self.written()
        for bank in self.banks():
            yield from page_heads.in_buffer(bank.start, bank.data, written, head)

    def page_batches(self) -> Iterator[PageBatch]:
        """The pages in place, without a copy where many follow each other."""
        for batch in page_batches.in_buffers(self.banks(), self.written()):
            yield batch
            self.check()

    def readable(self, pa: PhysAddr, size: int, /) -> Iterator[tuple[int, bytes]]:
        """All of it, in one piece."""
        yield pa, self.read(pa, size)

    def read(self, pa: PhysAddr, size: int, /) -> bytes:
        """Exactly *size* bytes, which may lie in several banks that touch."""
        self.check()
        parts, at, end = [], int(pa), pa + size
        index = bisect_right(self._starts, at) - 1
        while index >= 0:
            bank = self._banks[index] if index < len(self._banks) else None
            if bank is None or not bank.start <= at < bank.end:
                break
            parts.append(bytes(bank.data[at - bank.start : end - bank.start]))
            at += len(parts[-1])
            if at == end:
                return parts[0] if len(parts) == 1 else b"".join(parts)
            index += 1
        raise MemoryReadError(pa, size, self.name)

    def _forget(self) -> None:
        self._banks, self._starts = [], []


class PagedMemory(_Closing):
    """Memory behind a function that reads it: a compressed dump, another process, a stub.

    *fetch* gets an address and a size inside one extent and returns exactly that many
    bytes. Nothing is cached here: a live guest is read anew each time.
    """

    zero_copy = False
    searchable = True

    def __init__(
        self,
        extents: Iterable[Extent],
        fetch: Callable[[int, int], bytes],
        name: str,
        *,
        on_close: Callable[[], None] | None = None,
        max_copy: int = MAX_COPY,
        max_written: int | None = None,
        written: Callable[[], list[Extent]] | None = None,
        heads: Callable[[bytes, page_heads.Sieve | None], Iterator[int]] | None = None,
        batches: Callable[[Callable[[int], None]], Iterator[PageBatch]] | None = None,
        searchable: bool = True,
    ) -> None:
        """*extents* ascending and apart; `banks` copies at most *max_copy* bytes, *max_written* of them not zeros.

        *written* as for `BankedMemory`; *heads* finds pages by how they begin, and *batches* gives all
        that are written, where that takes less than reading all; the latter is given what to tell of damaged pages.
        """
        super().__init__(on_close)
        self.name = name
        self.max_copy = max_copy
        self._max_written = max_written
        self._extents = extents_of(extents)
        self._starts = [extent.start for extent in self._extents]
        self._fetch = fetch
        self._written = written
        self._heads = heads
        self._batches = batches
        self.searchable = searchable
        self._copies: list[Bank] | None = None
        self.left_out: dict[int, None] = {}
        """Pages that could not be copied or searched."""

    @property
    def extents(self) -> list[Extent]:
        """Runs that can be read, ascending."""
        return list(self._extents)

    def written(self) -> list[Extent]:
        """What may be anything but zeros, where the format says so; else all there is."""
        return self.extents if self._written is None else self._written()

    def pages_that_begin(self, head: bytes, /, sieve: page_heads.Sieve | None = None) -> Iterator[int]:
        """The addresses of pages that begin with *head*, ascending; pages that cannot be read do not."""
        heads = self._heads
        return page_heads.by_fetching(self.written(), self._fetched, head) if heads is None else heads(head, sieve)

    def page_batches(self) -> Iterator[PageBatch]:
        """The pages, read some at a time; damaged ones are left out and noted in `left_out`."""
        if self._batches is not None:
            return self._batches(self._leave_out)
        return page_batches.by_fetching(self._extents, self.written(), self._read_parts)

    def readable(self, pa: PhysAddr, size: int, /) -> Iterator[tuple[int, bytes]]:
        """What is not damaged of it, in as few pieces as can be; what is, is noted in `left_out`."""
        self._check_inside(pa, size)
        try:
            yield pa, self._fetch(pa, size)
            return
        except FormatError:
            pass
        run: list[bytes] = []
        start = int(pa)
        for at, length in _pages(pa, pa + size):
            part = self._page(at, length)
            if part is not None:
                start = start if run else at
                run.append(part)
            elif run:
                yield start, b"".join(run)
                run = []
        if run:
            yield start, b"".join(run)

    def _leave_out(self, pa: int) -> None:
        self.left_out[pa] = None

    def _fetched(self, pa: int, size: int) -> bytes:
        """These bytes, zeros in place of pages that cannot be read."""
        try:
            return self._fetch(pa, size)
        except FormatError:
            return b"".join(self._page(at, step) or bytes(step) for at, step in _pages(pa, pa + size))

    def read(self, pa: PhysAddr, size: int, /) -> bytes:
        """Exactly *size* bytes inside one extent, or `MemoryReadError`; a page that is damaged is a hole."""
        self._check_inside(pa, size)
        try:
            return self._fetch(pa, size)
        except FormatError as error:
            for at, part in self._read_parts(pa, pa + size):
                if part is None:
                    raise DamagedPageError(at, PAGE, self.name, error) from error
            raise

    def _check_inside(self, pa: int, size: int) -> None:
        index = bisect_right(self._starts, pa) - 1
        if size <= 0 or index < 0 or pa + size > self._extents[index].end:
            raise MemoryReadError(pa, size, self.name)

    def banks(self) -> list[Bank]:
        """Copy all memory once and return the copies; `MachineError` above *max_copy* bytes that may not be zeros.

        What `written` leaves out is neither read nor counted: it is zeros, and takes no memory here. Pages that
        cannot be read, as damaged ones of a dump, are left out and counted in `left_out`.
        """
        if self._copies is None:
            wanted = self.written()
            filled = sum(extent.end - extent.start for extent in wanted)
            if filled > self.max_copy:
                raise MachineError(f"cannot copy {self.name}: {filled} bytes, at most {self.max_copy} are allowed")
            total = sum(extent.end - extent.start for extent in self._extents)
            try:
                # One mapping for all: a process may have some 65,000, and a dump has a million runs.
                # Anonymous, so that runs of zeros cost nothing until they are read.
                copy = mmap.mmap(-1, max(total, 1), mmap.MAP_SHARED | _NO_RESERVE)
            except OSError as error:
                raise MachineError(f"cannot copy {self.name}: no room for {total} bytes") from error
            self._copies = list(self._copied(copy, wanted))
        return list(self._copies)

    def _copied(self, copy: mmap.mmap, wanted: list[Extent]) -> Iterator[Bank]:
        view, used, written = memoryview(copy), 0, 0
        for extent in self._extents:
            start = None
            for at, part in self._parts(extent, wanted):
                if part is None:
                    if start is not None and at > start:
                        yield Bank(start, view[used - (at - start) : used].toreadonly())
                    start = None
                    continue
                start = at if start is None else start
                if isinstance(part, int):
                    used += part
                    continue
                if part != bytes(len(part)):
                    written += len(part)
                    if self._max_written is not None and written > self._max_written:
                        raise MachineError(f"{self.name} unpacks to more than {self._max_written} bytes")
                    copy[used : used + len(part)] = part
                used += len(part)
            if start is not None:
                yield Bank(start, view[used - (extent.end - start) : used].toreadonly())

    def _parts(self, extent: Extent, wanted: list[Extent]) -> Iterator[tuple[int, bytes | int | None]]:
        """*extent* in pieces with their addresses: bytes, how many zeros, or None for a page that cannot be read."""
        at = extent.start
        for number in range(bisect_right(wanted, at, key=attrgetter("end")), len(wanted)):
            low, high = max(wanted[number].start, at), min(wanted[number].end, extent.end)
            if low >= extent.end:
                break
            if low > at:
                yield at, low - at
            yield from self._read_parts(low, high)
            at = high
        if at < extent.end:
            yield at, extent.end - at

    def _read_parts(self, start: int, end: int) -> Iterator[tuple[int, bytes | None]]:
        for at in range(start, end, COPY_STEP):
            size = min(COPY_STEP, end - at)
            try:
                yield at, self._fetch(at, size)
            except FormatError:
                for page, length in _pages(at, at + size):
                    yield page, self._page(page, length)

    def _page(self, at: int, size: int) -> bytes | None:
        try:
            return self._fetch(at, size)
        except FormatError:
            self.left_out[at & ~(PAGE - 1)] = None
            return None

    def _forget(self) -> None:
        self._extents, self._starts, self._copies = [], [], None


def _pages(start: int, end: int) -> Iterator[tuple[int, int]]:
    """The parts of pages from *start* to *end*: where each begins, and its size."""
    while start < end:
        size = min(PAGE - start % PAGE, end - start)
        yield start, size
        start += size

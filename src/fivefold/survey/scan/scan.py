"""Run the kernel's scan over the memory of any guest.

The same source that the booted kernel runs over its own tables (`kernel/scan/scan.py`), compiled
for this process, reaches the guest's memory through bounds-checked extents only. What this
module adds is memory for it to work in, and an answer as numpy columns.
"""

from __future__ import annotations

import mmap
import resource
import sys
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Final, Self

import numpy as np

from fivefold.arch import TooManyRuns
from fivefold.errors import MemoryReadError
from fivefold.kernel.modes import mode_bindings
from fivefold.kernel.scan import scan as kernel_scan
from fivefold.metal.extents import Attachment, attach
from fivefold.metal.program import Program
from fivefold.metal.run import host
from fivefold.metal.run.instance import Instance
from fivefold.survey.scan.scan_result import COUNT_NAMES, RANGE, Rows, ScanCounts, ScanResult, ScanSettings
from fivefold.units import MASK64, PhysAddr

MAX_RANGES: Final = 1 << 24
"""How many ranges a `ScanResult` holds at most by default: 768 MiB of them."""

FIRST_RANGES: Final = 1 << 20
"""Room to begin with; memory that is not used costs nothing."""

MAX_WALKS: Final = 1 << 26
"""No scan walks more tables than this; a guest of 1 TiB has room for fewer in its real ones."""

MAX_REMEMBERED: Final = 1 << 23
RIGHTS: Final = 8
"""Sets of rights that a table can be met with."""

_RANGE_BYTES: Final = 48
_WALK_BYTES: Final = 64
_INDEX_BYTES: Final = 4
_MAP_FLAGS: Final = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000
"""The last is MAP_NORESERVE: pages exist once they are written."""

_RESTING_INDEX: Final = 1 << 18
"""An index larger than this is given back to the system to be cleared; a smaller one is faster to overwrite."""

_COUNTED: Final = 1 << 24
"""A reservation smaller than this is counted like what is written."""

_SMALL: Final = 1 << 18
"""So much of a buffer comes in small pages, for the many scans that need no more; the rest in large ones."""

ProgramLoader = Callable[[Program], Instance]
Banks = Sequence[tuple[int, Any]]
"""Physical memory: (physical start, buffer) for each run of it."""


def program(levels: int, *, prefetch: bool) -> Program:
    """The build of the scan for trees of *levels* tables (4 or 5), reading through `metal.extents`."""
    if levels not in (4, 5):
        raise ValueError(f"{levels} levels of page tables; expected 4 or 5")
    return Program(
        ("fivefold.kernel.scan.scan",),
        bindings={
            **mode_bindings(levels),
            "fivefold.kernel.scan.scan_runs.prefetching": int(prefetch),
        },
        replace={
            "fivefold.kernel.scan.tables.phys_table": "fivefold.metal.extents.phys_to_page",
            "fivefold.kernel.scan.tables.frame_index": "fivefold.metal.extents.frame_index",
        },
    )


def scan_space(
    banks: Banks,
    root: PhysAddr,
    levels: int,
    settings: ScanSettings | None = None,
    *,
    max_ranges: int = MAX_RANGES,
    prefetch: bool = True,
) -> ScanResult:
    """Every range of the address space under *root*. For several spaces of one memory use a `TableScanner`.

    Raises `MemoryReadError` if *root* is not in *banks*, `TooManyRuns` above *max_ranges*.
    """
    with TableScanner(banks, prefetch=prefetch) as scanner:
        return scanner.scan(root, levels, settings, max_ranges=max_ranges)


class TableScanner:
    """Scans of one physical memory, which must stay as long as this does. Not for several threads at once.

    *prefetch* fetches tables ahead: a gain where the banks are in memory, a loss where they are a
    file that was mapped and not read yet. *load* is `interpreter.load` to step through the scan as Python.
    """

    def __init__(self, banks: Banks, *, prefetch: bool = True, load: ProgramLoader = host.load) -> None:
        self._banks = list(banks)
        self._prefetch = prefetch
        self._load = load
        self._builds: dict[int, _Build] = {}

    def scan(
        self,
        root: PhysAddr,
        levels: int,
        settings: ScanSettings | None = None,
        *,
        max_ranges: int = MAX_RANGES,
    ) -> ScanResult:
        """Every range under *root*, in memory; raises as `scan_space` does."""
        settings = settings or ScanSettings()
        build = self._build(levels)
        records = build.records(min(max(max_ranges, 1) + 1, FIRST_RANGES))
        build.start(records, settings)
        status = build.call("scan.scan", root)
        while status == kernel_scan.FULL:
            if records.room > max_ranges:
                raise TooManyRuns(root, max_ranges)
            records = records.grown(min(8 * records.room, max_ranges + 1))
            build.code.call("scan.grow", records.address, records.room)
            status = build.call("scan.scan_resume")
        _check(status, root)
        rows = records.rows(build.code.get("scan_ranges.count"))
        if len(rows) > max_ranges:
            raise TooManyRuns(root, max_ranges)
        build.take_back(records, rows)
        return ScanResult(root, levels, settings, rows, build.counts())

    def stream(
        self,
        root: PhysAddr,
        levels: int,
        settings: ScanSettings | None = None,
        *,
        chunk: int = 1 << 16,
    ) -> Iterator[Rows]:
        """The same ranges, at most *chunk* at a time, however many there are; end it before another scan begins."""
        settings = settings or ScanSettings()
        build = self._build(levels)
        records = _Records(build.code, max(chunk, 2))
        build.start(records, settings)
        status = build.call("scan.scan", root)
        while status == kernel_scan.FULL:
            # All but the last, which may still grow.
            yield records.rows(build.code.get("scan_ranges.count") - 1).copy()
            build.code.call("scan.drain")
            status = build.call("scan.scan_resume")
        _check(status, root)
        last = records.rows(build.code.get("scan_ranges.count"))
        for at in range(0, len(last), max(chunk, 1)):
            yield last[at : at + max(chunk, 1)]

    def behind(self, result: ScanResult, row: int) -> Iterator[Rows]:
        """The ranges behind one row of *result*, a repeat unfolded; its ends are not merged with the neighbours."""
        start, last = int(result.start[row]), int(result.last[row])
        return self.stream(
            result.root, result.levels, replace(result.settings, first=start, last=last, repeat_above=None)
        )

    def close(self) -> None:
        """Let go of the banks, so that what is behind them can be closed; results stay."""
        for build in self._builds.values():
            build.close()
        self._builds, self._banks = {}, []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self.close()

    def _build(self, levels: int) -> _Build:
        if levels not in self._builds:
            code = self._load(program(levels, prefetch=self._prefetch))
            self._builds[levels] = _Build(code, attach(code, self._banks), levels)
        return self._builds[levels]


def _check(status: int, root: int) -> None:
    """Raise for a scan that did not come to its end."""
    if status == kernel_scan.NOT_READABLE:
        raise MemoryReadError(root, 4096, "the scanned memory")
    if status == kernel_scan.LIMIT:
        raise TooManyRuns(PhysAddr(root), MAX_WALKS)


def _memory(size: int) -> mmap.mmap:
    """Zeroed memory that exists once it is written: in small pages alone, their faults cost a third of a large scan."""
    memory = mmap.mmap(-1, size, _MAP_FLAGS)
    if size > _SMALL:
        with suppress(OSError):  # a kernel without transparent large pages
            memory.madvise(mmap.MADV_HUGEPAGE, _SMALL, size - _SMALL)
    return memory


def _reserved(size: int) -> mmap.mmap:
    """Like `_memory`, for what is hardly ever written: a limit on memory that may be written moves by its size."""
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    if soft != resource.RLIM_INFINITY and size >= _COUNTED:
        allowed = soft + size if hard == resource.RLIM_INFINITY else min(soft + size, hard)
        resource.setrlimit(resource.RLIMIT_DATA, (allowed, hard))
    return _memory(size)


class _Records:
    """A buffer of ranges that native code writes to, and that the result keeps."""

    def __init__(self, code: Instance, room: int) -> None:
        self._mapped = False
        self.room = room
        self._code = code
        self._memory = _memory(room * _RANGE_BYTES)
        self.address = code.map(self._memory)
        self._mapped = True

    def rows(self, count: int) -> Rows:
        """The first *count* ranges, without a copy."""
        rows: Rows = np.frombuffer(self._memory, RANGE, count)
        return rows

    def grown(self, room: int) -> _Records:
        """A larger buffer with the same ranges."""
        larger = _Records(self._code, room)
        larger.rows(self.room)[:] = self.rows(self.room)
        self.close()
        return larger

    def close(self) -> None:
        """Tell native code to forget it; rows that were handed out stay."""
        if self._mapped:
            self._code.unmap(self.address)
            self._mapped = False

    def __del__(self, _is_ending: Callable[[], bool] = sys.is_finalizing) -> None:
        # When Python ends, what would release the buffer may be gone, as may this module's names.
        if not _is_ending():
            self.close()


@dataclass(frozen=True)
class _Memo:
    """Memory for what was met before: an index word for each frame, and walks."""

    index: mmap.mmap
    index_address: int
    frames: int
    walks_address: int
    walks: int

    @classmethod
    def of(cls, code: Instance, frames: int, levels: int) -> _Memo:
        """Room for every walk there can be, up to a limit; unused memory costs nothing."""
        walks = min(frames * levels * RIGHTS + 2 * levels, MAX_REMEMBERED)
        index = _reserved(max(frames, 1) * _INDEX_BYTES)
        return cls(index, code.map(index), frames, code.map(_reserved(walks * _WALK_BYTES)), walks)

    def release(self, code: Instance) -> None:
        """Tell native code to forget both."""
        code.unmap(self.index_address)
        code.unmap(self.walks_address)

    def clear(self) -> None:
        """Forget all frames."""
        if len(self.index) > _RESTING_INDEX:
            self.index.madvise(mmap.MADV_DONTNEED)
        else:
            np.frombuffer(self.index, np.uint8)[:] = 0


class _Build:
    """The scan for one number of levels, with memory to work in."""

    def __init__(self, code: Instance, attachment: Attachment, levels: int) -> None:
        self.code = code
        self.attachment = attachment
        self.memo = _Memo.of(code, code.get("extents.frames"), levels)
        self.settings: ScanSettings | None = None
        self._spare: list[_Records] = []

    def close(self) -> None:
        """Take all memory from the native code."""
        self.attachment.detach()
        self.memo.release(self.code)

    def records(self, room: int) -> _Records:
        """A buffer for *room* ranges, new or used before: the second time its pages are there already."""
        for i, spare in enumerate(self._spare):
            if spare.room == room:
                return self._spare.pop(i)
        return _Records(self.code, room)

    def take_back(self, records: _Records, rows: Rows) -> None:
        """Use the buffer again once *rows*, and all columns of it, are gone; large ones are not kept."""
        if records.room <= FIRST_RANGES:
            weakref.finalize(rows, self._spare.append, records).atexit = False

    def start(self, records: _Records, settings: ScanSettings) -> None:
        """Hand over buffers, and settings if they are others than last time."""
        if settings != self.settings:
            self._set(settings)
        self.memo.clear()
        self.call(
            "scan.scan_init",
            records.address,
            records.room,
            self.memo.index_address,
            self.memo.frames,
            self.memo.walks_address,
            self.memo.walks,
        )

    def _set(self, settings: ScanSettings) -> None:
        values = {
            "scan_entries.flags_mask": settings.flags & MASK64,
            "scan_ranges.contiguity": int(settings.contiguity),
            "scan_stack.first": settings.first,
            "scan_stack.last": settings.last,
            "scan.repeat_above": MASK64 if settings.repeat_above is None else settings.repeat_above,
            "scan.walk_limit": MAX_WALKS,
            "scan_entries.reserved": settings.reserved,
            "scan_entries.reserved_top": settings.reserved_top,
            "scan_entries.gib_pages": int(settings.gib_pages),
        }
        for name, value in values.items():
            self.code.set(name, value)
        self.settings = settings

    def call(self, name: str, *words: int) -> int:
        """Call a function of the scan."""
        return self.code.call(name, *words)

    def counts(self) -> ScanCounts:
        """The totals so far."""
        return ScanCounts(*(self.code.get(f"scan_counts.{name}") for name in COUNT_NAMES))


def leaves_of(result: ScanResult) -> int:
    """How many leaves the mapped ranges of *result* have."""
    span = np.uint64(1) << (np.uint64(3) + np.uint64(9) * result.level)
    return int((result.size // span)[result.kind == 1].sum())


__all__ = ["TableScanner", "leaves_of", "program", "scan_space"]

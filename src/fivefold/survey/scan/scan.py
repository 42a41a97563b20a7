"""Run the kernel's scan over the memory of any guest.

The same source that the booted kernel runs over its own tables (`kernel/scan/scan.py`), compiled
for this process, reaches the guest's memory through bounds-checked extents only. What this
module adds is memory for it to work in, and an answer as numpy columns.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Final, Self

import numpy as np

from fivefold.arch import ENTRIES, FRAME_BITS, TooManyRuns
from fivefold.errors import MemoryReadError
from fivefold.kernel.scan import scan as kernel_scan
from fivefold.metal.extents import Attachment, attach
from fivefold.metal.program import Program
from fivefold.metal.run import host
from fivefold.metal.run.instance import Instance
from fivefold.survey.scan import split_scan
from fivefold.survey.scan.programs import scan_program
from fivefold.survey.scan.scan_buffers import Memo, Records
from fivefold.survey.scan.scan_result import COUNT_NAMES, Rows, ScanCounts, ScanResult, ScanSettings
from fivefold.survey.scan.table_store import MAX_TABLES, Bring, TableStore
from fivefold.units import MASK64, PhysAddr

MAX_RANGES: Final = 1 << 24
"""How many ranges a `ScanResult` holds at most by default: 768 MiB of them."""

FIRST_RANGES: Final = 1 << 20
"""Room to begin with; memory that is not used costs nothing."""
FEW: Final = 16
"""What takes less of a buffer than one part in so many is copied out of it."""

MAX_WALKS: Final = 1 << 26
"""No scan walks more tables than this; a guest of 1 TiB has room for fewer in its real ones."""

MOST_SPLIT_FRAMES: Final = 1 << 24
"""In larger memories, 64 GiB, finding out whether parts share tables would cost more than parts save."""

SLICE: Final = 1 << 16
"""Walks after which a scan comes back for a moment, so that it can be interrupted."""

ProgramLoader = Callable[[Program], Instance]
Banks = Sequence[tuple[int, Any]]
"""Physical memory: (physical start, buffer) for each run of it."""


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
    *bring* in place of *banks* reads tables when the scan comes to them, each once: see `TableStore`.
    """

    def __init__(
        self, banks: Banks = (), *, bring: Bring | None = None, prefetch: bool = True, load: ProgramLoader = host.load
    ) -> None:
        self._banks = list(banks)
        self._bring = bring
        self._prefetch = prefetch
        self._load = load
        self._builds: dict[int, _Build] = {}
        self._helpers: dict[int, list[_Build]] = {}
        self._splitter: split_scan.Splitter | None = None

    def scan(
        self,
        root: PhysAddr,
        levels: int,
        settings: ScanSettings | None = None,
        *,
        max_ranges: int = MAX_RANGES,
    ) -> ScanResult:
        """Every range under *root*, in memory; raises as `scan_space` does. A large space is scanned on many cores."""
        settings = settings or ScanSettings()
        windows = self._windows(root, levels, settings)
        if len(windows) > 1 and (found := self._in_parts(root, levels, windows, max_ranges)) is not None:
            rows, counts = found
        else:
            build = self._build(levels)
            records, rows, counts = self._scan(build, root, settings, max_ranges)
            rows = build.take_back(records, rows)
        if len(rows) > max_ranges:
            raise TooManyRuns(root, max_ranges)
        return ScanResult(root, levels, settings, rows, counts)

    def _windows(self, root: PhysAddr, levels: int, settings: ScanSettings) -> list[ScanSettings]:
        """The parts to scan at the same time, or all of it as one."""
        if self._bring is not None or settings.repeat_above is not None or self._load is not host.load:
            return [settings]
        if (parts := split_scan.cores()) < 2 or self._build(levels).memo.frames > MOST_SPLIT_FRAMES:
            return [settings]
        self._splitter = self._splitter or split_scan.Splitter(self._banks)
        return self._splitter.windows(root, levels, settings, parts)

    def _in_parts(
        self, root: PhysAddr, levels: int, windows: list[ScanSettings], max_ranges: int
    ) -> tuple[Rows, ScanCounts] | None:
        """The same as one scan, a thread for each window; None where that cannot be had from parts."""
        from concurrent.futures import ThreadPoolExecutor  # most spaces take one thread

        assert self._splitter is not None
        builds = [self._build(levels), *(self._helper(levels, number) for number in range(1, len(windows)))]
        with ThreadPoolExecutor(len(windows)) as pool:
            jobs = [
                pool.submit(self._scan, build, root, window, max_ranges)
                for build, window in zip(builds, windows, strict=False)  # a helper may be left over
            ]
            parts = [job.result() for job in jobs]
        twice = sum(self._splitter.on_both_ways(root, levels, window.first) for window in windows[1:])
        if split_scan.shared([build.memo.words for build in builds], twice):
            return None
        counts = split_scan.joined_counts([counts for _, _, counts in parts], twice)
        first = parts[0][0]
        if first.room < sum(len(rows) for _, rows, _ in parts):
            larger = first.grown(sum(len(rows) for _, rows, _ in parts))
            parts[0], first = (larger, larger.rows(len(parts[0][1])), parts[0][2]), larger
        count = split_scan.join_rows(first.rows(first.room), [rows for _, rows, _ in parts], windows[0].contiguity)
        if count is None or counts is None:
            return None
        rows = builds[0].take_back(first, first.rows(count))
        for build, (records, part, _) in zip(builds[1:], parts[1:], strict=False):
            build.take_back(records, part)
        return rows, counts

    def _helper(self, levels: int, number: int) -> _Build:
        """A second build over the same memory, for another thread."""
        helpers = self._helpers.setdefault(levels, [])
        while len(helpers) < number:
            code = self._load(scan_program(levels, prefetch=self._prefetch))
            helpers.append(_Build(code, attach(code, self._banks), levels))
        return helpers[number - 1]

    def _scan(
        self, build: _Build, root: PhysAddr, settings: ScanSettings, max_ranges: int
    ) -> tuple[Records, Rows, ScanCounts]:
        records = build.records(min(max(max_ranges, 1) + 1, FIRST_RANGES))
        build.start(records, settings)
        status = build.scan(root)
        while status == kernel_scan.FULL:
            if records.room > max_ranges:
                raise TooManyRuns(root, max_ranges)
            records = records.grown(min(8 * records.room, max_ranges + 1))
            build.code.call("scan.grow", records.address, records.room)
            status = build.resume()
        _check(status, root)
        rows = records.rows(build.code.get("scan_ranges.count"))
        return records, rows, build.counts()

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
        records = Records(build.code, max(chunk, 2))
        build.start(records, settings)
        status = build.scan(root)
        while status == kernel_scan.FULL:
            # All but the last, which may still grow.
            yield records.rows(build.code.get("scan_ranges.count") - 1).copy()
            build.code.call("scan.drain")
            status = build.resume()
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
        for build in (*self._builds.values(), *(one for helpers in self._helpers.values() for one in helpers)):
            build.close()
        self._builds, self._helpers, self._splitter, self._banks = {}, {}, None, []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self.close()

    def _build(self, levels: int) -> _Build:
        if levels not in self._builds:
            code = self._load(scan_program(levels, prefetch=self._prefetch, brought=self._bring is not None))
            reach = attach(code, self._banks) if self._bring is None else TableStore(code, self._bring)
            self._builds[levels] = _Build(code, reach, levels)
        return self._builds[levels]


def _check(status: int, root: int) -> None:
    """Raise for a scan that did not come to its end."""
    if status == kernel_scan.NOT_READABLE:
        raise MemoryReadError(root, 4096, "the scanned memory")
    if status == kernel_scan.LIMIT:
        raise TooManyRuns(PhysAddr(root), MAX_WALKS)


class _Build:
    """The scan for one number of levels, with memory to work in."""

    def __init__(self, code: Instance, reach: Attachment | TableStore, levels: int) -> None:
        self.code = code
        self._reach = reach
        frames = MAX_TABLES if isinstance(reach, TableStore) else code.get("extents.frames")
        self.memo = Memo.of(code, frames, levels)
        self.settings: ScanSettings | None = None
        self._awaited = np.zeros(ENTRIES, np.uint64)
        self._walk_limit = 0
        self._spare: list[Records] = []

    def close(self) -> None:
        """Take all memory from the native code."""
        self._reach.close()
        self.memo.release(self.code)

    def scan(self, root: PhysAddr) -> int:
        """Begin under *root* and go on as far as there is room for ranges; return the scan's status."""
        if isinstance(self._reach, TableStore):
            self._reach.need(root & FRAME_BITS)
        self._allow(min(SLICE, MAX_WALKS))
        return self._on(self.call("scan.scan", root))

    def resume(self) -> int:
        """Go on after `FULL`."""
        return self._on(self.call("scan.scan_resume"))

    def _on(self, status: int) -> int:
        """Go on where the scan stopped for a table, or only so that a signal can be heard."""
        while True:
            if status == kernel_scan.AWAITED and isinstance(self._reach, TableStore):
                self._fetch(self._reach)
            elif status == kernel_scan.LIMIT and self._walk_limit < MAX_WALKS:
                self._allow(min(self._walk_limit + SLICE, MAX_WALKS))
            else:
                return status
            status = self.call("scan.scan_resume")

    def _fetch(self, store: TableStore) -> None:
        at = self.code.map(self._awaited)
        count = self.call("scan_awaited.list_awaited", at)
        self.code.unmap(at)
        store.fetch(self._awaited[:count])

    def _allow(self, walks: int) -> None:
        self._walk_limit = walks
        self.code.set("scan.walk_limit", walks)

    def records(self, room: int) -> Records:
        """A buffer for *room* ranges, new or used before: the second time its pages are there already."""
        for i, spare in enumerate(self._spare):
            if spare.room == room:
                return self._spare.pop(i)
        return Records(self.code, room)

    def take_back(self, records: Records, rows: Rows) -> Rows:
        """*rows*, of which few are copied, so that a result does not keep the whole buffer: the next scan has it again.

        With many it is used again once they, and all columns of them, are gone. Large buffers are not kept.
        """
        if FEW * len(rows) < records.room:
            rows = rows.copy()
            if records.room <= FIRST_RANGES:
                self._spare.append(records)
        elif records.room <= FIRST_RANGES:
            weakref.finalize(rows, self._spare.append, records).atexit = False
        return rows

    def start(self, records: Records, settings: ScanSettings) -> None:
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


__all__ = ["TableScanner", "leaves_of", "scan_space"]

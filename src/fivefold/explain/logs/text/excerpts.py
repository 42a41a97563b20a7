"""The parts of a log that are worth reading, found by searching its bytes.

A short log is read whole. In a long one the marks of exceptions are searched as bytes, which is a hundred times
faster than reading lines, and only what lies around the marks that matter is read: the first fatal one, or else the
first of each kind, the last record, and the start, where a kernel says what it is.
"""

from __future__ import annotations

import io
import os
import re
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import BinaryIO, Final, NamedTuple

from fivefold.explain.logs.text.searching import places

Progress = Callable[[int, int | None], None]
"""Called with the bytes read and the size, None where that is not known."""

WHOLE: Final = 2 << 20
"""A log up to this size is read whole."""

CHUNK: Final = 4 << 20
BEFORE: Final = 128 << 10
"""Bytes read before a mark: what led to it."""
AFTER: Final = 128 << 10
HEAD: Final = 64 << 10
_LONGEST: Final = 64
"""No mark is longer; chunks overlap by so much."""

FATAL: Final = (b"Triple fault", b"old: 0x8 new", b"exception with no resolution", b"triple fault: #")
"""After one of these nothing that matters follows."""

_SEARCHED: Final = (b"old: 0x8 new", b"riple fault", b"exception with no resolution")
_FATAL_LINE: Final = re.compile(rb"Triple fault(?!:)|old: 0x8 new|exception with no resolution|triple fault: #")

KERNEL: Final = (
    b"unable to handle", b"NULL pointer dereference", b"general protection fault", b"Oops: ", b"double fault: ",
    b"stack guard page was hit", b"Corrupted page table at", b"PANIC: ", b"X64 Exception Type", b"Pagetable walk from",
    b"Fatal trap ", b"KVM internal error", b"KVM: entry failed", b"kernel stack overflow", b"invalid opcode: ",
    b"[exception RIP:", b"BugCheck ", b"Bugcheck", b"page fault for address",
)  # fmt: skip
"""Exceptions that a kernel, a firmware or a hypervisor reports."""

PROCESS: Final = (b"segfault at ", b"] traps: ")
LAST: Final = (b"check_exception old:", b" cpl=0 IP=", b" cpl=3 IP=", b"RAX=")
"""Records that are written over and over; only the last ones count."""
_ESCALATION: Final = re.compile(rb"check_exception old: 0x(?!ffffffff|f*\Z)")
_PAUSE: Final = 0.2


class Excerpt(NamedTuple):
    """Bytes of a log; *is_start*: they are its first, so that their lines can be counted."""

    data: bytes
    is_start: bool


def excerpts(stream: BinaryIO, *, follow: bool = False, progress: Progress | None = None) -> Iterator[Excerpt]:
    """The parts of *stream* to read, in order; a file up to the size that it has now.

    With *follow* a log that still grows is waited for until the first fatal mark, or until interrupted.
    """
    size = None if follow else _size(stream)
    source = _Source(stream, size, follow, progress)
    try:
        yield from _parts(stream, source, size)
    finally:
        if progress is not None:
            progress(source.done, source.done)


def _parts(stream: BinaryIO, source: _Source, size: int | None) -> Iterator[Excerpt]:
    head = source.read(WHOLE + 1)
    if len(head) <= WHOLE:
        yield Excerpt(head, True)
        return
    if size is not None and (part := _around_fatal(stream, size)) is not None:
        yield Excerpt(head[:HEAD], True)
        yield Excerpt(part, False)
        return
    yield from _search(head, source).parts()


def _size(stream: BinaryIO) -> int | None:
    """The bytes that a regular file has now, None for a pipe or what is unpacked while it is read."""
    raw = getattr(stream, "raw", None)
    if not isinstance(raw, io.FileIO):
        return None
    status = os.fstat(raw.fileno())
    return status.st_size if stat.S_ISREG(status.st_mode) else None


def _around_fatal(stream: BinaryIO, size: int) -> bytes | None:
    """What lies around the first fatal mark of a file, None if it has none.

    The marks are searched one after the other over the whole file, the one first that QEMU prints before any other:
    that takes a third of a second for a gibibyte in the page cache.
    """
    try:
        file = stream.fileno()
        for mark in _SEARCHED:
            at = _find(file, size, mark)
            if at is not None:
                begin = max(0, at - BEFORE)
                part = os.pread(file, at + AFTER - begin, begin)
                return part[part.find(b"\n") + 1 :] if begin else part
    except (OSError, ValueError):
        pass  # what cannot be mapped is read
    return None


def _find(file: int, size: int, mark: bytes) -> int | None:
    """Where the first *mark* is that is one of a log's lines."""
    found = places(file, size, mark, _LONGEST)
    return next((at for at, around in found if _FATAL_LINE.search(around)), None)


@dataclass(slots=True)
class _Source:
    """Reads on from a stream, no further than *size*."""

    stream: BinaryIO
    size: int | None
    follow: bool
    progress: Progress | None
    done: int = 0
    seen: bytes = b""

    def read(self, count: int) -> bytes:
        """Up to *count* bytes; empty at the end."""
        parts: list[bytes] = []
        while count:
            part = self.stream.read(count if self.size is None else min(count, self.size - self.done))
            if not part:
                if not self.follow or self._is_over(parts):
                    break
                time.sleep(_PAUSE)
                continue
            parts.append(part)
            self.done += len(part)
            count -= len(part)
            if self.progress is not None:
                self.progress(self.done, self.size)
        return b"".join(parts)

    def _is_over(self, parts: list[bytes]) -> bool:
        """Whether what was read last has a fatal mark: then nothing more is waited for."""
        self.seen = (self.seen + b"".join(parts))[-BEFORE:]
        return any(mark in self.seen for mark in FATAL)


@dataclass(slots=True)
class _Window:
    """What lies around one mark, as far as it was read."""

    start: int
    data: bytes
    wants: int
    """Bytes of what follows that are still to come."""

    def extend(self, data: bytes) -> None:
        self.data += data[: self.wants]
        self.wants -= min(len(data), self.wants)


@dataclass(slots=True)
class _Search:
    """Windows by the kind of their mark; the head of the log is one too."""

    windows: dict[str, _Window] = field(default_factory=dict)

    def parts(self) -> Iterator[Excerpt]:
        """The excerpts in the order of the log; windows that touch are one."""
        waiting: _Window | None = None
        for window in sorted(self.windows.values(), key=lambda window: window.start):
            if waiting is not None and window.start <= waiting.start + len(waiting.data):
                waiting.data += window.data[waiting.start + len(waiting.data) - window.start :]
                continue
            if waiting is not None:
                yield Excerpt(waiting.data, waiting.start == 0)
            waiting = window
        if waiting is not None:
            yield Excerpt(waiting.data, waiting.start == 0)


def _search(head: bytes, source: _Source) -> _Search:
    found = _Search({"head": _Window(0, head[:HEAD], 0)})
    before, start, chunk = b"", 0, head
    while chunk:
        data = before + chunk
        for window in found.windows.values():
            window.extend(chunk)
        fatal = _first(data, FATAL)
        _mark(found, "fatal", data, start - len(before), fatal)
        _mark_rest(found, data, start - len(before), fatal, len(before))
        if fatal is not None:
            rest = source.read(max(0, AFTER - (len(data) - fatal)))
            for window in found.windows.values():
                window.extend(rest)
            return found
        # Twice as much: a mark that two chunks have a part of, and the line that its window begins with.
        before, start = data[-2 * BEFORE :], start + len(chunk)
        chunk = source.read(CHUNK)
    return found


def _mark_rest(found: _Search, data: bytes, start: int, limit: int | None, known: int) -> None:
    """Marks that are not fatal: the first of their kind, and the last record, if it ends after *known* bytes."""
    part = data if limit is None else data[:limit]
    for kind, marks in (("kernel", KERNEL), ("process", PROCESS)):
        if kind not in found.windows:
            _mark(found, kind, data, start, _first(part, marks))
    if "escalation" not in found.windows and (match := _ESCALATION.search(part)):
        _mark(found, "escalation", data, start, match.start())
    last = max(part.rfind(mark, max(0, known - len(mark) + 1)) for mark in LAST)
    if last >= 0:
        found.windows.pop("last", None)
        _mark(found, "last", data, start, last)


def _first(data: bytes, marks: tuple[bytes, ...]) -> int | None:
    """Where the first of *marks* is."""
    end = len(data)
    for mark in marks:
        at = data.find(mark, 0, end + len(mark) - 1 if end < len(data) else end)
        if at >= 0:
            end = min(end, at)
    return end if end < len(data) else None


def _mark(found: _Search, kind: str, data: bytes, start: int, at: int | None) -> None:
    if at is None or kind in found.windows:
        return
    begin, end = max(0, at - BEFORE), at + AFTER
    # A window begins with a whole line.
    begin = data.rfind(b"\n", 0, begin) + 1 if begin else 0
    found.windows[kind] = _Window(start + begin, data[begin:end], max(0, end - len(data)))

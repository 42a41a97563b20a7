"""The memory of the kernel that runs us: ``/proc/kcore``, an ELF core that is as long as the address space.

Segments say where the direct map and the image lie in physical memory since Linux 4.19; before that they did not.
What the kernel does not show (ballooned and offline pages) reads as zeros there. Source: Linux, ``fs/proc/kcore.c``.
"""

from __future__ import annotations

import errno
import os
import struct
from dataclasses import dataclass, field
from typing import Final

from fivefold.errors import FormatError, MachineError, cannot
from fivefold.memory.banked import MAX_COPY, PagedMemory
from fivefold.memory.base import Extent
from fivefold.memory.formats.notes import MAX_NOTE_BYTES, Note, split_notes, vmcoreinfo_of
from fivefold.memory.source import Source
from fivefold.memory.spans import Span, without_overlap
from fivefold.units import MASK64

_FILE: Final = struct.Struct("<16sHHIQQQIHHHHHH")
_PROGRAM: Final = struct.Struct("<IIQQQQQQ")
_LOAD, _NOTE = 1, 4
_CORE: Final = 4
_X86_64: Final = 62


def open_kcore(path: str, *, max_copy: int = MAX_COPY) -> Source:
    """The memory of the running kernel, as far as its direct map and its image go.

    `CannotOpenError` without the right to read it, `FormatError` where it is not what it should be.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise cannot("open", path, error) from error
    core = _Kcore(fd, path)
    try:
        spans, notes = core.headers()
    except BaseException:  # whatever is raised, the file must not stay open
        os.close(fd)
        raise
    core.spans = spans
    memory = PagedMemory(
        [Extent(one.start, one.end) for one in spans],
        core.fetch,
        path,
        on_close=lambda: os.close(fd),
        max_copy=max_copy,
    )
    return Source(
        memory=memory,
        format="the running kernel's memory",
        vmcoreinfo=vmcoreinfo_of(notes),
        notes=("the kernel runs while it is read; it shows no registers: the root is its own (VMCOREINFO)",),
        live=True,
        torn=True,
    )


@dataclass
class _Kcore:
    fd: int
    name: str
    spans: list[Span] = field(default_factory=list)

    def headers(self) -> tuple[list[Span], list[Note]]:
        """Physical ranges with their places in the file, and the notes."""
        header = _FILE.unpack(self.part(0, _FILE.size))
        if header[0][:6] != b"\x7fELF\2\1" or header[1:3] != (_CORE, _X86_64) or header[9] != _PROGRAM.size:
            raise FormatError(f"{self.name} is no core of an x86-64 kernel")
        rows = list(_PROGRAM.iter_unpack(self.part(header[5], header[10] * _PROGRAM.size)))
        spans: list[tuple[int, Span]] = []
        notes: list[Note] = []
        for kind, _, offset, va, pa, size, _, _ in rows:
            if kind == _NOTE and size <= MAX_NOTE_BYTES:
                notes += split_notes(self.part(offset, size), self.name)
            elif kind == _LOAD and pa != MASK64 and pa + size <= 1 << 52 and size:
                spans.append((va, Span(pa, pa + size, offset)))
        if len(spans) > 1 and not any(span.start for _, span in spans):
            raise FormatError(f"{self.name} does not say where memory lies (before Linux 4.19): expected p_paddr")
        # Where the image comes twice, its place in the direct map counts, which begins lower.
        return without_overlap([span for _, span in sorted(spans)]), notes

    def part(self, offset: int, size: int) -> bytes:
        """Exactly these bytes of the file."""
        parts, left = [], size
        while left:
            try:
                piece = os.pread(self.fd, left, offset + size - left)
            except OSError as error:
                if error.errno in (errno.EFAULT, errno.EIO):
                    raise FormatError(f"{self.name}: nothing can be read at {offset:#x}") from error
                raise MachineError(f"cannot read {self.name} at {offset:#x}: {error.strerror}") from error
            if not piece:
                raise FormatError(f"{self.name} ends at {offset + size - left:#x}; expected {left} bytes more")
            parts.append(piece)
            left -= len(piece)
        return b"".join(parts)

    def fetch(self, pa: int, size: int) -> bytes:
        """Bytes inside one extent; two segments may touch in it."""
        parts, at, end = [], pa, pa + size
        for span in self.spans:
            if span.start <= at < span.end:
                step = min(end, span.end) - at
                parts.append(self.part(span.offset + at - span.start, step))
                at += step
                if at == end:
                    break
        return b"".join(parts)

"""Compressed files: unpacked once, as a stream, to memory or to a file without a name."""

from __future__ import annotations

import bz2
import importlib
import io
import lzma
import os
import shutil
import stat
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import closing
from itertools import chain
from typing import Any, Final, NamedTuple

from fivefold.errors import FormatError, MachineError
from fivefold.memory.files import FileBytes
from fivefold.memory.formats.lzop import LzopError, LzopFile
from fivefold.memory.source import Progress
from fivefold.units import GIB, MIB

MAX_UNPACKED: Final = 64 * GIB
"""What a compressed file may grow to at most, by default."""

LEAST_UNPACKED: Final = 4 * GIB
MAX_RATIO: Final = 512
"""Nor more than so many times its size, once it is past `LEAST_UNPACKED`: some megabytes of nothing but zeros would
take an hour. Memory of a guest that has booted packs to a hundredth, most of it zeros."""

LEAST_WRITTEN: Final = GIB
MAX_WRITTEN_RATIO: Final = 64
"""The same for what is not zeros, which takes room on the disk."""

FREE_SHARE: Final = 2
"""One part in so many of what is free on the disk may be filled."""

STEP: Final = 1 << 20
_IN_MEMORY: Final = 64 * MIB

_GZIP: Final = 16 + zlib.MAX_WBITS
"""How zlib spells gzip's header and check sum."""
_PART: Final = 1 << 16
_ZEROS: Final = bytes(STEP)

_MAGICS: Final = {b"\xfd7zXZ\0": "xz", b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}


def compression_of(head: bytes) -> str | None:
    """``xz``, ``gzip`` or ``zstd`` by the first bytes of a file, else None."""
    return next((name for magic, name in _MAGICS.items() if head.startswith(magic)), None)


def unpack(
    file: FileBytes,
    *,
    max_bytes: int | None = None,
    progress: Progress | None = None,
    at: int = 0,
    kind: str | None = None,
) -> FileBytes:
    """The unpacked bytes of *file* from *at* on; *file* is closed. Small ones in memory, others in a nameless file.

    *kind* is what they are packed with where that is known: bzip2 and lzop, too.
    The name stays. *progress* counts compressed bytes. `FormatError` for broken, truncated or
    doubly packed data and for more than *max_bytes*, by default more than such a file has cause to; `MachineError` when
    zstd is not installed or the disk is full, or would be.
    """
    kind = kind or compression_of(file.read_at(at, min(file.size - at, 8)))
    if kind is None:
        raise FormatError(f"{file.name} is not compressed with xz, gzip or zstd")
    unpacked = spilled(_chunks(file, kind, progress, at), file, max_bytes)
    if twice := compression_of(unpacked.read_at(0, min(unpacked.size, 8))):
        unpacked.close()
        raise FormatError(f"{file.name} is compressed twice ({twice} inside {kind}); unpack it once first")
    return unpacked


def spilled(chunks: Iterator[bytes], file: FileBytes, max_bytes: int | None = None) -> FileBytes:
    """The *chunks* that were made of *file*, which is closed, as `unpack` keeps them and within the same bounds."""
    limits = _Limits.of(file.size) if max_bytes is None else _Limits(max_bytes, max_bytes)
    try:
        unpacked = _spill(chunks, file.name, limits)
        unpacked.on_disk = min(file.on_disk, unpacked.size)
        return unpacked
    finally:
        file.close()


def read_stream(fd: int, name: str, *, max_bytes: int | None = None) -> FileBytes:
    """The bytes of the open file *fd* up to its end: the file itself, or a copy of what comes through a pipe.

    `FormatError` for an empty one and for more than *max_bytes*, `MachineError` when it would fill the disk.
    """
    if stat.S_ISREG(os.fstat(fd).st_mode):
        return FileBytes.from_fd(os.dup(fd), name)
    first = _read_whole(fd, STEP)
    if not first:
        raise FormatError(f"{name} is empty; expected a file that holds memory")
    most = MAX_UNPACKED if max_bytes is None else max_bytes
    return _spill(chain([first], iter(lambda: _read_whole(fd, STEP), b"")), name, _Limits(most, most))


def _read_whole(fd: int, size: int) -> bytes:
    parts = []
    while size > 0 and (part := os.read(fd, size)):
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


class _Limits(NamedTuple):
    """Bytes in all, and bytes in pieces that are not zeros."""

    size: int
    written: int

    @classmethod
    def of(cls, packed: int) -> _Limits:
        """What a file of *packed* bytes has cause for."""
        size = min(max(LEAST_UNPACKED, MAX_RATIO * packed), MAX_UNPACKED)
        return cls(size, max(LEAST_WRITTEN, MAX_WRITTEN_RATIO * packed))

    def check(self, size: int, written: int, name: str) -> None:
        """Raise `FormatError` where a limit is passed."""
        if size > self.size:
            raise FormatError(f"{name} unpacks to more than {self.size} bytes; allow more with --max-unpacked SIZE")
        if written > self.written:
            raise FormatError(
                f"{name} unpacks to more than {self.written} bytes that are not zeros; "
                "allow more with --max-unpacked SIZE"
            )


def _spill(chunks: Iterator[bytes], name: str, limits: _Limits) -> FileBytes:
    with tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY) as spool:
        size = written = 0
        try:
            room = _IN_MEMORY + shutil.disk_usage(tempfile.gettempdir()).free // FREE_SHARE
            for chunk in chunks:
                size += len(chunk)
                if size > _IN_MEMORY:
                    spool.rollover()  # before a seek far ahead makes a buffer of zeros in memory
                written += _write_sparsely(spool, chunk)
                limits.check(size, written, name)
                if written > room:
                    raise MachineError(f"cannot unpack {name} to {tempfile.gettempdir()}: it would fill half of it")
            _end_at(spool, size)
        except OSError as error:
            raise MachineError(f"cannot unpack {name} to {tempfile.gettempdir()}: {error.strerror}") from error
        if size == 0:
            raise FormatError(f"{name} unpacks to nothing")
        spool.seek(0)
        if size <= _IN_MEMORY:
            return FileBytes(spool.read(), name)
        return FileBytes.from_fd(os.dup(spool.fileno()), name)


def _write_sparsely(spool: Any, chunk: bytes) -> int:
    """Write *chunk*; the bytes that it takes. Captures are mostly zeros: a seek leaves them out of the file on disk."""
    if chunk == (_ZEROS if len(chunk) == STEP else bytes(len(chunk))):
        spool.seek(len(chunk), os.SEEK_CUR)
        return 0
    spool.write(chunk)
    return len(chunk)


def _end_at(spool: Any, size: int) -> None:
    # A buffer in memory does not grow by truncating; a byte at the end makes both grow.
    if size and spool.seek(0, os.SEEK_END) < size:
        spool.seek(size - 1)
        spool.write(b"\0")


def _chunks(file: FileBytes, kind: str, progress: Progress | None, at: int) -> Iterator[bytes]:
    """Unpacked pieces of at most `STEP` bytes; several streams in a row are one file."""
    packed = _Reader(file, at)
    opened, errors = _opened(io.BufferedReader(packed), kind)
    with opened as stream:
        while True:
            try:
                chunk: bytes = stream.read(STEP)
            except EOFError as error:
                raise FormatError(
                    f"{file.name}: {kind} data ends in the middle: truncated; copy or take it again"
                ) from error
            except errors as error:
                reason = str(error).rstrip(".") or "out of memory"
                raise FormatError(f"{file.name}: broken {kind} data before {packed.at:#x}: {reason}") from error
            if not chunk:
                return
            if progress is not None:
                progress(packed.at, file.size)
            yield chunk


def _opened(packed: io.BufferedReader, kind: str) -> tuple[Any, tuple[type[Exception], ...]]:
    """An unpacking file object, and what it raises for broken data."""
    if kind == "xz":
        return lzma.LZMAFile(packed), (lzma.LZMAError, MemoryError)
    if kind == "gzip":
        return closing(_Gzip(packed)), (zlib.error,)
    if kind == "bzip2":
        return bz2.BZ2File(packed), (OSError,)
    if kind == "lzop":
        return LzopFile(packed), (LzopError,)
    try:
        zstandard: Any = importlib.import_module("zstandard")
    except ImportError as error:
        raise MachineError("zstd data needs the package zstandard: pip install zstandard") from error
    reader = zstandard.ZstdDecompressor().stream_reader(packed, read_across_frames=True)
    return reader, (zstandard.ZstdError, MemoryError)


class _Gzip:
    """Streams of gzip in a row; with the standard library's reader zeros take twice the time."""

    def __init__(self, packed: io.BufferedReader) -> None:
        self._packed = packed
        self._stream = zlib.decompressobj(_GZIP)
        self._held = b""

    def read(self, size: int) -> bytes:
        """The next bytes, *size* of them at most; none at the end."""
        while True:
            if self._stream.eof:
                self._held = self._stream.unused_data.lstrip(b"\0")  # zeros may follow a stream
                self._stream = zlib.decompressobj(_GZIP) if self._held or self._more() else self._stream
            if self._stream.eof:
                return b""
            if not self._held and not self._more():
                raise EOFError
            part = self._stream.decompress(self._held, size)
            self._held = self._stream.unconsumed_tail
            if part:
                return part

    def _more(self) -> bool:
        """Whether there is more of the file, beyond zeros where a stream has ended."""
        while part := self._packed.read(_PART):
            self._held = part.lstrip(b"\0") if self._stream.eof else part
            if self._held:
                return True
        return False

    def close(self) -> None:
        """Let go of the file."""
        self._packed.close()


class _Reader(io.RawIOBase):
    """A file object over `FileBytes`, for the unpackers of the standard library."""

    def __init__(self, file: FileBytes, at: int) -> None:
        self.at = at
        self._file = file

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        size = min(len(buffer), self._file.size - self.at)
        buffer[:size] = self._file.read_at(self.at, size)
        self.at += size
        return size

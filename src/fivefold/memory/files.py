"""Bytes of one file, by offset: read whole when small, mapped when not."""

from __future__ import annotations

import errno
import mmap
import os
import stat
from collections.abc import Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Final, Protocol, Self

from fivefold.errors import FormatError, cannot
from fivefold.memory.bus_error import BusGuard
from fivefold.units import MIB

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Numbers = npt.NDArray[np.int64]

SMALL: Final = 16 * MIB
"""Files up to this size are read: they cannot be cut under us, and reading is faster than mapping."""

LIVE_NAMES: Final = "qmp:SOCKET, libvirt:DOMAIN, pid:NUMBER, gdb:HOST:PORT"
EXPECTED: Final = f"expected a file that holds memory, or {LIVE_NAMES}"

_BLOCK: Final = 512
"""Bytes of a block that ``st_blocks`` counts."""

MAX_RUNS: Final = 1 << 20
"""How many runs of a sparse file are kept apart at most."""


class ByteSource(Protocol):
    """Bytes by offset, with a size that does not change."""

    name: str
    size: int

    def read_at(self, offset: int, size: int, /) -> bytes:
        """Exactly *size* bytes from *offset*, or `FormatError` when the source ends before."""
        ...

    def places(self, offsets: Numbers, sizes: Numbers, /) -> tuple[memoryview, Numbers]:
        """One view, and where in it the *sizes* bytes from *offsets* begin; -1 where they are not in one piece."""
        ...


class FileBytes:
    """The bytes of a regular file, read-only.

    `view` is zero-copy. A mapped file that another process truncates raises `FormatError`: at every access through
    this class, and at `close` where code that kept a view met a page that was gone; it read zeros there.
    """

    def __init__(self, data: bytes | mmap.mmap, name: str, fd: int = -1) -> None:
        """Bytes in hand, or a mapping whose open file is *fd* (closed with this object)."""
        self.name = name
        self.size = len(data)
        self.on_disk = self.size if fd < 0 else min(os.fstat(fd).st_blocks * _BLOCK, self.size)
        """Bytes that somebody took the trouble to store: less than `size` for sparse and for compressed files."""
        self._data = data
        self._guard = BusGuard(data) if isinstance(data, mmap.mmap) else None
        self._fd = fd
        self._view = memoryview(data)

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> FileBytes:
        """Open *path*; `CannotOpenError` when it cannot be opened, `FormatError` when it is no file with bytes."""
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise cannot("open", os.fspath(path), error) from error
        return cls.from_fd(fd, os.fspath(path))

    @classmethod
    def from_fd(cls, fd: int, name: str) -> FileBytes:
        """Take over *fd*, which is closed with the result or when this fails."""
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                raise FormatError(f"{name} is {_kind(status.st_mode)}; {EXPECTED}")
            if status.st_size == 0:
                raise FormatError(f"{name} is empty; {EXPECTED}")
            if status.st_size <= SMALL:
                data = cls._read_all(fd, status.st_size)
                os.close(fd)
                return cls(data, name)
            mapped = mmap.mmap(fd, status.st_size, prot=mmap.PROT_READ)
            if status.st_blocks * _BLOCK < status.st_size // 2:
                mapped.madvise(mmap.MADV_RANDOM)  # reading ahead would fill memory with pages of holes
            return cls(mapped, name, fd)
        except OSError as error:
            os.close(fd)
            raise cannot("read", name, error) from error
        except FormatError:
            os.close(fd)
            raise

    @staticmethod
    def _read_all(fd: int, size: int) -> bytes:
        parts = []
        while size > 0 and (part := os.read(fd, size)):
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    def check_alive(self) -> None:
        """Raise `FormatError` if the mapped file was cut short since it was opened, or could not be read."""
        if self._fd >= 0 and (now := os.fstat(self._fd).st_size) < self.size:
            raise FormatError(f"{self.name} was cut from {self.size} to {now} bytes while in use")
        if self._guard is not None and self._guard.broken:
            raise FormatError(
                f"{self.name} could not be read any more while in use; it was cut short, or its disk fails"
            )

    def read_at(self, offset: int, size: int, /) -> bytes:
        """Exactly *size* bytes from *offset*; `FormatError` past the end."""
        return bytes(self.view(offset, size))

    def view(self, offset: int, size: int) -> memoryview:
        """Like `read_at` without a copy; it must be let go before `close`."""
        if offset < 0 or size < 0 or offset + size > self.size:
            raise FormatError(
                f"{self.name} ends at {self.size:#x}; expected {size} bytes at {offset:#x}: "
                "truncated or forged; copy or take it again"
            )
        self.check_alive()
        return self._view[offset : offset + size]

    def places(self, offsets: Numbers, sizes: Numbers, /) -> tuple[memoryview, Numbers]:
        """All bytes, and *offsets* themselves, -1 where the file ends before; to be let go of before `close`."""
        import numpy as np  # a log is explained without it

        inside = (offsets >= 0) & (offsets <= self.size - sizes)
        return self.view(0, self.size), np.where(inside, offsets, -1)

    def written(self, start: int, end: int, most: int = MAX_RUNS) -> Iterator[tuple[int, int]]:
        """Runs of the bytes *start* to *end* that are on disk, ascending; a sparse file's holes read as zeros.

        All of them are in one run where the system does not say, and so are those behind the first *most* runs.
        """
        for _ in range(most if self._fd >= 0 else 0):
            try:
                start = os.lseek(self._fd, start, os.SEEK_DATA)
                hole = os.lseek(self._fd, start, os.SEEK_HOLE)
            except OSError as error:
                if error.errno == errno.ENXIO:  # nothing but a hole up to the end of the file
                    return
                break
            if start >= end:
                return
            yield start, min(hole, end)
            start = hole
        if start < end:
            yield start, end

    def close(self) -> None:
        """Let go of the file; `FormatError` if a part of it went away meanwhile. Held views keep the mapping alive."""
        try:
            self.check_alive()
        finally:
            self._let_go()

    def _let_go(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        self._guard = None
        self._view = memoryview(b"")
        self._data = b""
        self.size = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


_KINDS: Final = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a pipe, which is not seekable",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a disk",
    stat.S_IFSOCK: "a socket",
}


def _kind(mode: int) -> str:
    return _KINDS.get(stat.S_IFMT(mode), "not a regular file")

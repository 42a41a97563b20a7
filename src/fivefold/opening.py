"""Opening a file by name for reading without waiting for anybody."""

from __future__ import annotations

import io
import os
import stat
from typing import Any, Final

from fivefold.errors import FormatError

_HEAD: Final = 16
"""Bytes that come in one piece, if there are so many."""

_FLAGS: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK


def open_to_read(path: str | os.PathLike[str]) -> io.BufferedReader:
    """The bytes of the file at *path*; `OSError` as from ``open``.

    A pipe is read to its end while a process has it open for writing, as the shell's ``<(command)`` is. One that
    no process writes to is refused with `FormatError`, since opening it would wait for ever.
    """
    opened = os.open(path, _FLAGS)
    try:
        mode = os.fstat(opened).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(21, os.strerror(21), os.fspath(path))
        first = _first_byte(opened, os.fspath(path)) if stat.S_ISFIFO(mode) else None
        os.set_blocking(opened, True)
        raw = io.FileIO(opened)
    except BaseException:  # whatever is raised, the file must not stay open
        os.close(opened)
        raise
    return io.BufferedReader(raw if first is None else _Pipe(first, raw))


def _first_byte(pipe: int, name: str) -> bytes:
    """What had to be taken out to learn whether anybody writes."""
    try:
        first = os.read(pipe, 1)
    except BlockingIOError:  # there is a writer, which has not written yet
        return b""
    if not first:
        raise FormatError(f"{name} is a pipe that no process writes to; expected a file, or start its writer first")
    return first


class _Pipe(io.RawIOBase):
    """A byte that was taken out, then the rest; the first piece is long enough to tell what this is."""

    def __init__(self, first: bytes, rest: io.FileIO) -> None:
        self._first: bytes | None = first
        self._rest = rest

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        if self._first is None:
            return self._rest.readinto(buffer)
        head, self._first = self._first, None
        while len(head) < _HEAD and (more := self._rest.read(min(_HEAD, len(buffer)) - len(head))):
            head += more
        buffer[: len(head)] = head
        return len(head)

    def close(self) -> None:
        """Let go of the pipe."""
        self._rest.close()
        super().close()

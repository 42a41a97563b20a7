"""What the package raises on purpose.

::

    FivefoldError
      MemoryReadError      the source has no bytes there
      FormatError          a file, dump or log is not what it claims to be
      CompileError         a construct outside the subset (fivefold.metal)
      ImageError           an image cannot be built, linked or placed
      MachineError         an engine could not start, stop or answer
        CannotOpenError    a file cannot be opened or read; an OSError, too
          MissingFileError there is no such file; a FileNotFoundError, too
      LayoutError          areas overlap, or do not fit the mode
      NotKnownError        the source does not say what is needed, and nothing was given

A page fault is an answer, never an exception: `fivefold.arch` returns it. Wrong
arguments to a function raise `ValueError` or `TypeError`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from fivefold.units import hex64

# C0 and C1 with DEL, and what turns the direction of writing round: both change what a reader sees of other text.
__all__ = [
    "CannotOpenError",
    "CompileError",
    "FivefoldError",
    "FormatError",
    "ImageError",
    "LayoutError",
    "MachineError",
    "MemoryReadError",
    "MissingFileError",
    "NotKnownError",
    "escape",
    "printable",
]

UNSEEN: Final = (
    "\x7f-\x9f\xad\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\U000e0000-\U000e007f"
)
"""Beyond the first 32: controls, and what hides text or changes its order."""

_CONTROLS: Final = re.compile(f"[\x00-\x1f{UNSEEN}]")


def printable(text: str) -> str:
    """Spell every control character of *text* as its escape: a name or a message of others must not steer a terminal.

    >>> printable("6.1" + chr(27) + "[2J")
    '6.1\\\\x1b[2J'
    """
    return _CONTROLS.sub(escape, text) if _CONTROLS.search(text) else text


def escape(found: re.Match[str]) -> str:
    """Spell the one character in *found* as Python would."""
    code = ord(found[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def said_by(error: Exception) -> str:
    """What another package's *error* says, on one short line: some attach the data that they were given.

    >>> said_by(ValueError("input is not consumed", bytes(1 << 20)))
    'input is not consumed'
    """
    first = error.args[0] if error.args else ""
    return printable(str(first))[:_LONGEST_SAID] or type(error).__name__


_LONGEST_SAID: Final = 120


class FivefoldError(Exception):
    """Root of what this package raises on purpose; the message is one line."""


class MemoryReadError(FivefoldError):
    """The source has no bytes there: a hole or a broken dump, not a page fault."""

    def __init__(self, pa: int, size: int, source: str) -> None:
        super().__init__(f"{source} has no memory at {hex64(pa)} (+{size} bytes)")
        self.pa = pa
        self.size = size
        self.source = source


class FormatError(FivefoldError):
    """A file, dump or log is not what it claims to be."""


class DamagedPageError(MemoryReadError, FormatError):
    """A page of a dump is there and cannot be unpacked, a hole to readers of memory; the message says what is wrong.

    *pa* is where the page begins, or the part of it that was asked for.
    """

    def __init__(self, pa: int, size: int, source: str, why: FormatError) -> None:
        super().__init__(pa, size, source)
        self.args = (str(why),)


@contextmanager
def both_told(first: BaseException | None) -> Iterator[None]:
    """Put things back inside the ``with`` block, after *first*; where that fails too, the error names both.

    >>> with both_told(FormatError("it is cut")):
    ...     raise FormatError("the guest stands still")
    Traceback (most recent call last):
    fivefold.errors.MachineError: it is cut; the guest stands still
    """
    try:
        yield
    except FivefoldError as second:
        if str(first) == str(second):
            return
        if isinstance(first, FivefoldError):
            raise MachineError(f"{first}; {second}") from first
        raise


class CompileError(FivefoldError):
    """A construct that the metal subset does not have, with what to write instead."""

    def __init__(self, file: str, line: int, construct: str, remedy: str) -> None:
        super().__init__(f"{file}:{line}: {construct}; {remedy}")
        self.file = file
        self.line = line
        self.construct = construct
        self.remedy = remedy


class ImageError(FivefoldError):
    """An image cannot be built, linked or placed as asked."""


class MachineError(FivefoldError):
    """An engine could not start, stop or answer."""


class NoSuchCpuError(MachineError):
    """The engine is there, but has no CPU of the model that was asked for."""


class CannotOpenError(MachineError, OSError):
    """A file cannot be opened or read. An `OSError` too, with its ``errno``, ``strerror`` and ``filename``."""

    def __init__(self, message: str, cause: OSError | None = None, filename: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        if cause is not None:
            self.errno, self.strerror, self.filename = cause.errno, cause.strerror, filename or cause.filename

    def __str__(self) -> str:
        """The one line, not what `OSError` makes of its numbers."""
        return self.message


class MissingFileError(CannotOpenError, FileNotFoundError):
    """There is no such file."""


def cannot(what: str, name: str, cause: OSError) -> CannotOpenError:
    """The error for *cause*, which kept us from doing *what* (``open``, ``read``) to the file *name*."""
    kind = MissingFileError if isinstance(cause, FileNotFoundError) else CannotOpenError
    return kind(f"cannot {what} {name}: {cause.strerror or cause}", cause, name)


class LayoutError(FivefoldError):
    """Areas overlap, or do not fit the paging mode."""


class NotKnownError(FivefoldError):
    """Root, mode or width is not in the source, or contradicts what was given; the message says what to give."""

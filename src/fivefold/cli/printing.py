"""What becomes of a command's output: control characters stay off the terminal, and a reader may go away.

Text of a guest (its release, its regions' names, what its monitor answers) and names of files may hold anything, also
colours. What reports colour themselves bears a mark that no guest can know (`fivefold.report.sheet.MARK`).
"""

from __future__ import annotations

import errno
import io
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final, TextIO

from fivefold.errors import UNSEEN, escape, printable
from fivefold.report.sheet import MARK

_CONTROLS: Final = re.compile(f"[\x00-\x08\x0b-\x1f{UNSEEN}]")

_CANNOT_PRINT: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO})


def printing(command: Callable[[], int]) -> int:
    """Run *command*, which prints. A reader that goes away is no failure; a full disk is one, and named."""
    try:
        return command()
    except BrokenPipeError:
        # A reader such as `head` has what it wanted.
        print_to_nobody()
        return 0
    except OSError as error:
        if error.filename is not None or error.errno not in _CANNOT_PRINT:
            raise
        print_to_nobody()
        raise OSError(error.errno, error.strerror, "standard output") from error


def write_output(path: Path, data: bytes, told: str) -> None:
    """Write *data* to *path*, or to standard output where that is ``-``; print *told* on another stream."""
    from fivefold.boot import write_file

    if str(path) != "-":
        write_file(path, data)
        print(f"{path}: {told}")
        return
    sys.stdout.flush()
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()
    print(f"fivefold: standard output: {told}", file=sys.stderr)


def print_to_nobody() -> None:
    """Let what is left in buffers go nowhere, so that it is not reported twice that it could not be written."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


class CleanText(io.TextIOWrapper):
    """A text stream that spells control characters, and what its encoding lacks, as escapes.

    Line ends and tabs pass, and colours that bear the mark of reports.
    """

    understands_mark = True

    def __init__(self, stream: TextIO) -> None:
        """Take over what *stream* writes to; *stream* itself must stay alive."""
        super().__init__(
            stream.buffer,
            encoding=stream.encoding,
            errors="backslashreplace",
            line_buffering=getattr(stream, "line_buffering", False),
            write_through=getattr(stream, "write_through", False),
        )

    def write(self, text: str) -> int:
        """Write *text* without what would steer a terminal."""
        if _CONTROLS.search(text):
            text = _CONTROLS.sub(escape, text)
        return super().write(text.replace(MARK, "\x1b"))

    def steer(self, text: str) -> None:
        """Write *text* as it is: the caller made all of it."""
        super().write(text)


def clean_streams() -> None:
    """Print through `CleanText` from now on, where the streams are the process's own."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is getattr(sys, f"__{name}__") and isinstance(stream, io.TextIOWrapper):
            stream.flush()
            setattr(sys, name, CleanText(stream))


def over_write(text: str) -> None:
    """Write *text* over the last line of the terminal that stderr is."""
    write = getattr(sys.stderr, "steer", sys.stderr.write)
    write(f"\r\033[K{printable(text)}")
    sys.stderr.flush()

"""What becomes of a command's output: control characters stay off the terminal, and a reader may go away.

Text of a guest (its release, its regions' names, what its monitor answers) and names of files may hold anything. No
command prints a control character on purpose, but for colours, and the line of progress that `CleanText.steer` prints.
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

from fivefold.errors import escape

_UNWANTED: Final = "\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069"
_CONTROLS: Final = re.compile(f"[{_UNWANTED}]")
_NOT_COLOURS: Final = re.compile(f"(?!\x1b\\[[0-9;]*m)[{_UNWANTED}]")

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

    Colours pass where it is a terminal, since the reports print them there; line ends and tabs always do.
    """

    def __init__(self, stream: TextIO) -> None:
        """Take over what *stream* writes to; *stream* itself must stay alive."""
        super().__init__(
            stream.buffer,
            encoding=stream.encoding,
            errors="backslashreplace",
            line_buffering=getattr(stream, "line_buffering", False),
            write_through=getattr(stream, "write_through", False),
        )
        self._controls = _NOT_COLOURS if stream.isatty() else _CONTROLS

    def let_colours_pass(self) -> None:
        """Write colours into a pipe or file, too, as ``--color always`` asks."""
        self._controls = _NOT_COLOURS

    def write(self, text: str) -> int:
        """Write *text* without what would steer a terminal."""
        if self._controls.search(text):
            text = self._controls.sub(escape, text)
        return super().write(text)

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
    """Write *text*, all of it ours, over the last line of the terminal that stderr is."""
    write = getattr(sys.stderr, "steer", sys.stderr.write)
    write(f"\r\033[K{text}")
    sys.stderr.flush()

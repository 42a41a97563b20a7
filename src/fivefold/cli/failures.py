"""How a command ends that could not do what it was asked: one line on stderr, and a status that says whose fault it is.

2: what was asked cannot be done with this input, or met a bound. 3: an unexpected error, which is a fault of
ours (or of a machine without memory), and never to be taken for a check that failed.
"""

from __future__ import annotations

import errno
import os
import platform
import sys
import traceback
from pathlib import Path
from typing import Final

from fivefold.cli.bounds import bound_met
from fivefold.errors import printable

COULD_NOT: Final = 2
UNFORESEEN: Final = 3
STOP_GIT: Final = 128
"""What ends ``git bisect run``, which takes 1 to 127 for a verdict on the commit."""

_report: Path | None = None


def write_report_to(path: Path | None) -> None:
    """Have the trace of an unexpected error written to *path*."""
    global _report
    _report = path


def refuse(message: str) -> int:
    """Print *message* as one line; return the status."""
    line = " ".join(message.split())
    print(f"fivefold: {printable(line)}", file=sys.stderr)
    return COULD_NOT


def refuse_system(error: OSError) -> int:
    """Say what the system would not do; without memory, that is no property of the input."""
    if error.errno == errno.ENOMEM:
        return unforeseen(error)
    reason = error.strerror or str(error)
    return refuse(f"{error.filename}: {reason}" if error.filename else reason)


def unforeseen(error: BaseException) -> int:
    """Print one line about *error*, and its trace where a report was asked for; return the status."""
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        if bound := bound_met():
            return refuse(bound)
        what = "out of memory"
    else:
        what = f"internal error: {type(error).__name__}: {_first_line(error)}"
    print(f"fivefold: {printable(what)}{_place(error)}; {_told_in(error)}", file=sys.stderr)
    return UNFORESEEN


def _first_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or "no message"


def _place(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if f"{os.sep}fivefold{os.sep}" in frame.filename]
    return f" ({Path(ours[-1].filename).name}:{ours[-1].lineno})" if ours else ""


def _told_in(error: BaseException) -> str:
    if _report is None:
        return "--report FILE writes the trace"
    try:
        _report.write_text(_trace(error))
    except OSError as failed:
        return f"and the trace cannot be written to {printable(str(_report))}: {failed.strerror}"
    return f"the trace is in {printable(str(_report))}"


def _trace(error: BaseException) -> str:
    from importlib import metadata

    lines = [
        f"fivefold {metadata.version('fivefold')}, Python {platform.python_version()}, {platform.platform()}",
        f"arguments: {sys.argv[1:]!r}",
        "",
        *traceback.format_exception(error),
    ]
    return "\n".join(lines)

"""Read a file that may be anything; write one whole or not at all."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Final

from fivefold.errors import FormatError, ImageError
from fivefold.opening import open_to_read
from fivefold.units import MIB, format_size

MOST_SERIAL: Final = 16 * MIB
"""A boot writes a few KiB; firmware and other kernels write more around it."""


def read_file(path: Path, most: int) -> bytes:
    """Return all of the file at *path*; `ImageError` if that is over *most* bytes, as of a device without an end."""
    with open_to_read(path) as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise ImageError(f"{path} is no image: it has more than {format_size(most)}")
    return data


def read_serial(path: Path) -> bytes:
    """Return all of the serial log at *path*, ``-`` for standard input; `FormatError` if it is no log in its length."""
    if str(path) == "-":
        data = sys.stdin.buffer.read(MOST_SERIAL + 1)
    else:
        with open_to_read(path) as file:
            data = file.read(MOST_SERIAL + 1)
    if len(data) > MOST_SERIAL:
        raise FormatError(f"{path}: more than {format_size(MOST_SERIAL)}, which no serial log of a boot is")
    return data


def write_file(path: Path, data: bytes) -> None:
    """Put *data* at *path*: under its final name there is never a part of it. `OSError` as usual, which names *path*.

    A link stays a link, to what is written. A device or pipe cannot be replaced, only written to.
    """
    final = path.resolve()
    try:
        if final.exists() and not final.is_file():
            with final.open("wb") as file:
                file.write(data)
        else:
            _replace(final, data)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def _replace(path: Path, data: bytes) -> None:
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        umask = os.umask(0)
        os.umask(umask)
        Path(name).chmod(0o666 & ~umask)
        Path(name).replace(path)
    except BaseException:  # Ctrl-C too must leave no half of a file
        Path(name).unlink(missing_ok=True)
        raise

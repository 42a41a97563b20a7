"""What becomes of a command whose output nobody takes: a reader such as `head` that goes away, a disk that is full."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from typing import Final

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


def print_to_nobody() -> None:
    """Let what is left in buffers go nowhere, so that it is not told twice that it could not be written."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)

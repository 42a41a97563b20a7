"""A worker process: ``SOCKET PARENT``, as `processes` starts it. It takes the work, then argument after argument."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from multiprocessing.connection import Connection
from typing import Any, Final

from fivefold.campaign.parts import attempt

_PR_SET_PDEATHSIG: Final = 1


def main() -> None:
    """Serve until the other end closes; the kernel ends this process with its parent."""
    descriptor, parent = map(int, sys.argv[1:3])
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        return
    link: Connection[Any, Any] = Connection(descriptor)
    try:
        work = link.recv()
        while True:
            link.send(attempt(work, link.recv()))
    except (EOFError, OSError):
        return


if __name__ == "__main__":
    main()

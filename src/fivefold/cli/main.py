"""Where the command line starts, with Ctrl-C in hand before anything heavy is imported.

Ctrl-C is status 130 and no traceback from the moment that `main` runs. Python's own start comes before, out of reach.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys

INTERRUPTED = 130
"""128 and the number of SIGINT, as shells have it."""


def main() -> None:
    """Run the command line and exit with its status."""
    interrupt = _Interrupt()
    try:
        sys.exit(_status(interrupt))
    finally:
        interrupt.give_back()


def _status(interrupt: _Interrupt) -> int:
    interrupt.end_at_once()
    from fivefold.cli.commands import run

    interrupt.unwind()
    try:
        status = run()
    except BaseException:  # Ctrl-C while a class is made comes out as another error
        if not interrupt.happened:
            raise
        status = INTERRUPTED
    interrupt.end_at_once()
    return status


class _Interrupt:
    """What SIGINT does: nothing of ours where it is ignored, as behind ``nohup``, or somebody else's."""

    def __init__(self) -> None:
        self.happened = False
        self._ours = signal.getsignal(signal.SIGINT) is signal.default_int_handler
        if self._ours:
            # While Python takes itself down, there is nothing left to unwind.
            atexit.register(self.end_at_once)

    def end_at_once(self) -> None:
        """From now on there is nothing that would have to be put back."""
        self._set(lambda *_: os._exit(INTERRUPTED))

    def unwind(self) -> None:
        """From now on guests have to be let go on, files removed, and processes ended."""
        self._set(self._raise)

    def give_back(self) -> None:
        """Let Python have SIGINT again."""
        self._set(signal.default_int_handler)

    def _raise(self, *_: object) -> None:
        self.happened = True
        raise KeyboardInterrupt

    def _set(self, handler: signal._HANDLER) -> None:
        if self._ours:
            signal.signal(signal.SIGINT, handler)

"""Where the command line starts, with signals in hand before anything heavy is imported.

Ctrl-C, a terminal that closes (SIGHUP) and a request to end (SIGTERM) let a frozen guest go on, remove what was written
and end the process with 128 and the signal's number, and no traceback, from the moment that `main` runs. Python's own
start comes before, out of reach.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
from types import FrameType
from typing import Final

ENDING: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
SIGNALLED: Final = 128
"""Added to a signal's number it is the exit status, as shells have it."""


def main() -> None:
    """Run the command line and exit with its status."""
    signals = _Signals()
    try:
        sys.exit(_status(signals))
    finally:
        signals.give_back()


def _status(signals: _Signals) -> int:
    signals.end_at_once()
    # numpy's linear algebra, which is not used here, would reserve memory for each CPU.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from fivefold.cli.commands import run

    try:  # a signal may come between any two steps from here on
        signals.unwind()
        status = run()
        signals.end_at_once()
    except BaseException:  # Ctrl-C while a class is made comes out as another error
        if signals.happened is None:
            raise
    signals.end_at_once()
    if signals.happened is None:
        return status
    # Python notes that an interrupt left code made from text, as a dataclass is, and ends by SIGINT whatever the
    # status is; other such code takes the note away.
    exec("")
    return SIGNALLED + signals.happened


class _Signals:
    """What the signals that end us do: nothing of ours where they are ignored, as behind ``nohup``, or another's."""

    def __init__(self) -> None:
        self.happened: int | None = None
        """The first that came."""
        defaults = (signal.SIG_DFL, signal.default_int_handler)
        self._before = {number: old for number in ENDING if (old := signal.getsignal(number)) in defaults}
        if self._before:
            # While Python takes itself down, there is nothing left to unwind.
            atexit.register(self.end_at_once)

    def end_at_once(self) -> None:
        """From now on there is nothing that would have to be put back."""
        for number in self._before:
            signal.signal(number, lambda number, _: os._exit(SIGNALLED + number))

    def unwind(self) -> None:
        """From now on guests have to be let go on, files removed, and processes ended."""
        for number in self._before:
            signal.signal(number, self._raise)
        sys.unraisablehook = self._unraisable

    def give_back(self) -> None:
        """Let Python have the signals again."""
        for number, old in self._before.items():
            signal.signal(number, old)

    def _unraisable(self, lost: sys.UnraisableHookArgs, /) -> None:
        """Keep quiet where Python could not raise our interrupt, as in a finalizer: the status says it all the same."""
        if self.happened is None or not isinstance(lost.exc_value, KeyboardInterrupt):
            sys.__unraisablehook__(lost)

    def _raise(self, number: int, _: FrameType | None) -> None:
        if self.happened is not None:
            return  # closing a terminal sends several: none may cut short what the first one began
        self.happened = number
        raise KeyboardInterrupt

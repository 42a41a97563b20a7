"""Stop an engine that runs inside this thread, from another one."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final, Self

TICK: Final = 0.25
"""Seconds after which a running guest is interrupted for a moment, so that Ctrl-C is seen."""

_RETRY: Final = 0.01


class Watchdog:
    """Calls *stop* every `TICK`, and from *timeout* seconds on until the ``with`` is left.

    Once is not enough at the deadline: a stop that falls between two calls of the engine is lost.
    """

    def __init__(self, stop: Callable[[], None], timeout: float) -> None:
        self._stop = stop
        self._deadline = time.monotonic() + timeout
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="fivefold watchdog", daemon=True)
        self.ticked = False
        """Set before each call of *stop*; whoever starts the engine clears it."""

    @property
    def expired(self) -> bool:
        """Whether the time is up."""
        return time.monotonic() >= self._deadline

    def _watch(self) -> None:
        while not self._done.wait(max(_RETRY, min(TICK, self._deadline - time.monotonic()))):
            self.ticked = True
            self._stop()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

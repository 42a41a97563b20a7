"""When a machine is given up: by the processor time that it used in vain, so that a busy host gives it time."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

_WALL: Final = 10
"""A machine that sleeps uses no processor time: it is given up after so many times the seconds by the clock."""


class MachinePatience:
    """Says when a machine has done nothing new for *seconds* of its processor time."""

    def __init__(self, seconds: float, used: Callable[[], float]) -> None:
        """*used* tells the processor time that the machine has used so far."""
        self.seconds, self._used = seconds, used
        self._seen: object = None
        self._begin()

    def _begin(self) -> None:
        self._since, self._spent = time.monotonic(), self._used()

    def ends(self, progress: object) -> bool:
        """Whether it is to be given up. *progress* is anything that changes when the machine does something new."""
        if progress != self._seen:
            self._seen = progress
            self._begin()
            return False
        clock = time.monotonic() - self._since
        return clock > self.seconds and (self._used() - self._spent > self.seconds or clock > _WALL * self.seconds)

"""Monitors that show a guest's console and nothing else: their process writes it to stdout, and ends with the guest."""

from __future__ import annotations

import contextlib
import os
import select
from collections.abc import Sequence

from fivefold.errors import MachineError
from fivefold.machine.child import Child
from fivefold.matrix.vmm.base import MOST_CONSOLE, Ended
from fivefold.matrix.vmm.cpu_time import cpu_seconds

_CHUNK = 1 << 16


class ConsoleMachine:
    """A machine of such a monitor. Its memory is not looked at: what the kernel tells is all there is."""

    log = ""

    def __init__(self, command: Sequence[str], files: Sequence[int], cleanup: contextlib.ExitStack) -> None:
        """Start *command* with *files* open; *cleanup* is closed with the machine. `MachineError` if it cannot be."""
        self.console = bytearray()
        self.ended: Ended | None = None
        self.last_words = ""
        self._written = 0
        self._cleanup = cleanup
        self._out, theirs = os.pipe()
        cleanup.callback(os.close, self._out)
        os.set_blocking(self._out, False)
        to_pipe = ["/bin/sh", "-c", f'exec "$@" >/proc/self/fd/{theirs}', "sh", *command]
        try:
            self._child = Child(to_pipe, [theirs, *files])
        except OSError as error:
            raise MachineError(f"{command[0]} cannot be started: {error.strerror}") from error
        finally:
            os.close(theirs)
        cleanup.callback(self._child.end)

    @property
    def flooded(self) -> bool:
        """Whether the console passed its bound."""
        return self._written > MOST_CONSOLE

    def wait(self, seconds: float) -> None:
        """Take in what comes; the end of the process is the end of the machine."""
        if not select.select((self._out,), (), (), max(seconds, 0))[0]:
            return
        with contextlib.suppress(BlockingIOError):
            while part := os.read(self._out, _CHUNK):
                self._written += len(part)
                self.console += part[: max(0, MOST_CONSOLE - len(self.console))]
                if self.flooded:
                    return
            self.last_words = self._child.end().decode(errors="replace").strip()[-500:]
            self.ended = "reset" if self.console else "gone"

    def stop(self) -> None:
        """There is no way to."""

    def go_on(self) -> None:
        """It never stood still."""

    def registers(self) -> str:
        """None are told."""
        return ""

    def worked(self) -> float | None:
        """By the kernel's own count."""
        return cpu_seconds(self._child.pid)

    def source(self) -> None:
        """There is no way in."""
        return

    def leaves(self) -> None:
        """There is no walk."""
        return

    def close(self) -> None:
        """Kill the monitor and wait for it."""
        self._cleanup.close()

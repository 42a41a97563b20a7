"""A child process that cannot outlive us."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
from collections.abc import Sequence
from typing import Final

_PR_SET_PDEATHSIG: Final = 1
# Looked up here and not between fork and exec, where nothing may be allocated or locked.
_prctl = ctypes.CDLL(None, use_errno=True).prctl


class Child:
    """A running program; the kernel kills it when the thread that made it ends, however it ends."""

    def __init__(self, command: Sequence[str], fds: Sequence[int]) -> None:
        """Start *command* with *fds* open, stdin and stdout empty. Raises `OSError`."""
        parent = os.getpid()

        def die_with_parent() -> None:
            _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != parent:
                os._exit(1)

        self._errors: bytes | None = None
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            pass_fds=fds,
            # Ctrl-C at the terminal is ours to handle: it must not reach the child.
            start_new_session=True,
            preexec_fn=die_with_parent,
        )

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def end(self) -> bytes:
        """Kill it if it runs, wait for it, and return what it wrote to stderr. May be called again."""
        if self._errors is None:
            self._process.kill()
            _, self._errors = self._process.communicate()
        return self._errors

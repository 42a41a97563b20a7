"""A child process that cannot outlive us."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

_PR_SET_PDEATHSIG: Final = 1
_LAST_WORDS: Final = 1 << 16


def environment() -> dict[str, str]:
    """The environment for programs that are found by name: nowhere relative to the current directory."""
    places = os.environ.get("PATH", os.defpath).split(os.pathsep)
    return os.environ | {"PATH": os.pathsep.join(place for place in places if place.startswith(os.sep))}


class Child:
    """A running program; the kernel kills it when the thread that made it ends, however it ends."""

    def __init__(self, command: Sequence[str], fds: Sequence[int], more: Mapping[str, str] | None = None) -> None:
        """Start *command* with *fds* open, stdin and stdout empty, *more* in its environment. Raises `OSError`."""
        parent = os.getpid()
        # Looked up before the fork: between it and exec nothing may be allocated or locked.
        prctl = ctypes.CDLL(None, use_errno=True).prctl

        def die_with_parent() -> None:
            prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != parent:
                os._exit(1)

        self._errors: bytes | None = None
        # Not a pipe: that fills up unless it is read, and stays open while any process holds its other end.
        self._stderr = os.memfd_create("fivefold-stderr")
        try:
            self._process = subprocess.Popen(
                command,
                env=environment() | dict(more or {}),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self._stderr,
                pass_fds=fds,
                # Ctrl-C at the terminal is ours to handle: it must not reach the child.
                start_new_session=True,
                preexec_fn=die_with_parent,
            )
        except BaseException:  # Ctrl-C too must leave no open file
            os.close(self._stderr)
            raise

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def is_gone(self) -> bool:
        """Whether it has ended by itself; it is still to be waited for, so that its number is its own."""
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    @property
    def processor_seconds(self) -> float:
        """Processor time that it has used, all its threads together; 0 once it is gone."""
        try:
            fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return 0.0
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def send(self, number: signal.Signals) -> None:
        """Send a signal to it, if it still runs."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    def end(self) -> bytes:
        """Kill it and what it started, wait for it, and return what it wrote to stderr last. May be called again."""
        if self._errors is None:
            # It leads a group of its own. It has not been waited for yet, so that the number is still its own.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
            self._process.wait()
            written = os.fstat(self._stderr).st_size
            self._errors = os.pread(self._stderr, _LAST_WORDS, max(0, written - _LAST_WORDS))
            os.close(self._stderr)
        return self._errors

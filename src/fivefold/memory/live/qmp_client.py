"""A small client of QEMU's machine protocol: connect, ask, one answer at a time.

Blocking and single-threaded on purpose, so that it works inside a notebook's event loop
and starts in no time. Protocol: *QEMU Machine Protocol Specification*.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Iterator
from typing import Any, Final

from fivefold.errors import FivefoldError, MachineError
from fivefold.memory.live.connection import Connection, connect
from fivefold.memory.live.monitor import QmpError, given_file
from fivefold.units import MIB

MAX_ANSWER: Final = 64 * MIB

__all__ = ["MAX_ANSWER", "QmpClient", "QmpError"]


class QmpClient:
    """A connection in command mode. Not to be shared between threads."""

    def __init__(self, address: str, *, timeout: float = 10.0, connected: socket.socket | None = None) -> None:
        """Connect to *address*, a socket's path or HOST:PORT; *timeout* in seconds for each answer.

        With *connected*, a socket that is open already and is the client's from now on, *address* is
        only what errors call it. `MachineError` when nothing answers or what answers does not speak QMP.
        """
        self.address = address
        stream = connected or connect(address, timeout, "QMP")
        self._connection = Connection(stream, address, timeout, "is QEMU still running?")
        self._asked = 0
        self._searched = 0
        try:
            self._connection.begin()
            self._connection.if_silent = "" if connected else "; another client may hold the socket"
            self._greet()
            self._connection.if_silent = ""
            # Within the same time limit: a client is connected when it can ask.
            self._answer("qmp_capabilities", {})
        except (FivefoldError, OSError):
            self.close()
            raise

    @property
    def peer_pid(self) -> int | None:
        """The process at the other end of a Unix socket, None over TCP."""
        return self._connection.peer_pid

    def ask(self, command: str, **arguments: object) -> Any:
        """The answer to *command*; `QmpError` when QEMU refuses, `MachineError` when it does not answer.

        Names of *arguments* are the protocol's with ``_`` for ``-``.
        """
        self._connection.begin()
        return self._answer(command, {name.replace("_", "-"): value for name, value in arguments.items()})

    @contextlib.contextmanager
    def lend(self, file: int) -> Iterator[str]:
        """A path by which QEMU can open *file* inside the ``with`` block, though it may have no name.

        QEMU is given the file itself where the socket can pass one: that works for any user that it runs as.
        """
        given = self._given(file)
        if given is None:
            yield f"/proc/{os.getpid()}/fd/{file}"
            return
        number, group = given
        try:
            yield f"/proc/self/fd/{number}"
        finally:
            with contextlib.suppress(MachineError):  # it closes the file too when we disconnect
                self.ask("remove-fd", fdset_id=group)

    def _given(self, file: int) -> tuple[int, int] | None:
        """The number of *file* in QEMU and that of its group, None where QEMU does not take it."""
        if not self._connection.passes_files:
            return None
        self._connection.begin()
        try:
            answer = self._answer("add-fd", {}, file)
        except QmpError:
            return None
        return given_file(answer)

    @contextlib.contextmanager
    def patience(self, seconds: float) -> Iterator[None]:
        """Wait *seconds* longer than usual for answers inside the ``with`` block."""
        self._connection.timeout += seconds
        try:
            yield
        finally:
            self._connection.timeout -= seconds

    def monitor(self, line: str, **arguments: object) -> str:
        """What the human monitor prints for *line*; *arguments* as for `ask`, such as ``cpu_index``."""
        answer = self.ask("human-monitor-command", command_line=line, **arguments)
        if not isinstance(answer, str):
            raise MachineError(f"{self.address} answers {line!r} with {type(answer).__name__}, expected text")
        return answer

    def close(self) -> None:
        """Disconnect; the guest goes on as it was."""
        self._connection.close()

    def _greet(self) -> None:
        """Read up to the greeting. What QEMU had left to send to the client before us may come first."""
        while "QMP" not in (message := self._message()):
            if not message.keys() & {"event", "return", "error"}:
                raise MachineError(f"{self.address} does not speak QMP: its first message has no 'QMP'")

    def _note_event(self, event: dict[str, Any]) -> None:
        """Called with what arrives unasked; here it is ignored."""

    def _receive(self) -> None:
        """Wait for more of an answer."""
        self._connection.receive()

    def _answer(self, command: str, arguments: dict[str, object], file: int | None = None) -> Any:
        self._asked += 1
        request = {"execute": command, **({"arguments": arguments} if arguments else {}), "id": self._asked}
        self._connection.send(json.dumps(request).encode() + b"\n", file)
        while True:
            message = self._message()
            # A question that was given up may be answered later: that is no answer to this one.
            if message.get("id", self._asked) != self._asked:
                continue
            if "return" in message:
                return message["return"]
            if isinstance(refusal := message.get("error"), dict):
                raise QmpError(command, str(refusal.get("class", "")), str(refusal.get("desc", "no reason given")))
            if "event" in message:
                self._note_event(message)

    def _message(self) -> dict[str, Any]:
        line = self._line()
        try:
            message = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise MachineError(f"{self.address} does not speak QMP: {line[:40]!r} is not JSON") from error
        if not isinstance(message, dict):
            raise MachineError(f"{self.address} does not speak QMP: {line[:40]!r} is not an object")
        return message

    def _line(self) -> bytes:
        buffer = self._connection.buffer
        while (end := buffer.find(b"\n", self._searched)) < 0:
            self._searched = len(buffer)
            if len(buffer) > MAX_ANSWER:
                raise MachineError(f"{self.address} sent more than {MAX_ANSWER} bytes without a line's end")
            self._receive()
        self._searched = 0
        return self._connection.take(end + 1).rstrip(b"\r\n")

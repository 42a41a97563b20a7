"""A small client of QEMU's machine protocol: connect, ask, one answer at a time.

Blocking and single-threaded on purpose, so that it works inside a notebook's event loop
and starts in no time. Protocol: *QEMU Machine Protocol Specification*.
"""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import time
from collections.abc import Iterator
from typing import Any, Final

from fivefold.errors import FivefoldError, MachineError
from fivefold.units import MIB

MAX_ANSWER: Final = 64 * MIB


class QmpError(FivefoldError):
    """QEMU refused a command; *kind* is the class of its error."""

    def __init__(self, command: str, kind: str, reason: str) -> None:
        super().__init__(f"QEMU refuses {command}: {reason}")
        self.command = command
        self.kind = kind


class QmpClient:
    """A connection in command mode. Not to be shared between threads."""

    def __init__(self, address: str, *, timeout: float = 10.0) -> None:
        """Connect to *address*, a socket's path or HOST:PORT; *timeout* in seconds for each answer.

        `MachineError` when nobody answers or what answers does not speak QMP.
        """
        self.address = address
        self._timeout = timeout
        self._buffer = bytearray()
        self._socket = connect(address, timeout, "QMP")
        try:
            greeting = self._message()
            if "QMP" not in greeting:
                raise MachineError(f"{address} does not speak QMP: its first message has no 'QMP'")
            self.ask("qmp_capabilities")
        except (FivefoldError, OSError):
            self._socket.close()
            raise

    @property
    def peer_pid(self) -> int | None:
        """The process at the other end of a Unix socket, None over TCP."""
        if self._socket.family != socket.AF_UNIX:
            return None
        raw = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        pid: int = struct.unpack("3i", raw)[0]
        return pid or None

    def ask(self, command: str, **arguments: object) -> Any:
        """The answer to *command*; `QmpError` when QEMU refuses, `MachineError` when it does not answer."""
        request: dict[str, object] = {"execute": command}
        if arguments:
            request["arguments"] = {name.replace("_", "-"): value for name, value in arguments.items()}
        try:
            self._socket.sendall(json.dumps(request).encode() + b"\n")
        except OSError as error:
            raise MachineError(f"{self.address} went away at {command}: {error.strerror or error}") from error
        deadline = time.monotonic() + self._timeout
        while time.monotonic() < deadline:
            message = self._message()
            if "return" in message:
                return message["return"]
            if isinstance(refusal := message.get("error"), dict):
                raise QmpError(command, str(refusal.get("class", "")), str(refusal.get("desc", "no reason given")))
        raise MachineError(f"{self.address} sends events but no answer to {command} in {self._timeout:g} s")

    @contextlib.contextmanager
    def patience(self, seconds: float) -> Iterator[None]:
        """Wait *seconds* longer than usual for answers inside the ``with`` block."""
        usual = self._timeout
        self._timeout = usual + seconds
        self._socket.settimeout(self._timeout)
        try:
            yield
        finally:
            self._timeout = usual
            self._socket.settimeout(usual)

    def monitor(self, line: str) -> str:
        """What the human monitor prints for *line*."""
        answer = self.ask("human-monitor-command", command_line=line)
        if not isinstance(answer, str):
            raise MachineError(f"{self.address} answers {line!r} with {type(answer).__name__}, expected text")
        return answer

    def close(self) -> None:
        """Disconnect; the guest goes on as it was."""
        self._socket.close()

    def _message(self) -> dict[str, Any]:
        while b"\n" not in self._buffer:
            try:
                part = self._socket.recv(1 << 16)
            except TimeoutError as error:
                raise MachineError(
                    f"{self.address} gave no answer in {self._timeout:g} s; another client may hold the socket"
                ) from error
            except OSError as error:
                raise MachineError(f"{self.address} went away: {error.strerror}") from error
            if not part:
                raise MachineError(f"{self.address} closed the connection in the middle; is QEMU still running?")
            self._buffer += part
            if len(self._buffer) > MAX_ANSWER:
                raise MachineError(f"{self.address} sent more than {MAX_ANSWER} bytes without a line's end")
        line, _, rest = bytes(self._buffer).partition(b"\n")
        self._buffer = bytearray(rest)
        try:
            message = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise MachineError(f"{self.address} does not speak QMP: {line[:40]!r} is not JSON") from error
        if not isinstance(message, dict):
            raise MachineError(f"{self.address} does not speak QMP: {line[:40]!r} is not an object")
        return message


def connect(address: str, timeout: float, what: str) -> socket.socket:
    """A connected socket to a path or to HOST:PORT; `MachineError` with *what* was expected there."""
    host, colon, port = address.rpartition(":")
    by_port = bool(colon) and port.isdecimal() and "/" not in host
    family = socket.AF_INET if by_port else socket.AF_UNIX
    with contextlib.ExitStack() as undo:
        try:
            if by_port:
                connected = socket.create_connection((host.strip("[]") or "localhost", int(port)), timeout)
                undo.callback(connected.close)
                # Small packets in turn: without this each waits for the other side's delayed acknowledgement.
                connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            else:
                connected = socket.socket(family, socket.SOCK_STREAM)
                undo.callback(connected.close)
                connected.settimeout(timeout)
                connected.connect(address)
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise MachineError(f"cannot connect to {address} for {what}: {reason}") from error
        undo.pop_all()
    return connected

"""QEMU's monitor over a socket, one command at a time.

The library qemu.qmp is asyncio: inside a notebook, whose loop already runs, a blocking call
of it is refused. An engine that blocks needs no more than this.
Source: QEMU, docs/interop/qmp-spec.
"""

from __future__ import annotations

import json
import socket
from typing import Any, Final

from fivefold.errors import MachineError

_ANSWER_LIMIT: Final = 30.0
"""Seconds until a monitor that does not answer is given up; start-up under load is the slowest."""


class QmpClient:
    """A monitor on *sock*, which it owns. `events` holds what arrived unasked, oldest first."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._buffer = b""
        self.events: list[dict[str, Any]] = []

    def fileno(self) -> int:
        """For ``select``: readable when an event may have arrived."""
        return self._sock.fileno()

    def greet(self) -> None:
        """Read the greeting and leave the negotiation mode. Call it first."""
        self._receive()
        self.execute("qmp_capabilities")

    def execute(self, command: str, **arguments: Any) -> Any:
        """Run *command* and return its answer; `MachineError` if it fails or QEMU is gone."""
        try:
            self._sock.sendall(json.dumps({"execute": command, "arguments": arguments}).encode())
        except OSError as error:
            raise MachineError(f"QEMU is gone: {error}") from error
        while True:
            message = self._receive()
            if "return" in message:
                return message["return"]
            if "error" in message:
                raise MachineError(f"QEMU refused {command}: {message['error']['desc']}")
            self._keep(message)

    def monitor(self, line: str, cpu: int = 0) -> str:
        """Run a command of the human monitor as for CPU number *cpu*, and return what it prints."""
        return str(self.execute("human-monitor-command", **{"command-line": line, "cpu-index": cpu}))

    def poll(self) -> None:
        """Take in events that are waiting. Blocks unless `fileno` is readable."""
        self._keep(self._receive())

    def close(self) -> None:
        """Close the socket."""
        self._sock.close()

    def _keep(self, message: dict[str, Any]) -> None:
        if "event" in message:
            self.events.append(message)

    def _receive(self) -> dict[str, Any]:
        self._sock.settimeout(_ANSWER_LIMIT)
        while b"\n" not in self._buffer:
            try:
                part = self._sock.recv(65536)
            except TimeoutError as error:
                raise MachineError(f"QEMU did not answer for {_ANSWER_LIMIT:g} s") from error
            except OSError as error:
                raise MachineError(f"QEMU is gone: {error}") from error
            if not part:
                raise MachineError("QEMU ended")
            self._buffer += part
        line, _, self._buffer = self._buffer.partition(b"\n")
        try:
            message = json.loads(line)
        except ValueError as error:
            raise MachineError(f"QEMU's monitor sent {line[:60]!r}, which is no JSON") from error
        return message if isinstance(message, dict) else {}

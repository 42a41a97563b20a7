"""The monitor of a QEMU that is our child: what arrives unasked matters too."""

from __future__ import annotations

import socket
from typing import Any

from fivefold.memory.qmp_client import QmpClient


class QemuMonitor(QmpClient):
    """A client that keeps events. `events` holds what arrived unasked, oldest first."""

    def __init__(self, connected: socket.socket, timeout: float) -> None:
        """Take over *connected*; the greeting, and later each answer, must come within *timeout* seconds."""
        self.events: list[dict[str, Any]] = []
        super().__init__("QEMU", timeout=timeout, connected=connected)

    def fileno(self) -> int:
        """For ``select``: readable when an event may have arrived."""
        return self._connection.fileno()

    def poll(self) -> None:
        """Take in the events that are waiting. Blocks unless `fileno` is readable."""
        self._connection.begin()
        self._note_event(self._message())
        while b"\n" in self._connection.buffer:
            self._note_event(self._message())

    def _note_event(self, event: dict[str, Any]) -> None:
        if "event" in event:
            self.events.append(event)

"""The monitor of a QEMU that is our child: what arrives unasked matters too, and what it writes elsewhere meanwhile."""

from __future__ import annotations

import select
import socket
from collections.abc import Callable, Sequence
from typing import Any

from fivefold.memory.live.qmp_client import QmpClient


class QemuMonitor(QmpClient):
    """A client that keeps events. `events` holds what arrived unasked, oldest first."""

    def __init__(
        self, connected: socket.socket, timeout: float, others: Sequence[socket.socket | int], drain: Callable[[], None]
    ) -> None:
        """Take over *connected*; the greeting, and later each answer, must come within *timeout* seconds.

        Whenever *others* have something to read while an answer is waited for, *drain* reads it: QEMU, stuck in
        writing there with its lock held, would never answer.
        """
        self.events: list[dict[str, Any]] = []
        self._drain = drain
        self._poll = select.poll()
        for source in (connected, *others):
            self._poll.register(source, select.POLLIN)
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

    def _receive(self) -> None:
        while (left := self._connection.left) > 0:
            ready = [source for source, _ in self._poll.poll(1000 * left)]
            self._drain()
            if self.fileno() in ready:
                break
        super()._receive()

    def _note_event(self, event: dict[str, Any]) -> None:
        if "event" in event:
            self.events.append(event)

"""A guest that stands still while we look, and is put back as it was."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from fivefold.errors import MachineError
from fivefold.memory.live.connection import ConnectionLostError
from fivefold.memory.live.qmp_client import QmpClient
from fivefold.memory.live.watchdog import Watchdog


class StoppedGuest:
    """Stops a guest, and puts it back as it was when we leave, or are killed. A guest that was paused stays paused."""

    def __init__(self, protocol: str, address: str) -> None:
        """*protocol* and *address* as a `Watchdog` has them."""
        self._watched = (protocol, address)
        self._watchdog: Watchdog | None = None
        self._stopped_at = 0.0
        self.stood_still = 0.0
        """Seconds that the guest stood still the last time, at most: from asking for it until it was let go on."""

    def is_running(self) -> bool:
        """Ask what runs it; `MachineError` where the answer makes no sense."""
        raise NotImplementedError

    def freeze(self) -> None:
        """Stop it."""
        # First: to let a guest go on that runs does no harm.
        self._watchdog = Watchdog(*self._watched)
        self._stopped_at = time.monotonic()
        self._stop()

    @contextmanager
    def stopped_briefly(self) -> Iterator[bool]:
        """Have it stand still inside the ``with`` block, and give whether it was us who stopped it."""
        self.stood_still = 0.0
        if self._watchdog is not None or not self.is_running():
            yield False
            return
        try:
            self.freeze()
            yield True
        finally:
            self.put_back()

    def put_back(self) -> None:
        """Let it go on if `freeze` stopped it; `MachineError` where it may be stopped still."""
        if self._watchdog is None:
            return
        with self._watchdog.until_put_back():
            try:
                self._let_go_on()
            except BaseException:
                self._close()  # a socket serves one client: the watchdog may be the next
                raise
            finally:
                self._watchdog = None
                self.stood_still = time.monotonic() - self._stopped_at

    def leave(self) -> None:
        """Like `put_back`, and disconnect."""
        try:
            self.put_back()
        finally:
            self._close()

    def _stop(self) -> None:
        raise NotImplementedError

    def _let_go_on(self) -> None:
        raise NotImplementedError

    def _close(self) -> None:
        raise NotImplementedError


class QmpGuest(StoppedGuest):
    """The guest behind a QMP socket."""

    def __init__(self, client: QmpClient, timeout: float) -> None:
        super().__init__("qmp", client.address)
        self._client = client
        self._timeout = timeout

    def is_running(self) -> bool:
        """Ask QEMU; `MachineError` where its answer makes no sense."""
        return says_it_runs(self._client.ask("query-status"), self._client.address)

    def _stop(self) -> None:
        self._client.ask("stop")

    def _close(self) -> None:
        self._client.close()

    def _let_go_on(self) -> None:
        try:
            self._client.ask("cont")
        except MachineError as first:
            self._client.close()
            try:
                self._ask_anew()
            except ConnectionLostError:
                return
            except MachineError as error:
                if isinstance(error.__cause__, FileNotFoundError | ConnectionRefusedError):
                    return  # QEMU is gone; there is nothing left to put back
                raise MachineError(
                    f"the guest of {self._client.address} may still be stopped: 'cont' failed: {first}; "
                    "give 'cont' to its monitor"
                ) from error

    def _ask_anew(self) -> None:
        """A connection may be in the middle of an answer that was given up: try on another."""
        client = QmpClient(self._client.address, timeout=self._timeout)
        try:
            client.ask("cont")
        finally:
            client.close()


def says_it_runs(status: object, address: str) -> bool:
    """What an answer to ``query-status`` says; `MachineError` where that is nothing."""
    running = status.get("running") if isinstance(status, dict) else None
    if not isinstance(running, bool):
        raise MachineError(f"{address} does not say whether its guest runs")
    return running

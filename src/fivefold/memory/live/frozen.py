"""A guest behind a QMP socket that stands still while we look, and is put back as it was."""

from __future__ import annotations

from fivefold.errors import MachineError
from fivefold.memory.live.connection import ConnectionLostError
from fivefold.memory.live.qmp_client import QmpClient
from fivefold.memory.live.watchdog import Watchdog


class QmpGuest:
    """Whether the guest runs; puts it back as it was when we leave, or are killed."""

    def __init__(self, client: QmpClient, timeout: float) -> None:
        self._client = client
        self._timeout = timeout
        self._watchdog: Watchdog | None = None

    def is_running(self) -> bool:
        """Ask QEMU; `MachineError` where its answer makes no sense."""
        status = self._client.ask("query-status")
        running = status.get("running") if isinstance(status, dict) else None
        if not isinstance(running, bool):
            raise MachineError(f"{self._client.address} does not say whether its guest runs")
        return running

    def freeze(self) -> None:
        """Stop it."""
        # First: to let a guest go on that runs does no harm.
        self._watchdog = Watchdog("qmp", self._client.address)
        self._client.ask("stop")

    def leave(self) -> None:
        """Let it go on if `freeze` stopped it, and disconnect; `MachineError` where it may be stopped still."""
        if self._watchdog is None:
            self._client.close()
            return
        with self._watchdog.until_put_back():
            try:
                self._let_go_on()
            finally:
                self._watchdog = None
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

"""What is asked of a QEMU's monitor, whichever way leads to it."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, Protocol

from fivefold.errors import MachineError


class QmpError(MachineError):
    """QEMU refused a command; *kind* is the class of its error."""

    def __init__(self, command: str, kind: str, reason: str) -> None:
        super().__init__(f"QEMU refuses {command}: {reason}")
        self.command = command
        self.kind = kind


class Monitor(Protocol):
    """A QEMU's machine protocol: over its socket, or through libvirt."""

    address: str

    def ask(self, command: str, **arguments: object) -> Any:
        """The answer to *command*; `QmpError` when QEMU refuses, `MachineError` when it does not answer."""
        ...

    def monitor(self, line: str, **arguments: object) -> str:
        """What the human monitor prints for *line*."""
        ...

    def lend(self, file: int) -> AbstractContextManager[str]:
        """A path by which QEMU can open *file* inside the ``with`` block."""
        ...

    def patience(self, seconds: float) -> AbstractContextManager[None]:
        """Wait *seconds* longer than usual for answers inside the ``with`` block."""
        ...


def given_file(answer: object) -> tuple[int, int] | None:
    """The number of a file in QEMU and that of its group, by the answer to ``add-fd``; None where it has neither."""
    number, group = (answer.get("fd"), answer.get("fdset-id")) if isinstance(answer, dict) else (None, None)
    return (number, group) if isinstance(number, int) and isinstance(group, int) else None

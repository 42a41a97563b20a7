"""Bochs' log, read as it comes: how the run ended.

Formats as of Bochs 2.7 to 3.1 (cpu/exception.cc, cpu/proc_ctrl.cc, pc_system.cc, iodev/acpi.cc).
"""

from __future__ import annotations

import re
from typing import Final

from fivefold.errors import MachineError
from fivefold.machine.base import Event, Halted, PoweredOff, Reset, Shutdown

KEPT: Final = 1 << 16
"""Bytes of the log's end that are kept: a guest may have Bochs complain without end."""
_LINE: Final = re.compile(r"^\d+([a-z])\[(\w*) *\] (.*)$")
_NO_RESOLUTION: Final = re.compile(r"3rd \((\d+)\) exception with no resolution")
_HALT: Final = "HLT instruction with IF=0"
_POWER_OFF: Final = "soft power off"
_RESETS: Final = ("Reset(HARDWARE) called", "Reset(SOFTWARE) called")


class BochsLogReader:
    """Takes the log in pieces. `event` is how the run ended, None as long as it goes on."""

    def __init__(self) -> None:
        self.event: Event | None = None
        self.panic = ""
        """With what words Bochs gave up, where the guest is not what ended the run."""
        self._kept = bytearray()
        self._part = b""
        self._resets = 0

    @property
    def text(self) -> bytes:
        """The end of the log."""
        return bytes(self._kept)

    def take(self, data: bytes) -> None:
        """Read on."""
        self._kept += data
        del self._kept[:-KEPT]
        *lines, self._part = (self._part + data).split(b"\n")
        self._part = self._part[-KEPT:]
        for line in lines:
            if self.event is None:
                self._read(line.decode(errors="replace"))

    def _read(self, line: str) -> None:
        found = _LINE.match(line)
        if found is None:
            return
        kind, device, words = found.groups()
        if _HALT in words:
            # Other CPUs are halted by the first, which goes on.
            self.event = Halted(None) if device == "CPU0" else None
        elif _NO_RESOLUTION.search(words):
            self.event = Shutdown(())
        elif _POWER_OFF in words:
            self.event = PoweredOff()
        elif any(reset in words for reset in _RESETS):
            self._resets += 1
            self.event = Reset() if self._resets > 1 else None  # the first is the machine's start
        elif kind == "p" and not self.panic:
            self.panic = words.removeprefix(">>PANIC<< ")

    def end(self) -> MachineError:
        """Why a run has ended that the log has no event of."""
        return MachineError(f"Bochs gave up: {self.panic}" if self.panic else "Bochs ended without a word")

"""A machine whose console is a script: what `watch` and the verdicts see, without a monitor."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from fivefold.errors import MachineError
from fivefold.matrix.cells import Cell
from fivefold.matrix.vmm.base import MOST_CONSOLE, Ended, Files


@dataclass
class ScriptedMachine:
    """Writes *chunks*, one a look; then it has *end*, or stays as it is with *rips* to be seen one after the other."""

    chunks: list[bytes]
    end: Ended | None = None
    rips: Sequence[int] = (0xFFFF_FFFF_8100_0000,)
    halted: bool = False
    log: str = ""
    last_words: str = ""
    console: bytearray = field(default_factory=bytearray)
    ended: Ended | None = None
    running: bool = True
    closed: bool = False
    works: float | None = None
    """Seconds of CPU time that each look finds more than the one before; None where it is not known."""
    _worked: float = 0.0
    _looks: int = 0
    _written: int = 0

    @property
    def flooded(self) -> bool:
        return self._written > MOST_CONSOLE

    def wait(self, seconds: float) -> None:
        if self.chunks:
            part = self.chunks.pop(0)
            self._written += len(part)
            self.console += part[: 1 << 16]
            if not part:
                time.sleep(0.01)
        else:
            self.ended = self.end
            time.sleep(min(seconds, 0.01))

    def stop(self) -> None:
        self.running = False

    def go_on(self) -> None:
        self.running = True

    def registers(self) -> str:
        self._looks += 1
        rip = self.rips[self._looks % len(self.rips)]
        return f"CPU#0\nRIP={rip:016x} RFL=00000246 CPL=0 II=0 A20=1 SMM=0 HLT={int(self.halted)}\n"

    def worked(self) -> float | None:
        if self.works is None:
            return None
        self._worked += self.works
        return self._worked

    def source(self) -> None:
        return

    def leaves(self) -> None:
        return

    def close(self) -> None:
        self.closed = True


@dataclass
class ScriptedDriver:
    """Starts one machine after the other."""

    machines: list[Any]
    name: str = "scripted"
    started: list[str] = field(default_factory=list)

    def version(self) -> str:
        return "1"

    def refusal(self, cell: Cell) -> str | None:
        return None

    def start(self, cell: Cell, cmdline: str, files: Files) -> Any:
        self.started.append(cmdline)
        if len(self.started) > len(self.machines):
            raise MachineError("no machine is left")
        return self.machines[len(self.started) - 1]

    def command(self, cell: Cell, cmdline: str, kernel: str, initramfs: str, disk: str | None) -> Sequence[str]:
        return ["boot", cell.id, cmdline]

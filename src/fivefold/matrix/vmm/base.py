"""The interface of a driver: what starts a machine for a cell, and what can be asked of the machine.

A driver says what it cannot do before anything is started. A machine leaves nothing behind when it is closed: no
process, no socket, no file. What it writes is taken in by `RunningMachine.wait`, and kept within bounds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal, Protocol

from fivefold.matrix.cells import Cell
from fivefold.memory import Source
from fivefold.units import MIB

Ended = Literal["triple-fault", "reset", "off", "gone"]
"""How a machine can end by itself: the CPU shut down, it was reset, it turned itself off, or its process went away."""

MOST_CONSOLE: Final = 64 * MIB
"""A console that writes more is a flood: no kernel has so much to say before its init is up."""


@dataclass(frozen=True)
class Files:
    """What a machine is started with: open files without names, by number, and a folder for what needs a name.

    *kernel* is a bzImage or an ELF file, as the cell's path needs it.
    """

    kernel: int
    initramfs: int
    scratch: str
    disk: int | None = None


class RunningMachine(Protocol):
    """A machine that runs."""

    console: bytearray
    ended: Ended | None
    last_words: str
    """What the monitor's process wrote to stderr, once it is gone."""

    @property
    def log(self) -> str:
        """What the monitor itself noted of exceptions and resets, its end as far as it is kept; empty without."""

    @property
    def flooded(self) -> bool:
        """Whether the console passed `MOST_CONSOLE`."""

    def wait(self, seconds: float) -> None:
        """Take in what comes for up to *seconds*; returns at once where something came."""

    def stop(self) -> None:
        """Let it stand still."""

    def go_on(self) -> None:
        """Let it run again."""

    def registers(self) -> str:
        """The registers of all CPUs, as QEMU prints them; empty where the monitor does not tell."""

    def worked(self) -> float | None:
        """Seconds of CPU time that its process has used so far; None where that is not known."""

    def source(self) -> Source | None:
        """Its memory and registers, for our instruments; None where the monitor gives no way in."""

    def leaves(self) -> str | None:
        """What the monitor's own walk of the page tables lists; None where it has none."""

    def close(self) -> None:
        """End it."""


class Driver(Protocol):
    """What starts machines."""

    name: str

    def version(self) -> str:
        """Which one it is. `MachineError` where it is not installed."""

    def refusal(self, cell: Cell) -> str | None:
        """Why it cannot run *cell*, or None."""

    def start(self, cell: Cell, cmdline: str, files: Files) -> RunningMachine:
        """Start a machine. `MachineError` where that fails."""

    def command(self, cell: Cell, cmdline: str, kernel: str, initramfs: str, disk: str | None) -> Sequence[str]:
        """The command that a person types to boot the cell without us, console on the terminal."""


Sleep = Callable[[float], None]

"""Things that run an image: Unicorn in this process, QEMU with TCG or KVM, Bochs."""

from fivefold.machine.base import (
    CpuidOverride,
    Event,
    ExceptionRecord,
    Exit,
    Guest,
    Halted,
    LimitReached,
    Machine,
    MapRow,
    Module,
    PoweredOff,
    Registers,
    Reset,
    Shutdown,
    TableRegister,
    Timeout,
)
from fivefold.machine.registry import available, engines, start

__all__ = [
    "CpuidOverride",
    "Event",
    "ExceptionRecord",
    "Exit",
    "Guest",
    "Halted",
    "LimitReached",
    "Machine",
    "MapRow",
    "Module",
    "PoweredOff",
    "Registers",
    "Reset",
    "Shutdown",
    "TableRegister",
    "Timeout",
    "available",
    "engines",
    "start",
]

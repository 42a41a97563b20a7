"""What came of a machine that never got to wait: the outcome, and the first cause."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Final

from fivefold.errors import MachineError
from fivefold.matrix.result import CellCheck, Outcome, RunCause
from fivefold.matrix.run.causes import cause_of_console, cause_of_log
from fivefold.matrix.run.console import gave_up, last_line, panic_of
from fivefold.matrix.run.memory_log import log_in_memory
from fivefold.matrix.run.places import CpuPlace, MachinePlaces, cpu_places
from fivefold.matrix.run.watch import Stopped
from fivefold.matrix.vmm.base import RunningMachine
from fivefold.units import MIB

_ADDRESS: Final = re.compile(r"0x[0-9a-f]{16}")
_IDLE: Final = frozenset(("do_idle", "cpu_startup_entry", "default_idle_call"))
_EARLY: Final = frozenset(("early_fixup_exception",))
"""Where startup code stops after an exception. Source: Linux, *arch/x86/mm/extable.c*."""
_RIP_LINE: Final = re.compile(rb"RIP: 0010:([A-Za-z_][\w.]*)(\+0x[0-9a-f]+)")
_CR2_LINE: Final = re.compile(rb"CR2: ([0-9a-f]{16})")
_FROM_MEMORY: Final = " (it never came to the console: read from the kernel's log in memory)"


@dataclass
class FailedMachine:
    """A machine that stands still, and what is known of it. *silent*: seconds of silence that were taken for a hang."""

    machine: RunningMachine
    stopped: Stopped
    places: MachinePlaces
    silent: float

    @cached_property
    def console(self) -> bytes:
        """All that it said."""
        return bytes(self.machine.console)

    @cached_property
    def cpus(self) -> list[CpuPlace]:
        """Where its CPUs are; by the looks at a hang where memory and registers cannot be had together."""
        source = self.places.source
        if source is not None and source.cpus:
            return cpu_places(self.places, self.machine.registers(), source.cpus)
        stopped = self.stopped
        return [self.places.of(number, rip, stopped.halted) for number, rip in enumerate(stopped.places)]

    def verdict(self) -> tuple[Outcome, RunCause]:
        """The outcome and why. `MachineError` where what went away is the monitor."""
        told = cause_of_console(self.console, self.places)
        if self.stopped.kind == "panic" or panic_of(self.console) is not None:
            return "panic", told or RunCause("panic", panic_of(self.console) or "a panic without words")
        if self.stopped.kind in ("hang", "timeout", "flood"):
            return self._hang(told)
        if self.machine.ended == "triple-fault":
            return "triple-fault", told or self._triple_fault()
        if self.machine.ended == "gone":
            words = self.machine.last_words.splitlines()
            raise MachineError(f"the machine's process ended: {words[-1] if words else 'without a word'}")
        return "reset", told or self._reset()

    def _hang(self, told: RunCause | None) -> tuple[Outcome, RunCause]:
        logged = log_in_memory(self.places) if told is None else b""
        if panic_of(logged) is not None:
            cause = cause_of_console(logged, self.places)
            assert cause is not None
            symbol = cause.symbol or _caller_of_panic(self.cpus)
            return "panic", replace(cause, sentence=cause.sentence + _FROM_MEMORY, symbol=symbol)
        told = told or cause_of_console(logged, self.places)
        if told is None and _EARLY & {name for cpu in self.cpus for name in (cpu.function, *cpu.stack)}:
            return "panic", self._early_exception(logged)
        if told is not None:
            return "hang", told
        if (words := gave_up(self.console)) is not None:
            return "hang", RunCause("decompressor", f"the code that unpacks the kernel gave up: {words}")
        if self.stopped.kind == "flood":
            last = last_line(self.console)
            return "hang", RunCause("flood", f"it floods the console, and never comes to its init{_last(last)}")
        return "hang", self._stands_still(last_line(self.console) or last_line(logged))

    def _early_exception(self, logged: bytes) -> RunCause:
        """Of an exception that startup code met when nothing could be printed; its registers are in the log."""
        at, cr2 = _RIP_LINE.search(logged), _CR2_LINE.search(logged)
        symbol = at[1].decode() if at else None
        said = "an exception before the kernel can handle one and before its console"
        said += f", in {symbol}{at[2].decode()}" if at else ""
        said += f"; CR2 is 0x{cr2[1].decode()}" if cr2 else ""
        return RunCause("panic", said + _FROM_MEMORY, symbol)

    def _stands_still(self, last: str | None) -> RunCause:
        cpus, symbol = self.cpus, self._guilty.function if self._guilty else None
        if self.stopped.kind == "timeout":
            spot = self._guilty.sentence if self._guilty else "at an unknown place"
            much = f", after {len(self.console) // MIB} MiB on the console" if len(self.console) >= MIB else ""
            said = f"it was still running {spot} when its time was up{much}{_last(last)}"
            return RunCause("timeout", said, symbol)
        idle = cpus and all(cpu.halted and _IDLE & {cpu.function, *cpu.stack} for cpu in cpus)
        if not cpus:
            where = "the CPU is running in one place at an unknown place"
        elif len(cpus) == 1:
            where = f"the CPU is {_state(cpus[0])} {cpus[0].sentence}"
        else:
            where = "; ".join(f"CPU {cpu.number} is {_state(cpu)} {cpu.sentence}" for cpu in self._told_cpus())
        waits = "the kernel is idle, and what its boot waits for does not come; " if idle else ""
        said = f"nothing on the console for {self.silent:.0f} s; {waits}{where}{_last(last)}"
        return RunCause("hang", said, symbol)

    @property
    def _guilty(self) -> CpuPlace | None:
        """The CPU whose place is told first: one that runs rather than one that is halted."""
        return next((cpu for cpu in self.cpus if not cpu.halted), self.cpus[0] if self.cpus else None)

    def _told_cpus(self) -> list[CpuPlace]:
        running = [cpu for cpu in self.cpus if not cpu.halted]
        return running or self.cpus[:1]

    def _triple_fault(self) -> RunCause:
        cause = cause_of_log(self.machine.log, self.places)
        if cause is None:
            spot = f" {self._guilty.sentence}" if self._guilty else ""
            symbol = self._guilty.function if self._guilty else None
            return RunCause("triple-fault", f"the CPU shut down{spot}; the log of exceptions does not say why", symbol)
        return cause

    def _reset(self) -> RunCause:
        how = "turned itself off" if self.machine.ended == "off" else "reset itself"
        spot = f"; it was {self._guilty.sentence}" if self._guilty else ""
        symbol = self._guilty.function if self._guilty else None
        said = f"the machine {how} before its init was ready{spot}{_last(last_line(self.console))}"
        return RunCause("reset", said, symbol)


def cause_of_check(check: CellCheck, places: MachinePlaces, machine: RunningMachine) -> RunCause:
    """Why a machine that waits is not as promised, by the first check that failed: what lies there, who is missing."""
    said, symbol = f"check {check.name} failed: {check.detail}", None
    if check.name.startswith("audit-") and (found := _ADDRESS.search(check.detail)):
        symbol = places.name(int(found[0], 16))
    if check.name == "told-cpus" and places.source is not None:
        cpus = cpu_places(places, machine.registers(), places.source.cpus)
        said += "".join(f"; CPU {cpu.number} is {_state(cpu)} {cpu.sentence}" for cpu in cpus[1:])
    return RunCause(check.name, said, symbol)


def _state(cpu: CpuPlace) -> str:
    return "halted" if cpu.halted else "running in one place"


def _last(line: str | None) -> str:
    return f"; the last line is {line!r}" if line else ""


def _caller_of_panic(cpus: list[CpuPlace]) -> str | None:
    """Who called panic(), by the stack of the CPU that is in it."""
    for cpu in cpus:
        names = [cpu.function, *cpu.stack]
        if "panic" in names[:-1]:
            return names[names.index("panic") + 1]
    return None

"""Watch a machine until it is ready, ends, gives up, or stands still."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final, Literal

from fivefold.matrix.run.console import PANIC, PANIC_END, Reports, read_reports
from fivefold.matrix.vmm.base import RunningMachine

SILENT_SECONDS: Final = 30.0
"""A console that has been silent for so long, with the CPU in one place, is a hang."""
PANIC_SECONDS: Final = 5.0
"""How long a kernel that panicked may go on printing its trace."""
_STEP: Final = 0.25
_GATHER: Final = 0.01
"""What comes is looked at so much later, with what comes behind it: a serial port is read byte by byte."""
_SAMPLES: Final = 10
_SAMPLED: Final = 6
"""The looks take this part of the silence that led to them: five seconds of thirty."""
_NEAR: Final = 0x1000
"""Where no symbols are known, instructions closer than this are taken for one function."""
_HASHED: Final = b" * "
"""Stands in each line of the init, and in none of the kernel's text of its page tables, which is long."""
STARVED: Final = 4.0
"""A machine that got less than one part in so many of a core is starved by its host: it has so many times as long."""
_RIP: Final = re.compile(r"\b[RE]IP=([0-9a-f]{8,16})")
_HLT: Final = re.compile(r"\bHLT=([01])")

StopKind = Literal["ready", "ended", "panic", "hang", "timeout", "flood"]


@dataclass(frozen=True)
class Stopped:
    """Why watching ended, and what the init had said. *places*: instruction pointers of a hang, newest last."""

    kind: StopKind
    reports: Reports
    places: tuple[int, ...] = ()
    halted: bool = False


@dataclass(frozen=True)
class Patience:
    """Seconds: in all, and of silence before a look at whether the machine still moves.

    *first* takes the place of *silent* until the first byte: firmware and boot loaders say nothing here, and one of
    them stays in one small loop while it reads a kernel.
    """

    whole: float
    silent: float = SILENT_SECONDS
    panic: float = PANIC_SECONDS
    first: float | None = None

    def silence(self, heard: bool) -> float:
        """How long a machine may be silent that was *heard* already, or not yet."""
        return self.silent if heard or self.first is None else self.first


SymbolAt = Callable[[int], str | None]
AskSymbols = Callable[[], SymbolAt]


def watch(machine: RunningMachine, reports: int, patience: Patience, symbols: AskSymbols | None = None) -> Stopped:
    """Watch until *reports* reports are whole, or the machine is seen to come to nothing.

    *symbols* is asked for names only when the machine has been silent, and it stands still then.
    """
    began = heard = asked_again = time.monotonic()
    end = began + patience.whole
    worked = 0.0
    size = looked = 0
    found = Reports()
    panicked: float | None = None
    while True:
        machine.wait(_STEP)
        now = time.monotonic()
        if len(machine.console) != size:
            time.sleep(_GATHER)
            size, heard, worked = len(machine.console), now, machine.worked() or 0.0
        if size != looked and _HASHED in machine.console[machine.console.rfind(b"\n", 0, looked) + 1 :]:
            found = read_reports(bytes(machine.console))
        if panicked is None and PANIC.search(machine.console, max(0, looked - 256)):
            panicked = now
        looked = size
        if found.complete >= reports or (found.complete and found.failures):
            return Stopped("ready", found)
        if machine.ended is not None:
            return Stopped("ended", found)
        if machine.flooded:
            return Stopped("flood", found)
        if panicked is not None and (PANIC_END in machine.console or now - panicked > patience.panic):
            return Stopped("panic", found)
        if now > end and not (now < began + STARVED * patience.whole and _starved(machine, now - began, 0.0)):
            return Stopped("timeout", found, *_where(machine))
        silence = patience.silence(size > 0)
        if now - max(heard, asked_again) > silence:
            asked_again = now
            if now < heard + STARVED * silence and _starved(machine, now - heard, worked):
                continue
            if (still := _stands_still(machine, symbols, patience.silent / _SAMPLED)) is not None:
                return Stopped("hang", found, *still)


def _starved(machine: RunningMachine, seconds: float, before: float) -> bool:
    """Whether it runs, and got next to nothing of its host in the last *seconds*; *before*: what it had used then."""
    worked = machine.worked()
    if worked is None or (worked - before) * STARVED >= seconds:
        return False
    return not _all_halted(machine.registers())


def _where(machine: RunningMachine) -> tuple[tuple[int, ...], bool]:
    machine.stop()
    text = machine.registers()
    return _places(text), _all_halted(text)


def _places(text: str) -> tuple[int, ...]:
    return tuple(int(rip, 16) for rip in _RIP.findall(text))


def _all_halted(text: str) -> bool:
    states = _HLT.findall(text)
    return bool(states) and all(state == "1" for state in states)


def _stands_still(
    machine: RunningMachine, symbols: AskSymbols | None, seconds: float
) -> tuple[tuple[int, ...], bool] | None:
    """Where it is, if all CPUs are halted or stay in one function over some looks; None if it moves."""
    texts = []
    for _ in range(_SAMPLES):
        before = len(machine.console)
        texts.append(machine.registers())
        end = time.monotonic() + seconds / _SAMPLES
        while (left := end - time.monotonic()) > 0 and machine.ended is None and len(machine.console) == before:
            machine.wait(left)
        if len(machine.console) != before or machine.ended is not None:
            return None
    places = [_places(text) for text in texts]
    machine.stop()
    if all(_all_halted(text) for text in texts):
        return places[-1], True
    name = symbols() if symbols else None
    if places[-1] and all(_one_place(at, name) for at in _by_cpu(places, texts)):
        return places[-1], False
    machine.go_on()
    return None


def _by_cpu(places: list[tuple[int, ...]], texts: list[str]) -> Iterable[list[int]]:
    """Instruction pointers over time, of each CPU that is not halted in the last look."""
    halted = _HLT.findall(texts[-1])
    for number in range(len(places[-1])):
        if number < len(halted) and halted[number] == "1":
            continue
        yield [row[number] for row in places if number < len(row)]


def _one_place(at: list[int], name: SymbolAt | None) -> bool:
    names = {name(rip) if name else None for rip in at}
    if None not in names:
        return len(names) == 1
    return max(at) - min(at) < _NEAR

"""Engines that boot the payload and share their memory with us: cases go in, and results come out, through RAM."""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, Self

from fivefold.arch import Cpu, Refused
from fivefold.conform.engines.base import EngineError
from fivefold.conform.engines.patience import MachinePatience
from fivefold.conform.judging.outcome import CaseOutcome
from fivefold.conform.payload import layout
from fivefold.conform.payload.records import Trial, is_risky, read_head, read_outcomes, table
from fivefold.conform.places import CASES
from fivefold.machine.child import Child
from fivefold.units import MIB

RAM: Final = 512 * MIB
CHUNK: Final = 20_000
"""Cases in one start."""
STALL: Final = 1.5
"""Seconds of its processor time in which a machine that has begun must do its next case."""
_POLL: Final = 0.02


class SharedRam:
    """The guest's RAM, in this process and in the engine's."""

    def __init__(self, size: int = RAM) -> None:
        self.fd = os.memfd_create("fivefold-conform-ram")
        try:
            os.ftruncate(self.fd, size)
            self._map = mmap.mmap(self.fd, size)
        except (OSError, OverflowError) as error:
            os.close(self.fd)
            raise EngineError(f"this host cannot reserve {size >> 20} MiB of guest memory") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._map.close()
        os.close(self.fd)

    def read(self, at: int, size: int) -> bytes:
        """A copy of *size* bytes at physical *at*."""
        return self._map[at : at + size]

    def write(self, at: int, data: bytes) -> None:
        """Write *data* at physical *at*."""
        self._map[at : at + len(data)] = data

    def word(self, number: int) -> int:
        """A word of the table of cases, while the guest runs."""
        return int.from_bytes(self.read(CASES + 8 * number, 8), "little")


class MachineEngine:
    """An engine that boots the payload in a child process. `_start` is what an engine of this kind adds."""

    name = "machine"
    cannot: Mapping[str, str] = {}
    version = "unknown"
    cpu: Cpu

    def __init__(self, timeout: float) -> None:
        """Start once with no case, to ask for the CPU. Raises `EngineError`."""
        self.timeout = timeout
        self.cpu = read_head(self._machine(()))[2]

    def _start(self, written: bytes, ram: SharedRam) -> Child:
        """Start a machine with the table of cases *written*, whose memory is *ram*."""
        raise NotImplementedError

    def run(self, trials: Sequence[Trial]) -> Iterator[tuple[Trial, CaseOutcome]]:
        """The outcomes of *trials*. One that ends the machine is reported as such, and the rest run in a new one.

        Register writes that must be refused come last, since they end the machine where they are not; once one
        has done so, no more of its kind are run.
        """
        calm = sorted((trial for trial in trials if not is_risky(trial)), key=_mode)
        while calm:
            chunk, calm = calm[:CHUNK], calm[CHUNK:]
            yield from self._run_chunk(chunk)
        risky = sorted((trial for trial in trials if is_risky(trial)), key=_mode)
        while risky:
            stopped = None
            for trial, outcome in self._run_once(list(risky)):
                yield trial, outcome
                stopped = _kind(trial) if outcome.stopped else None
                risky.remove(trial)
            skipped = [trial for trial in risky if _kind(trial) == stopped]
            yield from (
                (trial, CaseOutcome(0, problem="another write of this kind stopped the machine")) for trial in skipped
            )
            risky = [trial for trial in risky if _kind(trial) != stopped]

    def _run_chunk(self, chunk: list[Trial]) -> Iterator[tuple[Trial, CaseOutcome]]:
        while chunk:
            told = list(self._run_once(chunk))
            yield from told
            chunk = chunk[len(told) :]

    def _run_once(self, chunk: list[Trial]) -> Iterator[tuple[Trial, CaseOutcome]]:
        """The outcomes of the first of *chunk*, up to one that stops the machine."""
        data = self._machine(chunk)
        done, finished, _ = read_head(data)
        yield from read_outcomes(data, chunk, done)
        if finished:
            yield from ((trial, CaseOutcome(0, problem="the machine has no such mode")) for trial in chunk[done:])
        elif done < len(chunk):
            yield chunk[done], CaseOutcome(0, problem="the machine stopped or reset at this case", stopped=True)

    def _machine(self, trials: Sequence[Trial]) -> bytes:
        """Run *trials*, which are sorted by mode, in one machine; return the table afterwards."""
        written = table(trials)
        if CASES + len(written) > RAM:
            raise EngineError(f"{len(trials)} cases take {len(written) >> 20} MiB, which the machine has no room for")
        with SharedRam() as ram:
            try:
                child = self._start(written, ram)
            except OSError as error:
                raise EngineError(f"{self.name} cannot be started: {error.strerror}") from error
            try:
                started = _wait(child, ram, self.timeout)
            finally:
                words = child.end().decode(errors="replace").strip().splitlines()
            if not started:
                raise EngineError(f"{self.name} did not run the payload: {words[-1] if words else 'it says nothing'}")
            return ram.read(CASES, len(written))


def _mode(trial: Trial) -> str:
    return trial.case.mode


def _kind(trial: Trial) -> tuple[str, str, str]:
    """What a risky write has in common with others that would do the same."""
    found = trial.expected.written
    return trial.case.mode, trial.case.action, found.rule if isinstance(found, Refused) else ""


def _wait(child: Child, ram: SharedRam, timeout: float) -> bool:
    """Wait until the process is gone, the payload has finished, or has done nothing: *timeout* seconds at the start.

    False if the payload has not even begun.
    """
    patience = MachinePatience(timeout, lambda: child.processor_seconds)
    while ram.word(layout.W_STATE) != layout.FINISHED and not child.is_gone:
        time.sleep(_POLL)
        state = ram.word(layout.W_STATE)
        patience.seconds = STALL if state else timeout
        if patience.ends((state, ram.word(layout.W_DONE))):
            break
    return ram.word(layout.W_STATE) != 0

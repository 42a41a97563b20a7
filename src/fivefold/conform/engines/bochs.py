"""Bochs, the program: an ISO whose GRUB starts the payload, and the text that the payload prints.

Its memory cannot be read from outside, so this is what a real machine is too: judged by its serial port.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Final

from fivefold.arch import Cpu
from fivefold.boot.image.iso import iso_file
from fivefold.conform.engines.base import EngineError
from fivefold.conform.engines.patience import MachinePatience
from fivefold.conform.judging.outcome import CaseOutcome, cause_of
from fivefold.conform.payload import layout
from fivefold.conform.payload.build import elf_file
from fivefold.conform.payload.read_text import SerialText, outcome_of_line, read_text
from fivefold.conform.payload.records import Trial, table
from fivefold.errors import MachineError
from fivefold.machine import Guest, Timeout
from fivefold.machine.bochs.config import installation
from fivefold.machine.bochs.engine import BochsMachine
from fivefold.units import MIB

MEMORY: Final = 512 * MIB
CHUNK: Final = 20_000
SEARCHED: Final = 2 * layout.BLOCK
"""Cases in which the one that ended the machine lies: the text tells of whole blocks."""
LIMIT: Final = 600.0
"""Seconds of its processor time for one machine."""
STALL: Final = 40.0
"""Seconds of its processor time without a word on the serial port after which a machine is given up: more than GRUB
takes to load cases."""
_SLICE: Final = 1.0


class BochsEngine:
    """Bochs 3.0 or later for five levels; *program* is a Bochs or a folder that its packages were unpacked into."""

    name = "bochs"
    cannot: Mapping[str, str] = {}

    def __init__(self, program: str | None = None, model: str | None = None) -> None:
        """Run the payload once with no case, for the CPU. `EngineError` or `MachineError` if that cannot be."""
        self._program, self._model = program, model or "la57"
        self.version = ".".join(map(str, installation(program).version))
        # The payload lies in the lower half: a CPU with LASS set could not fetch its handlers.
        self.cpu: Cpu = replace(self._machine(())[0].cpu, lass=False)

    def run(self, trials: Sequence[Trial]) -> Iterator[tuple[Trial, CaseOutcome]]:
        """The outcomes of *trials*. One that ends the machine is reported as such, and the rest run in a new one.

        No more are run then of those that the same rule decides: each would end it again. The case is found in a
        second machine, which prints the number of each case before it is run: that takes longer than the cases do.
        """
        left = sorted(trials, key=lambda trial: trial.case.mode)
        numbered = False
        while left:
            chunk = left[: SEARCHED if numbered else CHUNK]
            text, reason = self._machine(chunk, layout.P_NUMBERS if numbered else 0)
            done = min(text.done, len(chunk))
            for number, trial in enumerate(chunk[:done]):
                yield trial, outcome_of_line(trial, text.cases.get(number))
            left = left[done:]
            searched, numbered = numbered, False
            if done == len(chunk) or not left:
                continue
            if text.ended:
                yield from ((trial, CaseOutcome(0, problem="the machine has no such mode")) for trial in left)
                return
            if not searched and text.stopped_at != done:
                numbered = True
                continue
            yield left[0], CaseOutcome(0, problem=reason, stopped=True)
            rule = cause_of(*left[0])
            skipped = CaseOutcome(0, problem="the machine stopped at another case of the same rule")
            yield from ((trial, skipped) for trial in left[1:] if cause_of(*trial) == rule)
            left = [trial for trial in left[1:] if cause_of(*trial) != rule]

    def _machine(self, trials: Sequence[Trial], more: int = 0) -> tuple[SerialText, str]:
        """Run *trials*, which are sorted by mode, in one machine; its text, and why it stopped where it did not end."""
        iso = iso_file(None, elf_file(table(trials, layout.P_DIFFERING | more)))
        guest = Guest(iso, "multiboot2", cpu=self._model, memory=MEMORY)
        with BochsMachine(guest, program=self._program) as machine:
            reason = _run(machine)
            output = machine.output
        try:
            return read_text(output), reason
        except EngineError as error:
            raise EngineError(f"bochs did not run the payload: {error}; {reason}") from error


def _run(machine: BochsMachine) -> str:
    """Run *machine* to its end, or until nothing comes any more; say why it stopped."""
    patience = MachinePatience(STALL, lambda: machine.processor_seconds)
    try:
        while isinstance(machine.run(_SLICE), Timeout):
            if patience.ends(len(machine.output)) or machine.processor_seconds > LIMIT:
                return "the machine hangs at this case"
    except MachineError as error:
        return str(error)
    return "the machine stopped or reset at this case"

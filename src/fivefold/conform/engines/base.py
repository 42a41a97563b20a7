"""What an engine is to `conform`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from fivefold.arch import Cpu
from fivefold.conform.judging.outcome import CaseOutcome
from fivefold.conform.payload.records import Trial
from fivefold.errors import FivefoldError


class EngineError(FivefoldError):
    """An engine that is missing, cannot be started, or ran no case."""


class Engine(Protocol):
    """Something that runs cases.

    *name* and *version* go into the results; *cpu* is what it emulates, by which the outcomes are expected.
    """

    name: str
    version: str
    cpu: Cpu

    def run(self, trials: Sequence[Trial]) -> Iterator[tuple[Trial, CaseOutcome]]:
        """Yield an outcome for each trial, in any order."""
        ...

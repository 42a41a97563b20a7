"""What an engine is to `conform`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
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
    *cannot* has the actions that cannot be made in it, and why.
    """

    name: str
    version: str
    cpu: Cpu
    cannot: Mapping[str, str]

    def run(self, trials: Sequence[Trial]) -> Iterator[tuple[Trial, CaseOutcome]]:
        """Yield an outcome for each trial, in any order."""
        ...

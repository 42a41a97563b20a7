"""Runs that were made, kept in a campaign's state file where one is named, so that an interrupted matrix goes on."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from fivefold.campaign.parts import CampaignError, PartDone
from fivefold.campaign.state_file import open_state
from fivefold.matrix.plan import MatrixPlan
from fivefold.matrix.result import CellRun

_BETWEEN: Final = "#"
"""Stands between a cell's id, which has none, and the number of the run."""


def identity(plan: MatrixPlan, engine: str) -> dict[str, Any]:
    """What the runs of *plan* depend on."""
    cells = {planned.id: {**planned.cell.properties(), "kernel": planned.kernel} for planned in plan.cells}
    return {"kernels": [row.sha256 for row in plan.rows], "cells": json.loads(json.dumps(cells)), "engine": engine}


class MatrixState:
    """Runs by cell and number. One that was lost with what ran it is not kept in the file: it is made again."""

    def __init__(self, path: str | None, plan: MatrixPlan, engine: str) -> None:
        """Take what the file at *path* has, if one is named. `CampaignError` where it is another matrix'."""
        self.done: dict[tuple[str, int], CellRun] = {}
        self.not_kept: str | None = None
        """Why the file has not all that was done: a disk that is full ends what is kept, and not the matrix."""
        self._stack = ExitStack()
        self._file = self._stack.enter_context(open_state(Path(path) if path else None, identity(plan, engine)))
        try:
            for part in self._file.done():
                cell, _, number = part.name.rpartition(_BETWEEN)
                self.done[cell, int(number)] = CellRun.from_json(part.result)
        except (ValueError, KeyError, TypeError) as error:
            self._stack.close()
            raise CampaignError(f"{path} is damaged: a line is no run of a matrix") from error

    def has(self, cell: str, number: int) -> bool:
        """Whether the run need not be made."""
        run = self.done.get((cell, number))
        return run is not None and run.outcome != "worker-lost"

    def add(self, cell: str, number: int, run: CellRun) -> None:
        """Keep a run that was made."""
        self.done[cell, number] = run
        if run.outcome == "worker-lost" or self.not_kept is not None:
            return
        try:
            self._file.add(PartDone(f"{cell}{_BETWEEN}{number}", run.to_json()))
        except OSError as error:
            self.not_kept = error.strerror or str(error)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._stack.close()
        except OSError as failed:  # closing tries once more to write what could not be written
            self.not_kept = self.not_kept or failed.strerror or str(failed)

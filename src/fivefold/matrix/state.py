"""The state file: runs that were made, a line each, so that an interrupted matrix goes on where it was.

The first line says what the runs are of; a file of another matrix is refused. A last line that was cut is passed over.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, TextIO

from fivefold.errors import FormatError, cannot
from fivefold.matrix.plan import MatrixPlan
from fivefold.matrix.result import CellRun

SCHEMA: Final = "fivefold.matrix-state/1"


def identity(plan: MatrixPlan, engine: str) -> dict[str, Any]:
    """What the runs of *plan* depend on."""
    cells = {planned.id: {**planned.cell.properties(), "kernel": planned.kernel} for planned in plan.cells}
    return {
        "schema": SCHEMA,
        "kernels": [row.sha256 for row in plan.rows],
        "cells": json.loads(json.dumps(cells)),
        "engine": engine,
    }


class State:
    """An open state file; `done` has what it held. Without a path nothing is kept."""

    def __init__(self, path: str | None, plan: MatrixPlan, engine: str) -> None:
        """Read *path* if it is there, and go on writing to it. `FormatError` for another matrix' file."""
        self.done: dict[tuple[str, int], CellRun] = {}
        self._file: TextIO | None = None
        if path is None:
            return
        head = identity(plan, engine)
        try:
            old = Path(path).read_text() if Path(path).exists() else ""
            self._take(old, head, path)
            self._file = Path(path).open("w", encoding="utf-8")  # noqa: SIM115 (closed by `__exit__`)
            self._write(head)
            for (cell, number), run in self.done.items():
                self.add(cell, number, run)
        except (OSError, UnicodeDecodeError) as error:
            if isinstance(error, UnicodeDecodeError):
                raise FormatError(f"{path}: not a state file of a matrix") from error
            raise cannot("use", path, error) from error

    def _take(self, text: str, head: dict[str, Any], path: str) -> None:
        lines = text.splitlines(keepends=True)
        if not lines:
            return
        try:
            found = json.loads(lines[0])
        except ValueError as error:
            raise FormatError(f"{path}: not a state file of a matrix") from error
        if not isinstance(found, dict) or found.get("schema") != SCHEMA:
            raise FormatError(f"{path}: not a state file of a matrix")
        if found != head:
            changed = next(key for key in head if found.get(key) != head[key])
            raise FormatError(f"{path}: of another matrix: other {changed}; remove it, or give another --state")
        for line in lines[1:]:
            try:
                row = json.loads(line)
                self.done[row["cell"], int(row["number"])] = CellRun.from_json(row["run"])
            except (ValueError, KeyError, TypeError) as error:
                if line.endswith("\n"):
                    raise FormatError(f"{path}: a line that is no run: {line[:60]!r}") from error

    def add(self, cell: str, number: int, run: CellRun) -> None:
        """Keep a run that was made. One that was lost is not kept: it runs again."""
        self.done[cell, number] = run
        if self._file is not None and run.outcome != "worker-lost":
            self._write({"cell": cell, "number": number, "run": run.to_json()})

    def _write(self, row: dict[str, Any]) -> None:
        assert self._file is not None
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()

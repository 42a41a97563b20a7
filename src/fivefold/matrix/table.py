"""The whole table: every cell with all its runs folded into one row, and pairs of cells compared."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import median
from typing import Any, Final

from fivefold.matrix.plan import MatrixPlan, NoKernel, PlannedCell, SkippedCell
from fivefold.matrix.result import SCHEMA, CellRun, KernelRow, Outcome, RunCause, grouped_causes
from fivefold.matrix.statistics import clopper_pearson, fisher, holm

UNLIKELY: Final = 0.05
"""A corrected p below this is said to be unlikely by chance."""


@dataclass(frozen=True)
class CellResult:
    """A cell and its runs. *command* repeats it without us."""

    planned: PlannedCell
    kernel: KernelRow
    runs: tuple[CellRun, ...]
    command: str

    @property
    def id(self) -> str:
        """The cell's."""
        return self.planned.id

    @property
    def failures(self) -> int:
        """Runs that were not as promised."""
        return sum(not run.ok for run in self.runs)

    @property
    def ok(self) -> bool:
        """Whether all runs were as promised, or as the cell's own mark expects."""
        return self.failures == 0 or self.planned.cell.expected_to_fail is not None

    @property
    def shown(self) -> CellRun:
        """The run that stands for the cell: the first that failed, else the last."""
        return next((run for run in self.runs if not run.ok), self.runs[-1])

    @property
    def outcome(self) -> Outcome:
        """Of the run that is shown."""
        return self.shown.outcome

    @property
    def interval(self) -> tuple[float, float]:
        """The rate of failures, with 95 % confidence."""
        return clopper_pearson(self.failures, len(self.runs))

    @property
    def causes(self) -> list[tuple[RunCause, int]]:
        """The causes of its failures, each story once."""
        return grouped_causes(self.runs)

    @property
    def seconds(self) -> float:
        """Of a run in the middle."""
        return round(median(run.seconds for run in self.runs), 2)

    def to_json(self) -> dict[str, Any]:
        """As the schema has it."""
        cell, shown = self.planned.cell, self.shown
        return {
            "id": self.id, "kernel": self.kernel.path, "cpu": cell.cpu, "cmdline": cell.cmdline,
            "firmware": cell.path, "memory": cell.memory, "smp": cell.smp, "machine": cell.machine,
            "kexec": list(cell.kexec), "hibernate": cell.hibernate, "resume_cmdline": cell.resume_cmdline,
            "expected_to_fail": cell.expected_to_fail,
            "promised": self.planned.promised[-1], "mode": shown.mode, "outcome": shown.outcome, "ok": self.ok,
            "checks": [check.to_json() for check in shown.checks], "cause": shown.cause and shown.cause.to_json(),
            "causes": [{"cause": cause.to_json(), "count": count} for cause, count in self.causes],
            "repeats": len(self.runs), "failures": self.failures, "interval": list(self.interval),
            "seconds": self.seconds, "qemu": self.command, "engine": shown.engine, "kept": shown.kept,
        }  # fmt: skip


@dataclass(frozen=True)
class Comparison:
    """Two cells that differ in one property alone. *p* is corrected for all comparisons of the table."""

    first: CellResult
    second: CellResult
    differs: str
    p: float

    @property
    def sentence(self) -> str:
        """For people."""
        one, other = self.first, self.second
        counts = f"{one.id} fails {one.failures} of {len(one.runs)}, {other.id} {other.failures} of {len(other.runs)}"
        verdict = "unlikely by chance" if self.p < UNLIKELY else "may be chance"
        return f"{counts}: {verdict} (p = {self.p:.3g}; they differ in {self.differs} alone)"

    def to_json(self) -> dict[str, object]:
        """As the schema has it."""
        return {"cells": [self.first.id, self.second.id], "differs": self.differs, "p": self.p}


@dataclass(frozen=True)
class MatrixTable:
    """What the command prints."""

    kernels: tuple[KernelRow, ...]
    cells: tuple[CellResult, ...]
    skipped: tuple[SkippedCell, ...]
    no_kernels: tuple[NoKernel, ...]
    comparisons: tuple[Comparison, ...]

    @property
    def ok(self) -> bool:
        """Whether everything was as promised, and something was promised at all."""
        return bool(self.cells) and not self.no_kernels and all(cell.ok for cell in self.cells)

    @property
    def could_not(self) -> bool:
        """Whether nothing came to a verdict: no cell ran, or all were lost with the machines that ran them."""
        return all(cell.outcome == "worker-lost" for cell in self.cells)

    def to_json(self) -> dict[str, Any]:
        """The schema `fivefold.matrix/1`."""
        return {
            "schema": SCHEMA,
            "ok": self.ok,
            "kernels": [kernel.to_json() for kernel in self.kernels],
            "cells": [cell.to_json() for cell in self.cells] + [_nothing(row) for row in self.no_kernels],
            "comparisons": [row.to_json() for row in self.comparisons],
            "skipped": [row.to_json() for row in self.skipped],
        }


def _nothing(row: NoKernel) -> dict[str, Any]:
    """A file that is no kernel, as a cell that has everything empty but its cause."""
    cause = RunCause("not-a-kernel", row.reason).to_json()
    empty = dict.fromkeys(("cpu", "cmdline", "firmware", "memory", "smp", "machine", "promised", "mode"))
    return {
        "id": row.id, "kernel": row.path, **empty, "outcome": "not-a-kernel", "ok": False, "checks": [],
        "cause": cause, "causes": [{"cause": cause, "count": 1}], "repeats": 1, "failures": 1,
        "interval": list(clopper_pearson(1, 1)), "seconds": 0.0, "qemu": None, "engine": None, "kept": None,
    }  # fmt: skip


def make_table(
    plan: MatrixPlan, runs: Mapping[str, Sequence[CellRun]], commands: Mapping[str, Sequence[str]]
) -> MatrixTable:
    """The table of *plan* with the *runs* of each cell that has some, in the plan's order."""
    cells = tuple(
        CellResult(planned, plan.rows[planned.kernel], tuple(runs[planned.id]), shlex.join(commands[planned.id]))
        for planned in plan.cells
        if runs.get(planned.id)
    )
    return MatrixTable(plan.rows, cells, plan.skipped, plan.no_kernels, compare(cells))


def compare(cells: Sequence[CellResult]) -> tuple[Comparison, ...]:
    """All pairs of repeated cells that differ in one property alone; most telling first."""
    pairs = [
        (one, other, names[0])
        for one, other in combinations([cell for cell in cells if len(cell.runs) > 1], 2)
        if len(names := _differences(one, other)) == 1
    ]
    values = holm([fisher((one.failures, len(one.runs)), (two.failures, len(two.runs))) for one, two, _ in pairs])
    found = (Comparison(*pair, p) for pair, p in zip(pairs, values, strict=True))
    return tuple(sorted(found, key=lambda row: row.p))


def _differences(one: CellResult, other: CellResult) -> list[str]:
    mine, theirs = one.planned.cell.properties(), other.planned.cell.properties()
    found = [name for name in mine if mine[name] != theirs[name]]
    return found + ["kernel"] * (one.planned.kernel != other.planned.kernel)

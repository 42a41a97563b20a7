"""A matrix while it runs: a table that fills up on a terminal, a line a run elsewhere, both on stderr."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Group
from rich.text import Text

from fivefold.report.console import report_console
from fivefold.report.text.matrix import grid, run_row

if TYPE_CHECKING:
    from fivefold.matrix.conduct import PlannedRun, Told
    from fivefold.matrix.plan import MatrixPlan
    from fivefold.matrix.result import CellRun


@contextmanager
def live_table(plan: MatrixPlan, repeat: int) -> Iterator[Told]:
    """What is to be told of each run; the table on a terminal is gone at the end, where the whole one is printed."""
    # Past what keeps control characters off the terminal: moving the cursor is what this does. Rows are printable.
    console = report_console(sys.stderr, piped=160, to=sys.__stderr__)
    total = len(plan.cells) * repeat
    if not sys.stderr.isatty():
        yield _Lines(total)
        return
    from rich.live import Live

    shown = _Rows(plan, total)
    with Live(shown.table(), console=console, transient=True, auto_refresh=False) as live:

        def told(item: PlannedRun, run: CellRun) -> None:
            shown.take(item, run)
            live.update(shown.table(), refresh=True)

        yield told


class _Lines:
    """A line a run."""

    def __init__(self, total: int) -> None:
        self._total, self._done = total, 0

    def __call__(self, item: PlannedRun, run: CellRun) -> None:
        self._done += 1
        verdict = "ok" if run.ok else run.outcome if run.outcome != "ready" else "failed"
        print(f"{self._done} of {self._total}  {item.planned.id}  {verdict}  {run.seconds:.1f} s", file=sys.stderr)


class _Rows:
    """The last run of each cell."""

    def __init__(self, plan: MatrixPlan, total: int) -> None:
        self._plan, self._total, self._done = plan, total, 0
        self._runs: dict[str, CellRun] = {}

    def take(self, item: PlannedRun, run: CellRun) -> None:
        """Note a run."""
        self._done += 1
        if item.planned.id not in self._runs or self._runs[item.planned.id].ok:
            self._runs[item.planned.id] = run

    def table(self) -> Group:
        """The rows as they are now."""
        rows = [
            run_row(planned, self._runs[planned.id]) if planned.id in self._runs else (planned.id, "…")
            for planned in self._plan.cells
        ]
        return Group(grid(rows), Text(f"{self._done} of {self._total} runs"))

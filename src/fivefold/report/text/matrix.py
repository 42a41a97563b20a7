"""A matrix for people: a line a cell, then what failed and why, then what repeats say."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.table import Table as RichTable

from fivefold.errors import printable

if TYPE_CHECKING:
    from rich.console import Console

    from fivefold.matrix.plan import MatrixPlan, PlannedCell
    from fivefold.matrix.result import CellRun
    from fivefold.matrix.table import CellResult, MatrixTable

_COLUMNS = ("cell", "machine", "promised", "mode", "outcome", "checks", "seconds")


def print_matrix(table: MatrixTable, console: Console, verbose: bool = False) -> None:
    """The whole table."""
    for number, kernel in enumerate(table.kernels, 1):
        release = f"  Linux {printable(kernel.release)}" if kernel.release else ""
        name = f"k{number}: " if len(table.kernels) > 1 else ""
        console.print(f"{name}{printable(kernel.path)}{release}", markup=False, highlight=False)
    if table.cells:
        console.print(
            grid([_row(cell) for cell in table.cells], repeated=any(len(cell.runs) > 1 for cell in table.cells))
        )
    for line in _lines(table, verbose):
        console.print(line, markup=False, highlight=False)


def grid(rows: list[tuple[str, ...]], repeated: bool = False) -> RichTable:
    """Rows of cells, with the column of repeats where some cell has more than one run."""
    found = RichTable(box=None, pad_edge=False, header_style="bold")
    for column in (*_COLUMNS, *(("failures",) if repeated else ())):
        found.add_column(column, justify="right" if column in ("checks", "seconds") else "left")
    for row in rows:
        found.add_row(*(printable(text) for text in row[: len(found.columns)]))
    return found


def machine_words(cell: PlannedCell) -> str:
    """What the machine is, in short: only what is not the same for most."""
    own = cell.cell
    words = [f"{own.machine} {own.cpu} {own.memory}"]
    words += [own.path] if own.path != "direct" else []
    words += [f"{own.smp} CPUs"] if own.smp > 1 else []
    words += ["kexec"] * len(own.kexec) + ["hibernate"] * own.hibernate
    return ", ".join(words + ([own.cmdline] if own.cmdline else []))


def _row(cell: CellResult) -> tuple[str, ...]:
    failures = f"{cell.failures} of {len(cell.runs)}"
    if len(cell.runs) > 1:
        low, high = cell.interval
        failures += f" ({low:.1%} to {high:.1%})"
    return (*run_row(cell.planned, cell.shown), failures)


def run_row(planned: PlannedCell, run: CellRun) -> tuple[str, ...]:
    """One run as a row."""
    passed = sum(check.ok for check in run.checks)
    checks = f"{passed} of {len(run.checks)}" if run.checks else "-"
    return (
        planned.id, machine_words(planned), planned.promised[-1], run.mode or "-", run.outcome, checks,
        f"{run.seconds:.1f}",
    )  # fmt: skip


def _lines(table: MatrixTable, verbose: bool) -> Iterator[str]:
    for cell in table.cells:
        yield from _of_cell(cell, verbose)
    for row in table.no_kernels:
        yield f"not a kernel: {printable(row.path)}: {printable(row.reason)}"
    for skip in table.skipped:
        yield f"skipped {skip.id}: {printable(skip.reason)}"
    for comparison in table.comparisons:
        if comparison.p < 1:
            yield comparison.sentence
    failed = [cell for cell in table.cells if not cell.ok]
    bad = len(failed) + len(table.no_kernels)
    yield f"failed: {bad} of {len(table.cells) + len(table.no_kernels)} cells" if bad else _passed(table)


def _passed(table: MatrixTable) -> str:
    checks = sum(len(run.checks) for cell in table.cells for run in cell.runs)
    runs = sum(len(cell.runs) for cell in table.cells)
    return f"passed: {checks} checks in {runs} runs of {len(table.cells)} cells"


def _of_cell(cell: CellResult, verbose: bool) -> Iterator[str]:
    expected = cell.planned.cell.expected_to_fail
    if expected and cell.failures:
        yield f"{cell.id}: fails, as is known: {expected}"
    for cause, count in cell.causes:
        times = f" ({count} times)" if len(cell.runs) > 1 else ""
        symbol = f" [in {cause.symbol}]" if cause.symbol and cause.symbol not in cause.sentence else ""
        yield f"{cell.id}: {cell.outcome}: {printable(cause.sentence)}{printable(symbol)}{times}"
    for check in cell.shown.checks:
        if verbose or not check.ok:
            yield f"  {'ok  ' if check.ok else 'FAIL'} {check.name}: {printable(check.detail)}"
    if cell.failures and cell.shown.kept:
        yield f"  kept in {cell.shown.kept}"
    if cell.failures or verbose:
        yield f"  again: {cell.command}"


def print_plan(plan: MatrixPlan, commands: dict[str, str], console: Console) -> None:
    """What would be run, and by which commands."""
    for planned in plan.cells:
        console.print(f"{planned.id}  {machine_words(planned)}  promises {planned.promised[-1]}", markup=False)
        console.print(f"  {commands[planned.id]}", markup=False, highlight=False, soft_wrap=True)
    if plan.cells:
        console.print("initramfs is what --initramfs FILE writes; a kernel in a package has to be unpacked first")
    for row in plan.no_kernels:
        console.print(f"not a kernel: {printable(row.path)}: {printable(row.reason)}", markup=False, highlight=False)
    for skip in plan.skipped:
        console.print(f"skipped {skip.id}: {printable(skip.reason)}", markup=False, highlight=False)

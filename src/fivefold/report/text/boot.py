"""A boot for people: the runs side by side, one column a CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fivefold.boot.result import BootReport, Run
from fivefold.report.console import ReportConsole
from fivefold.units import format_size, hex64

_LABEL, _COLUMN = 21, 21
"""Columns that the labels take, and the least for a CPU: an address, and blanks before it."""
CPU_NAMES: Final = {"la57": "CPU with LA57", "la48": "CPU without LA57"}


def print_boot(report: BootReport, console: Console, verbose: bool = False) -> None:
    """Print *report*; *verbose* adds every check and what the guests wrote to their serial port."""
    side_by_side = console.width >= _LABEL + _COLUMN * len(report.runs)
    for number, runs in enumerate([report.runs] if side_by_side else [[run] for run in report.runs]):
        if number:
            console.print()
        _print_table(_table(runs), console)
    for run in report.runs:
        _print_failures(run, console)
        _print_story(run, console)
        for item in run.skipped:
            console.print(
                f"skipped on {escape(run.cpu)}: {escape(item.name)}: {escape(item.reason)}", soft_wrap=_whole(console)
            )
    for item in report.skipped:
        console.print(f"skipped {escape(item.name)}: {escape(item.reason)}")
    if verbose:
        for run in report.runs:
            _print_details(run, console)
    console.print(_verdict(report))


def _whole(console: Console) -> bool:
    """Whether long lines stay whole: everywhere but where the width is that of a reader."""
    return console.soft_wrap or not isinstance(console, ReportConsole)


def _print_table(table: Table, console: Console) -> None:
    """Print *table*; where it is read by a program, without the blanks that fill its lines."""
    if console.is_terminal:
        console.print(table)
        return
    with console.capture() as captured:
        console.print(table)
    console.out("\n".join(line.rstrip() for line in captured.get().splitlines()), highlight=False)


def _table(runs: Iterable[Run]) -> Table:
    runs = list(runs)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("", style="dim", no_wrap=True)
    for run in runs:
        table.add_column(CPU_NAMES.get(run.cpu, run.cpu), overflow="fold")
    for label, show in _ROWS:
        table.add_row(label, *(escape(show(run)) for run in runs))
    table.add_section()
    for name in _area_names(runs):
        table.add_row(name, *(_area(run, name) for run in runs))
    table.add_section()
    for label, show in _RESULT_ROWS:
        table.add_row(label, *(escape(show(run)) for run in runs))
    return table


def _area_names(runs: list[Run]) -> list[str]:
    names: dict[str, None] = {}
    for run in runs:
        names.update(dict.fromkeys(run.areas))
    return list(names)


def _area(run: Run, name: str) -> str:
    area = run.areas.get(name)
    return f"{hex64(area.start)}  {format_size(area.end - area.start):>6}" if area else "-"


def _mode(run: Run) -> str:
    if run.mode is None:
        return "-"
    return run.mode if run.reason == "unknown" else f"{run.mode}: {run.reason}"


def _entered(run: Run) -> str:
    entered = run.facts.get("entered_levels")
    if entered is None:  # the kernel has not said how it was entered
        return run.entry
    return f"{run.entry}, {f'with {entered} levels on' if entered else 'paging off'}"


def _variable(name: str) -> Callable[[Run], str]:
    return lambda run: str(run.variables.get(name, "-"))


def _direct_map(run: Run) -> str:
    sizes = [(run.facts.get(f"direct_{size}", 0), size.upper()) for size in ("1g", "2m", "4k")]
    return ", ".join(f"{count} x {size}" for count, size in sizes if count) or "-"


def _checks(by: str) -> Callable[[Run], str]:
    def show(run: Run) -> str:
        mine = [check for check in run.checks if check.by == by]
        passed = sum(check.ok for check in mine)
        return f"{passed} of {len(mine)} passed"

    return show


def _instructions(run: Run) -> str:
    return "not counted" if run.instructions is None else f"{run.instructions:,}"


def _own_dump(run: Run) -> str:
    if not run.facts.get("scan_tables"):
        return "-"
    return f"{run.facts['scan_ranges']} ranges of {run.facts['scan_tables']} tables"


_ROWS: Final[tuple[tuple[str, Callable[[Run], str]], ...]] = (
    ("engine", lambda run: f"{run.engine}: {run.engine_reason}" if run.engine_reason else run.engine),
    ("entry", _entered),
    ("mode chosen", _mode),
    ("levels", lambda run: str(run.levels or "-")),
    ("top shift", _variable("pgdir_shift")),
    ("entries per P4D", _variable("ptrs_per_p4d")),
    ("image at", lambda run: hex64(run.facts["load_address"]) if run.facts.get("load_address") else "-"),
)
_RESULT_ROWS: Final[tuple[tuple[str, Callable[[Run], str]], ...]] = (
    ("memory", lambda run: format_size(run.facts["ram_bytes"]) if run.facts.get("ram_bytes") else "-"),
    ("direct map", _direct_map),
    ("page tables", lambda run: str(run.facts.get("tables", "-"))),
    ("early page faults", lambda run: str(run.facts.get("early_faults", "-"))),
    ("own dump", _own_dump),
    ("checks by guest", _checks("guest")),
    ("checks from outside", _checks("outside")),
    ("instructions", _instructions),
    ("time", lambda run: f"{run.seconds:.2f} s"),
)


def _print_failures(run: Run, console: Console) -> None:
    for check in run.checks:
        if not check.ok:
            console.print(
                f"[red]FAILED[/red] {escape(run.cpu)}: {check.name} (by {check.by}): {escape(check.detail)}",
                soft_wrap=_whole(console),
            )


def _print_story(run: Run, console: Console) -> None:
    if run.story:
        console.print(f"\nwhy {escape(run.cpu)} failed:\n{escape(run.story)}", soft_wrap=_whole(console))


def _print_details(run: Run, console: Console) -> None:
    console.print(f"\n{escape(run.cpu)} on {run.engine}: {escape(run.event)}", soft_wrap=_whole(console))
    for check in run.checks:
        console.print(f"  {'ok  ' if check.ok else 'FAIL'} {check.by:7} {check.name}", soft_wrap=_whole(console))
    console.print(escape(run.output.rstrip()), soft_wrap=_whole(console))


def _verdict(report: BootReport) -> str:
    failed = sum(not check.ok for run in report.runs for check in run.checks)
    total = sum(len(run.checks) for run in report.runs)
    if report.ok:
        return f"[green]passed[/green]: {total} checks in {len(report.runs)} run{'s' if len(report.runs) > 1 else ''}"
    return f"[red]failed[/red]: {failed} of {total} checks"

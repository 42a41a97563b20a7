"""A conformance report for people: a row a rule and kind of access, a column a mode; then what differs, each once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fivefold.conform.cases.case import parse_case
from fivefold.conform.cases.listing import listing
from fivefold.conform.judging.known import known_differences
from fivefold.conform.judging.report import ConformReport, Key, RuleRow

MODES = ("la48", "la57")


def print_conform(report: ConformReport, console: Console, verbose: bool = False) -> None:
    """Print the table, and each rule that differs with its smallest case; *verbose* shows the rules that agree too."""
    console.print(_table(report, verbose))
    for rule, found in _differing(report):
        _print_difference(rule, found, console)
    for case, reason in report.problems[:5]:
        console.print(f"came to no end: {escape(case)}: {escape(reason)}", soft_wrap=True)
    console.print(summary(report), soft_wrap=True)


def summary(report: ConformReport) -> str:
    """The last line: how many cases, rules and differences."""
    shown = {key.rule for key, row in report.rows.items() if row.cases}
    hidden = {key.rule for key in report.rows} - shown
    differing = {key.rule for key, row in report.rows.items() if row.differs}
    unknown = {key.rule for key, row in report.rows.items() if row.unknown}
    text = (
        f"{report.engine} {report.version}: {report.cases} cases, {len(shown)} rules shown, {len(hidden)} not shown; "
    )
    text += f"{len(differing)} differ, {len(unknown)} of them in a way that is not known"
    return text + (f"; {len(report.problems)} cases came to no end" if report.problems else "")


def _table(report: ConformReport, verbose: bool) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for name in ("rule", "access", *MODES):
        table.add_column(name, overflow="fold")
    groups: dict[tuple[str, str], dict[str, RuleRow]] = {}
    for key, row in report.sorted_rows():
        groups.setdefault((key.rule, key.access), {})[key.mode] = row
    for (rule, access), modes in groups.items():
        if verbose or any(row.differs for row in modes.values()):
            table.add_row(escape(rule), access, *(_cell(modes.get(mode)) for mode in MODES))
    return table


def _cell(row: RuleRow | None) -> str:
    if row is None:
        return ""
    if not row.cases:
        return f"not shown: {row.not_shown or 'no case reached it'}"
    if not row.differs:
        return f"agrees ({row.cases})"
    known = "" if row.unknown else ", known"
    return f"differs ({row.differs} of {row.cases}{known})"


def _differing(report: ConformReport) -> Iterator[tuple[str, list[tuple[Key, RuleRow]]]]:
    groups: dict[str, list[tuple[Key, RuleRow]]] = {}
    for key, row in report.sorted_rows():
        if row.differs:
            groups.setdefault(key.rule, []).append((key, row))
    yield from groups.items()


def _print_difference(rule: str, found: list[tuple[Key, RuleRow]], console: Console) -> None:
    row = min((row for _, row in found), key=_order)
    assert row.smallest is not None
    accesses = ", ".join(sorted({each.access for each, _ in found}))
    modes = ", ".join(sorted({each.mode for each, _ in found}))
    lines = [f"differs: {rule}", f"  for: {accesses} ({modes})", f"  manual: {row.section}"]
    lines += [f"  must: {row.smallest.expected}", f"  did:  {row.smallest.got}"]
    lines += _known_lines({name for _, each in found for name in each.known})
    lines += [f"  case: {row.smallest.case}"]
    lines += [f"    {line}" for line in listing(parse_case(row.smallest.case)).splitlines()]
    for line in ("", *lines):
        console.print(escape(line), soft_wrap=True)


def _order(row: RuleRow) -> tuple[object, ...]:
    """Rows with a difference that is not known first, then those with the simplest case."""
    return row.unknown == 0, row.smallest.weight if row.smallest else ()


def _known_lines(names: Iterable[str]) -> list[str]:
    return [f"  known: {known.does} ({known.source})" for known in known_differences() if known.name in set(names)]

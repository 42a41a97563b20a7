"""A matrix as JUnit XML and as one page of HTML."""

from __future__ import annotations

import html
from typing import TextIO
from xml.etree import ElementTree as Xml

from fivefold.errors import printable
from fivefold.matrix.table import CellResult, MatrixTable
from fivefold.report.text.matrix import machine_words


def write_junit(table: MatrixTable, out: TextIO) -> None:
    """A test case for each cell, with its first cause; cells that could not be run are skipped with the reason."""
    failed = [cell for cell in table.cells if not cell.ok]
    suite = Xml.Element(
        "testsuite",
        name="fivefold matrix",
        tests=str(len(table.cells) + len(table.skipped) + len(table.no_kernels)),
        failures=str(len(failed) + len(table.no_kernels)),
        errors="0",
        skipped=str(len(table.skipped)),
    )
    for cell in table.cells:
        suite.append(_case(cell))
    for row in table.no_kernels:
        case = Xml.SubElement(suite, "testcase", classname=printable(row.path), name=row.id)
        Xml.SubElement(case, "failure", message=f"not a kernel: {printable(row.reason)}")
    for skip in table.skipped:
        case = Xml.SubElement(suite, "testcase", classname="skipped", name=skip.id)
        Xml.SubElement(case, "skipped", message=printable(skip.reason))
    Xml.indent(suite)
    out.write('<?xml version="1.0" encoding="utf-8"?>\n')
    out.write(Xml.tostring(suite, encoding="unicode") + "\n")


def _case(cell: CellResult) -> Xml.Element:
    case = Xml.Element("testcase", classname=printable(cell.kernel.path), name=cell.id, time=f"{cell.seconds:.2f}")
    if not cell.ok:
        causes = [f"{cause.sentence} ({count} of {len(cell.runs)} runs)" for cause, count in cell.causes]
        found = Xml.SubElement(case, "failure", message=printable(f"{cell.outcome}: {causes[0] if causes else ''}"))
        found.text = "\n".join(printable(line) for line in (*causes, *_failed_checks(cell), cell.command))
    return case


def _failed_checks(cell: CellResult) -> list[str]:
    return [f"{check.name}: {check.detail}" for check in cell.shown.checks if not check.ok]


_STYLE = (
    "body{font-family:sans-serif;margin:2em}table{border-collapse:collapse}"
    "td,th{padding:.25em .7em;text-align:left;vertical-align:top;border-bottom:1px solid #ddd}"
    ".failed{background:#fdd}.known{background:#ffd}code{font-size:85%}"
)


def write_html(table: MatrixTable, out: TextIO) -> None:
    """The table as a page without anything from elsewhere; a cell's row opens to its checks and its command."""
    heads = ("cell", "machine", "promised", "mode", "outcome", "failures", "95 % interval", "seconds", "why")
    rows = "".join(_row(cell) for cell in table.cells)
    kernels = "".join(f"<li>{_text(row.path)} {_text(row.release or '')}" for row in table.kernels)
    notes = [f"not a kernel: {row.path}: {row.reason}" for row in table.no_kernels]
    notes += [f"skipped {skip.id}: {skip.reason}" for skip in table.skipped]
    notes += [row.sentence for row in table.comparisons if row.p < 1]
    verdict = "all as promised" if table.ok else "not all as promised"
    out.write(
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>fivefold matrix: {verdict}</title>'
        f"<style>{_STYLE}</style><h1>{verdict}</h1><ul>{kernels}</ul>"
        f"<table><tr>{''.join(f'<th>{name}</th>' for name in heads)}</tr>{rows}</table>"
        f"<ul>{''.join(f'<li>{_text(note)}' for note in notes)}</ul></html>\n"
    )


def _row(cell: CellResult) -> str:
    low, high = cell.interval
    kind = "ok" if cell.failures == 0 else "known" if cell.ok else "failed"
    checks = "".join(
        f"<li>{'ok' if check.ok else '<b>FAILED</b>'} {_text(check.name)}: {_text(check.detail)}"
        for check in cell.shown.checks
    )
    why = "<br>".join(_text(f"{cause.sentence} ({count} times)") for cause, count in cell.causes)
    more = f"<details><summary>checks</summary><ul>{checks}</ul><code>{_text(cell.command)}</code></details>"
    cells = (
        cell.id, machine_words(cell.planned), cell.planned.promised[-1], cell.shown.mode or "-", cell.outcome,
        f"{cell.failures} of {len(cell.runs)}", f"{low:.1%} to {high:.1%}", f"{cell.seconds:.1f}",
    )  # fmt: skip
    return f'<tr class="{kind}">' + "".join(f"<td>{_text(text)}</td>" for text in cells) + f"<td>{why}{more}</td></tr>"


def _text(text: str) -> str:
    return html.escape(printable(text))

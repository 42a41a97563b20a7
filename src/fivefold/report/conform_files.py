"""A conformance report as JUnit XML and as one page of HTML."""

from __future__ import annotations

import html
from typing import TextIO
from xml.etree import ElementTree as Xml

from fivefold.conform.judging.report import ConformReport, Key, RuleRow
from fivefold.report.text.conform import summary


def write_junit(report: ConformReport, out: TextIO) -> None:
    """A test case for each rule, kind of access and mode; what is known to differ is skipped with its reason."""
    rows = list(report.sorted_rows())
    suite = Xml.Element(
        "testsuite",
        name=f"fivefold conform {report.engine} {report.version}",
        tests=str(len(rows)),
        failures=str(report.unknown),
        errors="0",
        skipped=str(sum(not row.cases or (row.differs > 0 and not row.unknown) for _, row in rows)),
    )
    suite.extend(_case(key, row) for key, row in rows)
    Xml.indent(suite)
    out.write('<?xml version="1.0" encoding="utf-8"?>\n')
    out.write(Xml.tostring(suite, encoding="unicode") + "\n")


def _case(key: Key, row: RuleRow) -> Xml.Element:
    case = Xml.Element("testcase", classname=f"{key.mode}.{key.access}", name=key.rule)
    if not row.cases:
        Xml.SubElement(case, "skipped", message=row.not_shown or "no case reached it")
    elif row.differs and row.smallest:
        kind = "failure" if row.unknown else "skipped"
        found = Xml.SubElement(case, kind, message=f"must: {row.smallest.expected}; did: {row.smallest.got}")
        found.text = f"{row.smallest.case}\n{row.section}"
    return case


def write_html(report: ConformReport, out: TextIO) -> None:
    """The table as a page without anything from elsewhere."""
    rows = "".join(_html_row(key, row) for key, row in report.sorted_rows())
    heads = "".join(
        f"<th>{name}</th>" for name in ("rule", "access", "mode", "result", "must", "did", "case", "manual")
    )
    title = html.escape(f"{report.engine} {report.version}")
    out.write(
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><style>'
        "body{font-family:sans-serif}td,th{padding:.2em .6em;text-align:left;vertical-align:top}"
        ".differs{background:#fdd}.known{background:#ffd}.hidden{color:#777}</style>"
        f"<h1>{title}</h1><p>{html.escape(summary(report))}</p><table><tr>{heads}</tr>{rows}</table></html>\n"
    )


def _html_row(key: Key, row: RuleRow) -> str:
    shown = row.smallest
    if not row.cases:
        kind, result = "hidden", f"not shown: {row.not_shown or 'no case reached it'}"
    elif row.differs:
        kind, result = ("differs" if row.unknown else "known"), f"differs in {row.differs} of {row.cases}"
    else:
        kind, result = "agrees", f"agrees in {row.cases}"
    cells = (
        *key[:2],
        key.mode,
        result,
        *((shown.expected, shown.got, shown.case) if shown else ("", "", "")),
        row.section,
    )
    return f'<tr class="{kind}">' + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells) + "</tr>"

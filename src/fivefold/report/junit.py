"""An audit as JUnit XML, which build servers show: a test case for each rule."""

from __future__ import annotations

import re
from typing import Final, TextIO
from xml.etree import ElementTree as Xml

from fivefold.report.text.audit import sentence
from fivefold.survey.audit.audit import Audit, Finding, RuleResult

_NO_XML: Final = re.compile(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that XML 1.0 cannot hold; file names can."""


def write_junit(audit: Audit, out: TextIO) -> None:
    """One test suite; rules that were not asked are skipped; what does not fail the audit fails no test."""
    results = audit.results
    suite = Xml.Element(
        "testsuite",
        name=_text(f"fivefold audit {audit.space.source.name}"),
        tests=str(len(results)),
        failures=str(sum(not result.ok for result in results)),
        errors="0",
        skipped=str(sum(result.skipped is not None for result in results)),
    )
    for result in results:
        suite.append(_case(result))
    Xml.SubElement(suite, "system-out").text = _text(sentence(audit))
    Xml.indent(suite)
    out.write('<?xml version="1.0" encoding="utf-8"?>\n')
    out.write(Xml.tostring(suite, encoding="unicode") + "\n")


def _case(result: RuleResult) -> Xml.Element:
    case = Xml.Element("testcase", classname="fivefold.audit", name=result.rule.name)
    if result.skipped is not None:
        Xml.SubElement(case, "skipped", message=_text(result.skipped))
        return case
    failing = [found for found in result.findings if found.fails]
    if failing:
        more = " and more" if result.cut else ""
        message = f"{result.rule.title}: {len(failing)}{more}"
        failure = Xml.SubElement(case, "failure", type=result.severity.value, message=message)
        failure.text = _text("\n".join(map(_line, failing)))
    rest = [found for found in result.findings if not found.fails]
    if rest:
        Xml.SubElement(case, "system-out").text = _text("\n".join(map(_line, rest)))
    return case


def _line(found: Finding) -> str:
    excepted = f" (excepted: {found.excepted})" if found.excepted else ""
    return f"{found.place} {found.area or '-'}: {found.message}{excepted}"


def _text(text: str) -> str:
    return _NO_XML.sub("?", text)

"""An audit as SARIF 2.1.0, which code hosts and editors show.

Addresses stand in logical locations, as hexadecimal text: numbers beyond 2^53 do not survive every reader
of JSON.
"""

from __future__ import annotations

import re
from importlib import metadata
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from fivefold.report.text.audit import finding_json
from fivefold.survey.audit.audit import Audit, Finding
from fivefold.survey.audit.policy import relative
from fivefold.survey.audit.rules import RULE_NAMES, RULES, AuditRule, Severity
from fivefold.units import hex64

SCHEMA: Final = "https://json.schemastore.org/sarif-2.1.0.json"


def sarif(audit: Audit, uri: str | None = None) -> dict[str, Any]:
    """One run with all rules and a result for each finding; excepted ones are suppressed with their reasons.

    *uri* is what the source is called, by default its path relative to the working directory. Rules that were not
    asked, and what was not looked at, are notifications.
    """
    place = _as_uri(uri) if uri else _uri(audit)
    return {
        "$schema": SCHEMA,
        "version": "2.1.0",
        "runs": [
            {
                "tool": {
                    "driver": {
                        "name": "fivefold",
                        "version": metadata.version("fivefold"),
                        "informationUri": _information(),
                        "rules": [_rule(rule, audit) for rule in RULES],
                    }
                },
                "automationDetails": {"id": f"fivefold/audit/{place}/"},
                "invocations": [{"executionSuccessful": True, "toolExecutionNotifications": _notifications(audit)}],
                "artifacts": [{"location": {"uri": place}, "mimeType": "application/octet-stream"}],
                "results": [_result(found, audit, place) for found in audit.findings],
                "properties": {
                    "root": hex64(audit.space.root.value),
                    "levels": audit.space.levels,
                    "policy": audit.policy.name,
                    "looked_at": audit.looked_at,
                    "of": audit.of.value,
                },
            }
        ],
    }


def _notifications(audit: Audit) -> list[dict[str, Any]]:
    """What was not asked or not looked at."""
    told = [
        {
            "level": "note",
            "message": {"text": f"{one.rule.name} was not asked: {one.skipped}."},
            "associatedRule": {"id": one.rule.name, "index": RULE_NAMES.index(one.rule.name)},
        }
        for one in audit.results
        if one.skipped
    ]
    limits = [f"Not looked at: {limit}." for limit in audit.limits]
    if audit.of.value is None or audit.of.value > audit.looked_at:
        rest = "others in memory" if audit.of.value is None else f"{audit.of.value - audit.looked_at} more"
        limits.append(f"Roots looked at: {audit.looked_at}; not looked at: {rest}.")
    return told + [{"level": "note", "message": {"text": text}} for text in limits]


def _rule(rule: AuditRule, audit: Audit) -> dict[str, Any]:
    severity = audit.policy.severity(rule.name)
    return {
        "id": rule.name,
        "name": "".join(word.capitalize() for word in rule.name.split("-")),
        "shortDescription": {"text": f"{rule.title.capitalize()}."},
        "fullDescription": {"text": rule.why},
        "help": {"text": f"{rule.why} A policy file excepts what is meant, with a reason: see docs/audit.md."},
        "helpUri": _information(),
        "defaultConfiguration": {"level": _level(severity), "enabled": severity is not Severity.OFF},
        "properties": {"tags": ["security", "memory"]},
    }


def _level(severity: Severity) -> str:
    return "none" if severity is Severity.OFF else severity.value


def _result(found: Finding, audit: Audit, uri: str) -> dict[str, Any]:
    start = "registers" if found.window is None else hex64(found.window.start)
    result: dict[str, Any] = {
        "ruleId": found.rule.name,
        "ruleIndex": RULE_NAMES.index(found.rule.name),
        "level": _level(found.severity),
        "message": {"text": f"{found.place}: {found.message}."},
        "locations": [
            {
                # Of a memory there are no lines; what shows results wants one.
                "physicalLocation": {"artifactLocation": {"uri": uri, "index": 0}, "region": {"startLine": 1}},
                "logicalLocations": [{"name": start, "fullyQualifiedName": f"{found.area or 'unnamed'}:{start}"}],
            }
        ],
        "partialFingerprints": {"place/v2": fingerprint(found)},
        "properties": finding_json(found, audit.space.symbols),
    }
    if found.excepted:
        result["suppressions"] = [{"kind": "external", "justification": found.excepted}]
    return result


def _information() -> str:
    """Where to read on: the first address that the project gives."""
    addresses = metadata.metadata("fivefold").get_all("Project-URL") or ["docs, https://docs.python.org/3/"]
    return str(addresses[0]).rpartition(" ")[2]


def fingerprint(found: Finding) -> str:
    """The rule and the place as an offset in its area, which the next boot with KASLR has, too."""
    if found.window is None:
        return found.rule.name
    part = relative(found.window, found.area_start)
    offset = found.window.start if part is None else part.start
    return f"{found.rule.name}:{found.area or 'unnamed'}{'-' if offset < 0 else '+'}{abs(offset):#x}:{found.size}"


def _as_uri(text: str) -> str:
    """*text*, a path or a URI, with what no URI can hold written as its bytes."""
    return quote(re.sub(r"%(?![0-9A-Fa-f]{2})", "%25", text), safe="%:/?#@!$&'()*+,;=~")


def _uri(audit: Audit) -> str:
    """A path relative to the working directory where there is a file there, else what was asked for, as a URI."""
    path = Path(audit.space.source.name)
    if not path.exists():
        return quote(audit.space.source.name, safe=":/")
    resolved = path.resolve()
    if resolved.is_relative_to(Path.cwd()):
        return quote(resolved.relative_to(Path.cwd()).as_posix())
    return resolved.as_uri()

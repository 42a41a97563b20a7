"""An audit as SARIF 2.1.0, which code hosts and editors show.

Addresses stand in logical locations, as hexadecimal text: numbers beyond 2^53 do not survive every reader
of JSON.
"""

from __future__ import annotations

from importlib import metadata
from pathlib import Path
from typing import Any, Final

from fivefold.report.text.audit import finding_json
from fivefold.survey.audit.audit import Audit, Finding
from fivefold.survey.audit.rules import RULE_NAMES, RULES, AuditRule, Severity
from fivefold.units import hex64

SCHEMA: Final = "https://json.schemastore.org/sarif-2.1.0.json"


def sarif(audit: Audit) -> dict[str, Any]:
    """One run with all rules and a result for each finding; excepted ones are suppressed with their reasons."""
    return {
        "$schema": SCHEMA,
        "version": "2.1.0",
        "runs": [
            {
                "tool": {
                    "driver": {
                        "name": "fivefold",
                        "version": metadata.version("fivefold"),
                        "rules": [_rule(rule, audit) for rule in RULES],
                    }
                },
                "artifacts": [{"location": {"uri": _uri(audit)}}],
                "results": [_result(found, audit) for found in audit.findings],
                "properties": {
                    "root": hex64(audit.space.root.value),
                    "levels": audit.space.levels,
                    "policy": audit.policy.name,
                },
            }
        ],
    }


def _rule(rule: AuditRule, audit: Audit) -> dict[str, Any]:
    severity = audit.policy.severity(rule.name)
    return {
        "id": rule.name,
        "shortDescription": {"text": rule.title},
        "fullDescription": {"text": rule.why},
        "defaultConfiguration": {"level": _level(severity), "enabled": severity is not Severity.OFF},
    }


def _level(severity: Severity) -> str:
    return "none" if severity is Severity.OFF else severity.value


def _result(found: Finding, audit: Audit) -> dict[str, Any]:
    start = "registers" if found.window is None else hex64(found.window.start)
    result: dict[str, Any] = {
        "ruleId": found.rule.name,
        "ruleIndex": RULE_NAMES.index(found.rule.name),
        "level": _level(found.severity),
        "message": {"text": f"{found.place}: {found.message}"},
        "locations": [
            {
                "physicalLocation": {"artifactLocation": {"uri": _uri(audit), "index": 0}},
                "logicalLocations": [{"name": start, "fullyQualifiedName": f"{found.area or 'unnamed'}:{start}"}],
            }
        ],
        "partialFingerprints": {"place/v1": f"{found.rule.name}:{start}:{found.size}"},
        "properties": finding_json(found, audit.space.symbols),
    }
    if found.excepted:
        result["suppressions"] = [{"kind": "external", "justification": found.excepted}]
    return result


def _uri(audit: Audit) -> str:
    """A relative reference for a file, what was asked for otherwise."""
    path = Path(audit.space.source.name)
    return path.resolve().as_uri() if path.exists() else audit.space.source.name

"""Findings of an audit, for people, as JSON and as CSV."""

from __future__ import annotations

import csv
from typing import Any, Final, TextIO

from fivefold.report.sheet import Writable, paint
from fivefold.report.text.walk import entry_index
from fivefold.survey.audit.audit import Audit, Finding, RuleResult
from fivefold.survey.audit.policy import relative
from fivefold.survey.paths import Path
from fivefold.symbols import Symbols
from fivefold.units import format_size, hex64

SCHEMA: Final = "fivefold.audit/1"
SHOWN: Final = 20
"""Findings of one rule that text shows unless all are asked for."""

_COLOURS: Final = {"error": "bad", "warning": "warning", "ok": "good", "skipped": "quiet"}
COLUMNS: Final = ("rule", "severity", "excepted", "start", "end", "size", "phys", "area", "message", "symbol")


def write_text(audit: Audit, out: Writable, *, everything: bool = False) -> None:
    """A line a rule, its findings below it, a sentence at the end; *everything*: all of them, excepted ones too."""
    space = audit.space
    out.write(f"# root {hex64(space.root.value)} ({space.root.how})\n")
    out.write(f"# {space.mode.value.name}, {space.levels} levels ({space.mode.evidence})\n")
    out.write(f"# areas: {space.areas.how}\n# policy: {audit.policy.name}\n")
    for result in audit.results:
        verdict = _verdict(result)
        out.write(f"{paint(out, f'{verdict:8}', _COLOURS.get(verdict, ''))} {result.rule.name:25} {_summary(result)}\n")
        shown = [found for found in result.findings if everything or not found.excepted]
        for found in shown if everything else shown[:SHOWN]:
            elsewhere = "" if found.root in (None, space.root.value) else f" (root {hex64(found.root or 0)})"
            _write_finding(found, out, everything, _symbol(found, space.symbols), elsewhere)
        if not everything and len(shown) > SHOWN:
            out.write(f"         and {len(shown) - SHOWN} more; --all shows them\n")
    for limit in audit.limits:
        out.write(f"# not looked at: {limit}\n")
    out.write(paint(out, sentence(audit), "good" if audit.ok else "bad") + "\n")


def _verdict(result: RuleResult) -> str:
    if result.skipped:
        return "skipped"
    worst = any(not found.excepted for found in result.findings)
    return result.severity.value if worst else "ok"


def _summary(result: RuleResult) -> str:
    if result.skipped:
        return result.skipped
    excepted = sum(found.excepted is not None for found in result.findings)
    count = len(result.findings) - excepted
    told = f"{count or 'no'} finding{'s' if count > 1 else ''}{' and more' if result.cut else ''}"
    return f"{result.rule.title}: {told}{f', {excepted} excepted' if excepted else ''}"


def _symbol(found: Finding, symbols: Symbols) -> str | None:
    return None if found.window is None else symbols.at(found.window.start)


def _write_finding(found: Finding, out: Writable, everything: bool, symbol: str | None, elsewhere: str) -> None:
    if found.size is None:
        out.write(f"         {found.message}\n")
    else:
        where = "".join(f" {name}" for name in (found.area, symbol) if name)
        out.write(f"         {found.place} {format_size(found.size):>9}{where}: {found.message}{elsewhere}\n")
    if found.excepted:
        out.write(f"           excepted: {found.excepted}\n")
    for path in found.evidence if everything else found.evidence[:1]:
        out.write(f"           {_steps(path)}\n")


def _steps(path: Path) -> str:
    return f"{hex64(path.va)}: " + ", ".join(
        f"{step.entry.level.name}[{entry_index(step)}] {step.entry.raw:#x}" for step in path.steps
    )


def _roots(audit: Audit) -> str:
    """How many of the roots in memory were looked at."""
    if audit.of.value is None:
        return f", {audit.looked_at} root looked at ({audit.of.how}; --all-roots looks at all)"
    left = audit.of.value - audit.looked_at
    told = f", {audit.looked_at} of {audit.of.value} root{'s' if audit.of.value > 1 else ''} looked at"
    return f"{told}; --all-roots looks at the other {left}, too" if left else told


def sentence(audit: Audit) -> str:
    """How it ended, on one line."""
    totals = audit.totals()
    told = [f"{totals[name]} {name}" for name in ("error", "warning", "note", "excepted") if totals[name]]
    asked = sum(result.skipped is None for result in audit.results)
    return f"{'passed' if audit.ok else 'FAILED'}: {asked} rules, {', '.join(told) or 'no findings'}{_roots(audit)}"


def audit_json(audit: Audit) -> dict[str, Any]:
    """The schema ``fivefold.audit/1``."""
    space, totals = audit.space, audit.totals()
    return {
        "schema": SCHEMA,
        "ok": audit.ok,
        "source": space.source.name,
        "root": hex64(space.root.value),
        "root_known_from": space.root.how,
        "mode": space.mode.value.name,
        "levels": space.levels,
        "mode_known_from": space.mode.how,
        "mode_contradicted_by": space.mode.against,
        "areas_known_from": space.areas.how,
        "symbols_known_from": space.symbols.known_from,
        "looked_at": audit.looked_at,
        "of": audit.of.value,
        "of_known_from": audit.of.how,
        "policy": audit.policy.name,
        "fail_on": audit.policy.fail_on.value,
        "totals": {name: totals[name] for name in ("error", "warning", "note", "excepted")},
        "rules": [_rule_json(result) for result in audit.results],
        "findings": [finding_json(found, space.symbols) for found in audit.findings],
        "limits": list(audit.limits),
    }


def _rule_json(result: RuleResult) -> dict[str, Any]:
    return {
        "name": result.rule.name,
        "title": result.rule.title,
        "severity": result.severity.value,
        "ok": result.ok,
        "findings": len(result.findings),
        "more": result.cut,
        "skipped": result.skipped,
    }


def finding_json(found: Finding, symbols: Symbols) -> dict[str, Any]:
    """One finding, with its first address by *symbols*; ends are exclusive.

    *phys* is null where the memory is not one run, all places are for registers.
    """
    phys = found.phys
    return {
        "rule": found.rule.name,
        "severity": found.severity.value,
        "excepted": found.excepted,
        "start": None if found.window is None else hex64(found.window.start),
        "end": None if found.window is None else hex64(found.window.stop),
        "size": found.size,
        "phys": {"start": hex64(phys.start), "end": hex64(phys.stop)} if phys else None,
        "root": None if found.root is None else hex64(found.root),
        "area": found.area,
        "offset": None if (part := relative(found.window, found.area_start)) is None else part.start,
        "symbol": _symbol(found, symbols),
        "message": found.message,
        "aliases": [hex64(alias) for alias in found.aliases],
        "evidence": [_path_json(path) for path in found.evidence],
    }


def _path_json(path: Path) -> dict[str, Any]:
    steps = [{"level": int(s.entry.level), "at": hex64(s.at), "entry": hex64(s.entry.raw)} for s in path.steps]
    return {"address": hex64(path.va), "cause": path.cause, "steps": steps}


def write_csv(audit: Audit, out: TextIO) -> None:
    """A header and a row for each finding."""
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    for found in audit.findings:
        row = finding_json(found, audit.space.symbols)
        phys = row["phys"]["start"] if row["phys"] else ""
        writer.writerow(phys if name == "phys" else row[name] for name in COLUMNS)

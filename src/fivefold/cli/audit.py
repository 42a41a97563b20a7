"""`fivefold audit`: what should not be mapped so, with evidence."""

from __future__ import annotations

import sys
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fivefold.cli import values
from fivefold.cli.source_options import JsonOption, SourceChoice, on_source

if TYPE_CHECKING:
    from fivefold.survey.audit.audit import Audit


class FailOn(StrEnum):
    """The least severity that fails."""

    error = "error"
    warning = "warning"
    note = "note"


class AuditFormat(StrEnum):
    """How to print it."""

    text = "text"
    json = "json"
    csv = "csv"
    sarif = "sarif"
    junit = "junit"


def pat_value(text: str) -> int:
    """A PAT MSR: a number that it can hold, ``linux`` or ``reset``."""
    from fivefold.survey.audit.alias_checks import PATS, is_pat

    expected = "expected linux, reset, or eight bytes, each of 0, 1, 4, 5, 6, 7"
    try:
        value = PATS[text] if text in PATS else values.address(text)
    except typer.BadParameter as error:
        raise typer.BadParameter(f"{text!r} is not a PAT MSR; {expected}") from error
    if not is_pat(value):
        raise typer.BadParameter(f"{text!r} is not a PAT MSR; {expected}")
    return value


@on_source
def audit(
    chosen: SourceChoice,
    policy: Annotated[
        Path | None, typer.Option("--policy", metavar="FILE", help="Severities and exceptions, in TOML.")
    ] = None,
    format: Annotated[AuditFormat, typer.Option(help="How to print it.")] = AuditFormat.text,
    as_json: JsonOption = False,
    pat: Annotated[
        int | None,
        typer.Option("--pat", parser=pat_value, metavar="VALUE", help="The PAT MSR, or linux, or reset."),
    ] = None,
    all_roots: Annotated[
        bool, typer.Option("--all-roots", help="Look at every root in memory: the kernel half once, each user half.")
    ] = False,
    fail_on: Annotated[
        FailOn | None,
        typer.Option("--fail-on", help="The least severity that makes the status 1; the policy's, or warning."),
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Status 1 where a rule could not be asked, too.")] = False,
    sarif_uri: Annotated[
        str | None, typer.Option("--sarif-uri", metavar="PATH", help="What SARIF calls the source.")
    ] = None,
    write_policy: Annotated[
        Path | None,
        typer.Option("--write-policy", metavar="FILE", help="Write a policy that excepts what is found now."),
    ] = None,
    all: Annotated[bool, typer.Option("--all", help="Show every finding at length, excepted ones too.")] = False,
) -> int:
    """Look for what breaks W^X, isolation and the architecture's rules. Status 1 when there is such a thing."""
    from fivefold.survey.audit.all_roots import audit_all_roots, with_count
    from fivefold.survey.audit.audit import audit as run_audit
    from fivefold.survey.audit.baseline import policy_for
    from fivefold.survey.audit.policy import Policy, load_policy
    from fivefold.survey.audit.rules import Severity

    rules = Policy() if policy is None else load_policy(policy)
    if fail_on is not None:
        rules = replace(rules, fail_on=Severity(fail_on))
    with chosen.open_space() as space:
        if all_roots:
            found = audit_all_roots(space, rules, pat=pat)
        else:
            found = with_count(run_audit(space, rules, pat=pat))
        if write_policy is not None:
            write_policy.write_text(policy_for(found), encoding="utf-8")
        _write(found, AuditFormat.json if as_json else format, all, sarif_uri)
    if write_policy is not None:
        return 0
    return 0 if found.ok and not (strict and found.not_asked) else 1


def _write(found: Audit, form: AuditFormat, everything: bool, uri: str | None) -> None:
    from fivefold.report.json_text import write_document
    from fivefold.report.junit import write_junit
    from fivefold.report.sarif import sarif
    from fivefold.report.sheet import sheet
    from fivefold.report.text import audit as audit_text

    match form:
        case AuditFormat.text:
            audit_text.write_text(found, sheet(), everything=everything)
        case AuditFormat.json:
            write_document(audit_text.audit_json(found), sys.stdout)
        case AuditFormat.csv:
            audit_text.write_csv(found, sys.stdout)
        case AuditFormat.sarif:
            write_document(sarif(found, uri), sys.stdout)
        case AuditFormat.junit:
            write_junit(found, sys.stdout)

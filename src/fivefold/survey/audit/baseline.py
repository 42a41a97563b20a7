"""A policy that excepts what an audit finds now, so that a later audit fails only for what is new."""

from __future__ import annotations

import json
from collections.abc import Iterator

from fivefold.survey.audit.audit import Audit, Finding
from fivefold.survey.audit.policy import SCHEMA, Policy, relative
from fivefold.survey.audit.rules import BY_NAME


def policy_for(found: Audit) -> str:
    """The text of a policy file: that of *found*, with an exception for each finding that fails.

    Places are offsets from the starts of areas where there are areas, so that they hold for the next boot with KASLR.
    """
    lines = [f'schema = "{SCHEMA}"', "defaults = true", f'fail-on = "{found.policy.fail_on}"', "", "[rules]"]
    lines += [f'{rule} = "{severity}"' for rule, severity in found.policy.severities.items()]
    kept = [one for one in found.policy.exceptions if one not in Policy().exceptions]
    for one in kept:
        ranges = {"range": one.window, "phys": one.phys, "offset": one.offset}
        lines += _table(
            one.rule, one.reason, one.area, {name: part for name, part in ranges.items() if part is not None}
        )
        lines += [] if one.symbol is None else [f"symbol = {json.dumps(one.symbol)}"]
    for finding in found.findings:
        if finding.fails:
            lines += _exception(finding)
    return "\n".join(lines) + "\n"


def _exception(finding: Finding) -> Iterator[str]:
    part = relative(finding.window, finding.area_start)
    reason = f"found when the baseline was written: {finding.message}"
    if part is not None and finding.area is not None:
        yield from _table(finding.rule.name, reason, finding.area, {"offset": part})
    elif finding.window is not None:
        yield from _table(finding.rule.name, reason, None, {"range": finding.window})
    else:
        yield from _table(finding.rule.name, reason, None, {})


def _table(rule: str, reason: str, area: str | None, ranges: dict[str, range]) -> Iterator[str]:
    assert rule in BY_NAME
    yield ""
    yield "[[except]]"
    yield f'rule = "{rule}"'
    # JSON's strings are TOML's basic ones, but for the escapes of what is beyond 16 bits, which no reason has.
    yield f"reason = {json.dumps(reason)}"
    if area is not None:
        yield f"area = {json.dumps(area)}"
    yield from (f'{name} = "{part.start:#x}-{part.stop:#x}"' for name, part in ranges.items())

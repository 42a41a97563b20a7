"""The documentation names every rule, with its severity, and every built-in exception."""

from __future__ import annotations

from pathlib import Path

from fivefold.survey.audit.policy import LINUX_EXCEPTIONS, Policy
from fivefold.survey.audit.rules import RULES

TEXT = (Path(__file__).parents[3] / "docs" / "audit.md").read_text()


def test_rules() -> None:
    rows = [line for line in TEXT.splitlines() if line.startswith("| `")]
    expected = [f"| `{rule.name}` | {rule.severity} | {rule.title}. {rule.why} |" for rule in RULES]
    assert rows == expected + [f"| `{one.rule}` | {one.reason} |" for one in LINUX_EXCEPTIONS]


def test_the_policy_can_be_read() -> None:
    example = TEXT.partition("```toml\n")[2].partition("```")[0]
    assert len(Policy.parse(example, "the example").exceptions) == 2 + len(LINUX_EXCEPTIONS)

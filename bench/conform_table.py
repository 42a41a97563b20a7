"""The published table of docs/conform.md, from what `fivefold conform --json` printed for each engine.

    python bench/conform_table.py unicorn.json qemu7.json qemu11.json bochscpu.json bochs.json

A row is a rule that at least one engine breaks: per engine what the simplest case did and the kinds of access that
differ, "no" where every case agreed, "not shown" where none could.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

Report = dict[str, Any]


def main() -> None:
    reports = [json.loads(Path(name).read_text()) for name in sys.argv[1:]]
    if not reports:
        sys.exit("expected files that fivefold conform --json printed")
    rules = {row["rule"]: row["section"] for report in reports for row in report["rules"] if row["differs"]}
    engines = [f"{report['engine']} {report['version']}" for report in reports]
    print(f"| rule | {' | '.join(engines)} | the manual |")
    print("| --- " * (len(engines) + 2) + "|")
    for rule in sorted(rules, key=str.lower):
        print(f"| {rule} | {' | '.join(_cell(report, rule) for report in reports)} | {_short(rules[rule])} |")
    print(
        "\nCases: "
        + ", ".join(f"{name} {report['cases']:,}" for name, report in zip(engines, reports, strict=True))
        + "."
    )


def _cell(report: Report, rule: str) -> str:
    rows = [row for row in report["rules"] if row["rule"] == rule]
    wrong = [row for row in rows if row["differs"]]
    if wrong:
        kinds = sorted({row["access"] for row in wrong})
        got = wrong[0]["smallest"]["got"].partition(", CR2=")[0]
        named = (
            ""
            if kinds == ["register write"]
            else f" ({', '.join(kinds)})"
            if len(kinds) < 4
            else f" ({len(kinds)} kinds)"
        )
        return f"yes: {got}{named}"
    return "no" if any(row["cases"] for row in rows) else "not shown"


def _short(section: str) -> str:
    return section.replace("Intel SDM volume ", "SDM ").replace("AMD APM volume ", "APM ")


if __name__ == "__main__":
    main()

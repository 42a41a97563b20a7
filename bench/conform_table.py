"""The published table of docs/conform.md, from what `fivefold conform --json` printed for each engine.

    python bench/conform_table.py unicorn.json qemu7.json qemu11.json bochscpu.json bochs.json

Several files of one engine are one column. A row is a cause, a rule that at least one engine breaks: per engine what
the simplest case did and the kinds of access or instructions that differ, "no" where every case agreed, "not shown"
where none could.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

Report = dict[str, Any]
SHARED = {
    "a legal write goes ahead": "a base or address that is canonical in the width that the CPU supports is loaded",
    "a legal descriptor is taken": "a base or address that is canonical in the width that the CPU supports is loaded",
    "an address that is not canonical raises #GP(0)": "a base or address that is not canonical raises #GP(0)",
}
AMD_BIT = re.compile(r"reserved bits of a PML[45] entry: bit 8 \(AMD\)")


def main() -> None:
    read = [json.loads(Path(name).read_text()) for name in sys.argv[1:]]
    if not read:
        sys.exit("expected files that fivefold conform --json printed")
    columns: dict[tuple[str, str], Report] = {}
    for report in read:
        column = columns.setdefault((report["engine"], report["version"]), {**report, "rules": [], "cases": 0})
        column["rules"] += report["rules"]
        column["cases"] += report["cases"]
    reports = list(columns.values())
    sections: dict[str, set[str]] = {}
    for report in reports:
        for row in report["rules"]:
            row["cause"], row["instruction"] = _cause(row["rule"])
            if row["differs"]:
                sections.setdefault(row["cause"], set()).add(_short(row["section"]))
    engines = [f"{report['engine']} {report['version']}" for report in reports]
    print(f"| rule | {' | '.join(engines)} | the manual |")
    print("| --- " * (len(engines) + 2) + "|")
    for cause in sorted(sections, key=str.lower):
        cells = " | ".join(_cell(report, cause) for report in reports)
        print(f"| {cause} | {cells} | {_sections(sections[cause])} |")
    print(
        "\nCases: "
        + ", ".join(f"{name} {report['cases']:,}" for name, report in zip(engines, reports, strict=True))
        + "."
    )


def _cause(rule: str) -> tuple[str, str]:
    """What several instructions do for one cause is one row: its title, and the instruction where it has one."""
    instruction, _, rest = rule.partition(": ")
    if instruction.isupper() and rest in SHARED:
        return SHARED[rest], instruction
    return AMD_BIT.sub("reserved bits of a PML4 or PML5 entry: bit 8 (AMD)", rule), ""


def _cell(report: Report, cause: str) -> str:
    rows = [row for row in report["rules"] if row["cause"] == cause]
    wrong = [row for row in rows if row["differs"]]
    if not wrong:
        return "no" if any(row["cases"] for row in rows) else "not shown"
    instructions = sorted({row["instruction"] for row in wrong} - {""})
    kinds = instructions or sorted({row["access"] for row in wrong} - {"register write"})
    got = wrong[0]["smallest"]["got"].partition(", CR2=")[0]
    if not kinds:
        return f"yes: {got}"
    return f"yes: {got} ({', '.join(kinds) if instructions or len(kinds) < 4 else f'{len(kinds)} kinds'})"


def _sections(found: set[str]) -> str:
    volumes: dict[str, list[str]] = {}
    for section in sorted(found):
        volume, _, title = section.partition(", ")
        volumes.setdefault(volume, []).append(title)
    return "; ".join(f"{volume}, {', '.join(titles)}" for volume, titles in volumes.items())


def _short(section: str) -> str:
    return section.replace("Intel SDM volume ", "SDM ").replace("AMD APM volume ", "APM ")


if __name__ == "__main__":
    main()

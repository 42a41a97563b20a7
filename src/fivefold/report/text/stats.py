"""An address space in numbers: for people, as JSON and as CSV."""

from __future__ import annotations

import csv
from dataclasses import asdict
from typing import Any, Final, TextIO

from fivefold.report.sheet import Writable, paint
from fivefold.report.text.dump import loop_findings
from fivefold.survey.stats import LevelStats, Stats
from fivefold.units import format_size, hex64

SCHEMA: Final = "fivefold.stats/1"
COLUMNS: Final = ("level", "tables", "bytes", "shared", "links", "used", "fill", "leaves", "malformed", "missing")


def write_text(found: Stats, out: Writable) -> None:
    """Tables by level, then what is mapped by page size, half, rights and area."""
    space = found.space
    out.write(f"# root {hex64(space.root.value)} ({space.root.how}), {space.levels} levels ({space.mode.evidence})\n")
    out.write(f"{found.tables} tables take {format_size(found.table_bytes)}\n")
    out.write("level  tables     size  shared  entries used   pages\n")
    for level in found.levels:
        out.write(
            f"{level.level.name:5} {level.tables:7} {format_size(level.bytes):>8} {level.shared:7} "
            f"{level.used:7} {level.fill:5.1%} {level.leaves:7}\n"
        )
    mapped = found.mapped
    for name, sizes in (
        ("page", mapped.by_page),
        ("half", mapped.by_half),
        ("rights", mapped.by_rights),
        ("area", mapped.by_area),
    ):
        out.write(f"mapped by {name}\n")
        for key, size in sorted(sizes.items(), key=lambda item: -item[1]):
            out.write(f"  {key:18} {format_size(size):>16}\n")
    if not found.is_complete:
        out.write("shared tables unfold too far: what they map is left out above\n")
    out.write(f"memory behind it     {format_size(found.physical)}, ")
    out.write(f"of which at two addresses or more {format_size(found.mapped_twice)}\n")
    out.write(f"shared tables met again {found.counts.replays} times\n")
    for sentence in sentences(found):
        out.write(paint(out, f"!! {sentence}", "bad") + "\n")


def sentences(found: Stats) -> list[str]:
    """What is wrong with the tables, by level and then as a whole: the findings that set the status."""
    wrong = [f"{level.level.name} tables: {told}" for level in found.levels if (told := _told(level))]
    return wrong + [loop["message"] for loop in loop_findings(found.counts)]


def _told(level: LevelStats) -> str:
    wrong = [
        f"{level.malformed} malformed entries" if level.malformed else "",
        f"{level.missing} not in memory" if level.missing else "",
    ]
    return ", ".join(filter(None, wrong))


def stats_json(found: Stats) -> dict[str, Any]:
    """The schema ``fivefold.stats/1``; sizes in bytes."""
    space = found.space
    return {
        "schema": SCHEMA,
        "source": space.source.name,
        "root": hex64(space.root.value),
        "root_known_from": space.root.how,
        "mode": space.mode.value.name,
        "levels": space.levels,
        "mode_known_from": space.mode.how,
        "mode_contradicted_by": space.mode.against,
        "tables": found.tables,
        "table_bytes": found.table_bytes,
        "by_level": [level_json(level) for level in found.levels],
        "mapped": asdict(found.mapped),
        "mapped_bytes": found.counts.mapped_bytes,
        "mapped_is_complete": found.is_complete,
        "physical": found.physical,
        "mapped_twice": found.mapped_twice,
        "shared_met_again": found.counts.replays,
        "cycles": found.counts.cycles,
        "tables_at_two_levels": found.counts.mixed_levels,
        "findings": sentences(found),
        "areas_known_from": space.areas.how,
    }


def level_json(level: LevelStats) -> dict[str, Any]:
    """One level, *fill* as a fraction of 1."""
    return {**asdict(level), "level": int(level.level), "name": level.level.name, "fill": round(level.fill, 6)}


def write_csv(found: Stats, out: TextIO) -> None:
    """A header and a row for each level."""
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    for level in found.levels:
        row = level_json(level)
        writer.writerow(row[name] for name in COLUMNS)

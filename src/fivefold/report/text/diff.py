"""What changed between two address spaces: for people, as JSON and as CSV."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from typing import Any, Final, TextIO

from fivefold.report.json_text import hex_or_null, write_stream
from fivefold.report.sheet import Writable, paint
from fivefold.report.text.dump import finding_text
from fivefold.survey.diff.diff import Change, Diff, Nature
from fivefold.survey.scan.regions import Region, spell
from fivefold.survey.scan.scan_result import RegionKind
from fivefold.survey.space import Space
from fivefold.units import format_size, hex64

SCHEMA: Final = "fivefold.diff/1"
SIGNS: Final = {Nature.ADDED: "+", Nature.REMOVED: "-", Nature.CHANGED: "~"}
COLOURS: Final = {Nature.ADDED: "good", Nature.REMOVED: "bad", Nature.CHANGED: "warning"}
COLUMNS: Final = ("nature", "start", "end", "size", "area", "what", "before", "after")


def write_text(diff: Diff, out: Writable) -> None:
    """A line for each change: ``+`` added, ``-`` removed, ``~`` changed, with both sides; then how many of each."""
    for sign, space in (("-", diff.before), ("+", diff.after)):
        root = f"root {hex64(space.root.value)} ({space.root.how})"
        out.write(f"# {sign} {space.source.name}, {root}, {space.levels} levels{_doubt(space)}\n")
    if diff.slides:
        out.write(f"# further up in OTHER: {', '.join(f'{name} {by:+#x}' for name, by in diff.slides.items())}\n")
    for change in diff.changes:
        out.write(f"{paint(out, SIGNS[change.nature], COLOURS[change.nature])} {told(change)}\n")
    for limit in diff.limits:
        out.write(f"# not compared: {limit}\n")
    out.write(sentence(diff) + "\n")


def told(change: Change) -> str:
    """A change on one line, without its sign."""
    ends = f"{hex64(change.place.start)}-{hex64(change.place.stop)} {format_size(change.size):>9}"
    return f"{ends} {_sides(change)}  {change.area or ''}".rstrip()


def _doubt(space: Space) -> str:
    return f" ({space.mode.evidence})" if space.mode.against else ""


def _sides(change: Change) -> str:
    if change.before is None or change.after is None:
        return describe(change.before or change.after)
    moved = f" (there {change.shift:+#x})" if change.shift else ""
    return f"{','.join(change.what)}: {describe(change.before)} -> {describe(change.after)}{moved}"


def describe(region: Region | None) -> str:
    """Page, effective rights, place and telling flags of a region, on one line."""
    if region is None:
        return "nothing"
    if region.kind is RegionKind.REPEAT:
        return f"{region.level.name} table at {hex64(region.phys or 0)} again"
    if region.kind is not RegionKind.MAPPED:
        return finding_text(region)
    flags = [name for name in region.flag_names if name not in ("P", "RW", "US", "NX", "PS")]
    place = "scattered" if region.phys is None else hex64(region.phys)
    return " ".join((region.page or "", spell(region.effective), place, *flags))


def sentence(diff: Diff) -> str:
    """How many changes there are, on one line."""
    if diff.same:
        return "no differences" + (" in what was compared" if diff.limits else "")
    return counted(diff.changes)


def counted(changes: Sequence[Change]) -> str:
    """How many of *changes* are of each nature, and how much they span."""
    counts = {nature: [change for change in changes if change.nature is nature] for nature in Nature}
    parts = [
        f"{len(found)} {nature} ({format_size(sum(change.size for change in found))})"
        for nature, found in counts.items()
        if found
    ]
    return ", ".join(parts)


def write_json(diff: Diff, out: TextIO) -> None:
    """The schema ``fivefold.diff/1``."""
    settings = diff.settings
    head = {
        "schema": SCHEMA,
        "same": diff.same,
        "before": _space_json(diff.before),
        "after": _space_json(diff.after),
        "compared": {"all_bits": settings.all_bits, "phys": settings.phys, "relative": settings.relative},
        "slides": dict(diff.slides),
        "limits": list(diff.limits),
    }
    write_stream(head, "changes", map(change_json, diff.changes), out, ())


def _space_json(space: Space) -> dict[str, Any]:
    return {
        "source": space.source.name,
        "root": hex64(space.root.value),
        "root_known_from": space.root.how,
        "mode": space.mode.value.name,
        "levels": space.levels,
        "mode_known_from": space.mode.how,
        "mode_contradicted_by": space.mode.against,
    }


def change_json(change: Change) -> dict[str, Any]:
    """A change as the schema has it."""
    return {
        "nature": change.nature.value,
        "start": hex64(change.place.start),
        "end": hex64(change.place.stop),
        "size": change.size,
        "area": change.area,
        "what": list(change.what),
        "shift": change.shift,
        "before": _side_json(change.before),
        "after": _side_json(change.after),
    }


def _side_json(region: Region | None) -> dict[str, Any] | None:
    if region is None:
        return None
    mapped = region.kind is RegionKind.MAPPED
    return {
        "kind": region.kind.name.lower(),
        "page": region.page,
        "level": int(region.level),
        "leaf": spell(region.leaf) if mapped else None,
        "effective": dict(region.effective._asdict()),
        "flags": region.flag_names if mapped else [],
        "phys": hex_or_null(region.phys),
    }


def write_csv(diff: Diff, out: TextIO) -> None:
    """A header and a row for each change."""
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    for change in diff.changes:
        sides = [describe(side) if side else "" for side in (change.before, change.after)]
        ends = (hex64(change.place.start), hex64(change.place.stop), change.size)
        writer.writerow((change.nature.value, *ends, change.area or "", " ".join(change.what), *sides))

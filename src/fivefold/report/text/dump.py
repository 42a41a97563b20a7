"""Regions of an address space: lines for people, CSV, JSON."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from typing import Any, Final, TextIO

from fivefold.arch import TooManyRuns
from fivefold.report.json_text import controls_json, hex_or_null, write_stream
from fivefold.report.sheet import Writable, paint, width_of
from fivefold.survey.scan.regions import Region, spell
from fivefold.survey.scan.scan_result import RegionKind, ScanCounts
from fivefold.survey.space import Space
from fivefold.units import format_size, hex64

SCHEMA: Final = "fivefold.dump/1"
NARROW, FULL, WIDE = 80, 112, 160
"""From so many columns on there is a line a region, with its end, and with all of its flags."""
NOT_LOOKED_AT: Final = "not looked at"
"""In the place of what kind of finding it is: nothing is known to be wrong."""

COLUMNS: Final = (
    "start",
    "end",
    "size",
    "kind",
    "page",
    "leaf",
    "write",
    "user",
    "execute",
    "flags",
    "phys",
    "area",
    "repeats",
    "strides",
    "symbol",
)


class Findings:
    """Passes regions through and keeps those that are wrong: malformed entries, tables that are not in memory."""

    def __init__(self, regions: Iterable[Region]) -> None:
        self._regions = regions
        self.kept: list[Region] = []

    def __iter__(self) -> Iterator[Region]:
        for region in self._regions:
            if region.kind in (RegionKind.MALFORMED, RegionKind.UNREADABLE):
                self.kept.append(region)
            yield region

    def sentence(self) -> str:
        """How many of each there are and where the first is, for a line on stderr."""
        first = self.kept[0]
        return f"{len(self.kept)} findings; the first at {hex64(first.start)}: {finding_text(first)}"


def finding_text(region: Region) -> str:
    """What is wrong with *region*, which is not mapped."""
    if region.kind is RegionKind.UNREADABLE:
        return f"its {region.level.name} table at {hex64(region.phys or 0)} is not in memory"
    return f"{region.level.name} entry with reserved bits set, {region.flags:#x}, holding {hex64(region.phys or 0)}"


def write_text(space: Space, regions: Iterable[Region], out: Writable, *, of_leaf: bool = False) -> None:
    """Header lines that begin with ``#``, then a line for each region, ends exclusive."""
    out.write(f"# root {hex64(space.root.value)} ({space.root.how})\n")
    out.write(f"# {space.mode.value.name}, {space.levels} levels ({space.mode.evidence})\n# areas: {space.areas.how}\n")
    out.write(f"# rights: {'of the leaf entry' if of_leaf else _effective(space)}; r w x u\n")
    if space.c_bit.value is not None:
        out.write(f"# bit {space.c_bit.value} of entries is about encryption, not address ({space.c_bit.how})\n")
    elif (bit := space.suspected_c_bit) is not None:
        out.write(f"# entries of the root lead to memory without bit {bit} only: for encryption give --c-bit {bit}\n")
    width = width_of(out) or FULL
    if width < FULL:
        out.write("# start, size, page, rights, phys, flags, area; the end follows from the size\n")
    symbols = space.symbols
    for region in regions:
        symbol = symbols.at(region.start)
        out.write(_line(region, of_leaf, width, out) + (f"  {symbol}\n" if symbol else "\n"))
    if symbols:
        out.write(f"# symbols: {symbols.how}\n")


def _effective(space: Space) -> str:
    """What effective rights are folded over, and whether CR0.WP counts."""
    wp = space.controls.wp
    if wp.value is None:
        return "effective, of the whole path, as with CR0.WP=1, which is not known"
    if wp.value:
        return "effective, of the whole path"
    return f"effective: CR0.WP=0 ({wp.how}), so that the supervisor writes to its pages whatever their entries say"


def _line(region: Region, of_leaf: bool, width: int, out: Writable) -> str:
    ends = f"{hex64(region.start)}-{hex64(region.end)} {format_size(region.size):>10}"
    if width < FULL:
        ends = f"{hex64(region.start)} {format_size(region.size):>8}"
    if region.kind is RegionKind.REPEAT:
        table = f"{region.level.name} table at {hex64(region.phys or 0)} again, {region.repeats} times"
        return f"{ends}  {table}  {region.area or ''}".rstrip()
    if region.kind is not RegionKind.MAPPED:
        return f"{ends}  {paint(out, f'!! {finding_text(region)}', 'bad')}"
    shown = region.leaf if of_leaf else region.effective
    rights = paint(out, spell(shown), "bad" if shown.write and shown.execute else "")
    place = hex64(region.phys) if region.phys is not None else "scattered"
    area = region.area or ""
    if width < NARROW:
        return f"{ends} {region.page} {rights}\n{f'  {place} {_flags(region)} {area}'.rstrip()}"
    flags = f"{' '.join(region.flag_names):27}" if width >= WIDE else f"{_flags(region):9}"
    return f"{ends} {region.page} {rights} {place:18} {flags} {area}".rstrip()


def _flags(region: Region) -> str:
    """The flags that neither rights nor page size say."""
    return " ".join(name for name in region.flag_names if name not in ("P", "RW", "US", "NX", "PS"))


def write_csv(space: Space, regions: Iterable[Region], out: TextIO) -> None:
    """A header and a row for each region; flags are separated by blanks, what is not known is empty."""
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    for region in regions:
        mapped = region.kind is RegionKind.MAPPED
        rights = [int(right) for right in region.effective] if mapped else ["", "", ""]
        writer.writerow(
            (
                hex64(region.start),
                hex64(region.end),
                region.size,
                region.kind.name.lower(),
                region.page or "",
                spell(region.leaf) if mapped else "",
                *rights,
                " ".join(region.flag_names) if mapped else f"{region.flags:#x}",
                hex_or_null(region.phys) or "",
                region.area or "",
                region.repeats or "",
                " ".join(f"{stride.times}x{stride.bytes:#x}" for stride in region.strides),
                space.symbols.at(region.start) or "",
            )
        )


def write_json(space: Space, regions: Iterable[Region], out: TextIO) -> None:
    """The schema ``fivefold.dump/1``, written as the regions come; findings follow after them."""
    findings = Findings(regions)
    head = {
        "schema": SCHEMA,
        "source": space.source.name,
        "root": hex64(space.root.value),
        "root_known_from": space.root.how,
        "mode": space.mode.value.name,
        "levels": space.levels,
        "mode_known_from": space.mode.how,
        "mode_contradicted_by": space.mode.against,
        "areas_known_from": space.areas.how,
        "controls": controls_json(space.controls),
        "c_bit": {"value": space.c_bit.value, "known_from": space.c_bit.how},
        "symbols_known_from": space.symbols.known_from,
    }
    mapped = (
        region_json(region, space.symbols.at(region.start)) for region in findings if region.kind is RegionKind.MAPPED
    )
    write_stream(head, "regions", mapped, out, _tail(space, findings))


def _tail(space: Space, findings: Findings) -> Iterator[tuple[str, Any]]:
    yield "findings", [*(finding_json(region) for region in findings.kept), *loops_of(space)]


def loops_of(space: Space) -> list[dict[str, Any]]:
    """`loop_findings` of the whole of *space*, or that it is too much to look at: a part of it may well be told."""
    try:
        return loop_findings(space.overview.counts)
    except TooManyRuns as error:
        text = f"tables that lead back to themselves were not looked for: {error}"
        return [{"what": NOT_LOOKED_AT, "start": hex64(0), "count": 0, "message": text}]


def loop_findings(counts: ScanCounts) -> list[dict[str, Any]]:
    """What is wrong with how tables lead to each other: each kind once, with its first address.

    A table that leads back to one above it is walked once, and its ranges are listed where it is met.
    """
    found: list[dict[str, Any]] = []
    if counts.cycles:
        what = "entry leads" if counts.cycles == 1 else "entries lead"
        text = f"{counts.cycles} {what} to a table above, the first behind {hex64(counts.first_cycle)}"
        found.append({"what": "cycle", "start": hex64(counts.first_cycle), "count": counts.cycles, "message": text})
    if counts.mixed_levels:
        first = hex64(counts.first_mixed)
        times = "once" if counts.mixed_levels == 1 else f"{counts.mixed_levels} times"
        text = f"tables are met at two levels, {times}, the first behind {first}"
        found.append({"what": "table at two levels", "start": first, "count": counts.mixed_levels, "message": text})
    return found


def region_json(region: Region, symbol: str | None = None) -> dict[str, Any]:
    """One region that is mapped, *symbol* its first address; ``repeats`` and ``strides`` only where it is several."""
    told = {
        "start": hex64(region.start),
        "end": hex64(region.end),
        "size": region.size,
        "page": region.page,
        "leaf": spell(region.leaf),
        "effective": dict(region.effective._asdict()),
        "flags": region.flag_names,
        "phys": hex_or_null(region.phys),
        "area": region.area,
        "symbol": symbol,
    }
    if region.repeats:
        told |= {"repeats": region.repeats, "strides": [stride._asdict() for stride in region.strides]}
    return told


def finding_json(region: Region) -> dict[str, Any]:
    """One thing that is wrong with the tables."""
    return {
        "what": "malformed entry" if region.kind is RegionKind.MALFORMED else "table not in memory",
        "start": hex64(region.start),
        "end": hex64(region.end),
        "level": int(region.level),
        "holds": hex_or_null(region.phys),
        "bits": hex64(region.flags),
        "message": finding_text(region),
    }

"""The map of areas, and what an address is in it: for people, as JSON and as CSV."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, TextIO

from fivefold.arch import PagingMode
from fivefold.layout import Area
from fivefold.report.json_text import hex_or_null
from fivefold.report.sheet import Writable, width_of
from fivefold.survey.guest.describe_address import AddressFacts
from fivefold.units import format_size, hex64

SCHEMA: Final = "fivefold.layout/1"
FULL: Final = 96
"""From so many columns on areas have their ends."""
COLUMNS: Final = ("name", "start", "end", "size", "kind", "source")


@dataclass(frozen=True, slots=True)
class LayoutReport:
    """A map, where it is from, and the addresses that were asked for."""

    mode: PagingMode
    areas: Sequence[Area]
    known_from: str
    addresses: Sequence[AddressFacts]


def write_text(report: LayoutReport, out: Writable) -> None:
    """The map, ascending, ends exclusive; with addresses only these."""
    out.write(f"# {report.mode.name}, {int(report.mode.top)} levels: {report.known_from}\n")
    for facts in report.addresses:
        _write_address(facts, out)
    for area in () if report.addresses else report.areas:
        start, size = hex64(area.start), format_size(area.size)
        if (width_of(out) or FULL) >= FULL:
            out.write(f"{start}-{_end(area.end)} {size:>14} {area.kind:13} {area.name}\n")
        else:
            out.write(f"{start} {size:>12} {area.kind:13} {area.name}\n")


def _end(end: int) -> str:
    return hex64(end) if end < 1 << 64 else "0x10000000000000000"


def _write_address(facts: AddressFacts, out: Writable) -> None:
    out.write(f"{hex64(facts.va)}\n")
    if not facts.is_canonical:
        out.write(f"  not canonical: the CPU refuses it (#GP); bits as of {hex64(facts.canonical)}\n")
    if facts.area is not None:
        out.write(f"  {facts.area.name} +{facts.va - facts.area.start:#x}, {facts.area.kind} ({facts.area.source})\n")
    else:
        out.write("  in no area\n")
    out.write(f"  {', '.join(f'{name}[{index}]' for name, index in facts.indices)}, offset {facts.offset:#x}\n")
    if facts.shadow is not None:
        out.write(f"  KASAN shadow byte at {hex64(facts.shadow)}\n")
    if facts.shadow_of is not None:
        out.write(f"  is the KASAN shadow of {hex64(facts.shadow_of)} and the seven bytes after it\n")


def layout_json(report: LayoutReport) -> dict[str, Any]:
    """The schema ``fivefold.layout/1``."""
    return {
        "schema": SCHEMA,
        "mode": report.mode.name,
        "levels": int(report.mode.top),
        "known_from": report.known_from,
        "areas": [_area_json(area) for area in report.areas],
        "addresses": [_address_json(facts) for facts in report.addresses],
    }


def _area_json(area: Area) -> dict[str, Any]:
    ends = {"start": hex64(area.start), "end": _end(area.end), "size": area.size}
    return {"name": area.name, **ends, "kind": area.kind, "source": area.source}


def _address_json(facts: AddressFacts) -> dict[str, Any]:
    return {
        "address": hex64(facts.va),
        "canonical": facts.is_canonical,
        "area": facts.area and facts.area.name,
        "area_offset": facts.va - facts.area.start if facts.area else None,
        "indices": dict(facts.indices),
        "offset": facts.offset,
        "kasan_shadow": hex_or_null(facts.shadow),
        "kasan_shadow_of": hex_or_null(facts.shadow_of),
    }


def write_csv(report: LayoutReport, out: TextIO) -> None:
    """A header and a row for each area."""
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    for area in report.areas:
        row = _area_json(area)
        writer.writerow(row[name] for name in COLUMNS)

"""An address space as one page of HTML that needs nothing else: areas, by the bits of their sizes, and every region.

Colour is never alone: rights are spelled in each row, and each bar has its numbers as text.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from html import escape
from itertools import islice
from typing import Final

from fivefold.layout import Area
from fivefold.report.text.dump import finding_text
from fivefold.survey.scan.regions import Region, spell
from fivefold.survey.scan.scan_result import RegionKind
from fivefold.survey.space import Space
from fivefold.survey.stats import mapped_bytes
from fivefold.units import format_size, hex64

MAX_ROWS: Final = 20_000
"""Regions on a page; more are counted only."""

SHARED_ABOVE: Final = 16

STYLE: Final = """
body{font:14px/1.4 system-ui,sans-serif;margin:2em;color:#222;background:#fff}
h1{font-size:1.3em}td,th{padding:1px .8em 1px 0;text-align:left;white-space:nowrap}
table{border-collapse:collapse;font-family:ui-monospace,monospace;font-size:12px}
th{position:sticky;top:0;background:#fff}.n{text-align:right}
.bar{display:inline-block;height:.8em;background:#4a7ebb;min-width:1px}.free{background:#ddd}
.wx{background:#f7c6c6}.x{background:#fbe8c8}.u{background:#dcecd8}.bad{background:#e8c8f0}
input{font:inherit;padding:.2em;width:24em}
"""
SCRIPT: Final = """
const q=document.getElementById('q'),rows=[...document.querySelectorAll('#regions tbody tr')];
q.addEventListener('input',()=>{const words=q.value.toLowerCase().split(/\\s+/).filter(Boolean);
for(const r of rows)r.hidden=!words.every(w=>r.textContent.toLowerCase().includes(w));});
"""


def html_page(space: Space) -> Iterator[str]:
    """The page in parts, in order."""
    regions = iter(space.regions(all_bits=False, repeat_above=SHARED_ABOVE))
    first, last = list(islice(regions, MAX_ROWS // 2)), deque[Region](maxlen=MAX_ROWS // 2)
    more = 0
    for region in regions:
        last.append(region)
        more += 1
    more -= len(last)
    title = escape(f"{space.source.name}, root {hex64(space.root.value)}")
    yield '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
    yield f"<title>{title}</title><style>{STYLE}</style></head><body>"
    yield f"<h1>{title}</h1><p>{escape(_facts(space))}</p>"
    yield from _areas(space.areas.areas, mapped_bytes(space).by_area)
    yield from _table(first, more, last)
    yield f"<script>{SCRIPT}</script></body></html>\n"


def _facts(space: Space) -> str:
    return (
        f"{space.mode.value.name}, {space.levels} levels ({space.mode.evidence}); root: {space.root.how}; "
        f"areas: {space.areas.how}"
    )


def _areas(areas: Iterable[Area], mapped: Mapping[str, int]) -> Iterator[str]:
    """A bar for each area, as long as its size has bits, with how much of it is mapped."""
    yield "<h2>Areas</h2><table><tr><th>start<th>name<th class=n>size<th class=n>mapped<th>bits of size, of mapped</tr>"
    for area in areas:
        used = mapped.get(area.name, 0)
        if area.kind in ("hole", "non_canonical", "unknown") and not used:
            continue
        yield (
            f"<tr><td>{hex64(area.start)}<td>{escape(area.name)}<td class=n>{format_size(area.size)}"
            f"<td class=n>{format_size(used)}<td>{_bar(used, area.size)}</tr>"
        )
    if mapped.get("unnamed"):
        yield f"<tr><td><td>in no area<td class=n><td class=n>{format_size(mapped['unnamed'])}<td></tr>"
    yield "</table>"


def _bar(used: int, size: int) -> str:
    low, high = used.bit_length(), size.bit_length()
    rest = f'<span class="bar free" style="width:{6 * (high - low)}px"></span>'
    return f'<span class=bar style="width:{6 * low}px"></span>{rest}'


def _table(first: Iterable[Region], more: int, last: Iterable[Region]) -> Iterator[str]:
    yield '<h2>Regions</h2><p><input id=q placeholder="words that a row must have, such as: vmalloc rw--"></p>'
    if more:
        yield f"<p>{more} more regions are not on this page.</p>"
    yield "<table id=regions><thead><tr><th>start<th>end<th class=n>size<th>page<th>rights<th>phys<th>area</tr></thead>"
    yield "<tbody>"
    for region in first:
        yield _row(region)
    if more:
        yield f"<tr class=bad><td colspan=7>{more} regions between are not on this page</tr>"
    for region in last:
        yield _row(region)
    yield "</tbody></table>"


def _row(region: Region) -> str:
    ends = f"<td>{hex64(region.start)}<td>{hex64(region.end)}<td class=n>{format_size(region.size)}"
    area = escape(region.area or "")
    if region.kind is RegionKind.REPEAT:
        what = f"{region.level.name} table at {hex64(region.phys or 0)} again, {region.repeats} times"
        return f"<tr>{ends}<td colspan=3>{what}<td>{area}</tr>"
    if region.kind is not RegionKind.MAPPED:
        return f"<tr class=bad>{ends}<td colspan=3>{escape(finding_text(region))}<td>{area}</tr>"
    place = "scattered" if region.phys is None else hex64(region.phys)
    return f"<tr{_shade(region)}>{ends}<td>{region.page}<td>{spell(region.effective)}<td>{place}<td>{area}</tr>"


def _shade(region: Region) -> str:
    rights = region.effective
    if rights.write and rights.execute:
        return " class=wx"
    if rights.execute:
        return " class=x"
    return " class=u" if rights.user else ""

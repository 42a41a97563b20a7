"""An address space as one page: its areas, its tables level by level, every region, and what an audit finds."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final, NamedTuple

from fivefold.arch import TooManyRuns
from fivefold.errors import FivefoldError, LayoutError
from fivefold.layout import Area, linux_areas, parse_version
from fivefold.report.page.entry_bits import all_fields, decoding_rules
from fivefold.report.page.region_columns import RegionColumns, region_columns
from fivefold.report.page.table_columns import TableColumns, table_columns
from fivefold.report.page.templating import about_size, render
from fivefold.report.text.dump import NOT_LOOKED_AT, loops_of
from fivefold.survey.audit.audit import audit
from fivefold.survey.scan.regions import PAGE_NAMES
from fivefold.survey.scan.scan_result import RegionKind
from fivefold.survey.space import Space
from fivefold.survey.stats import mapped_bytes
from fivefold.units import hex64

SCHEMA: Final = "fivefold.view/1"
MAX_FINDINGS: Final = 2_000
DEFAULT_RELEASE: Final = "6.1"
"""Whose documented maps stand beside a Linux of unknown release."""
_EMPTY_KINDS: Final = ("hole", "non_canonical", "unknown")


class ShownRoot(NamedTuple):
    """One root of the page: its space, what its label is, its regions."""

    space: Space
    label: str
    regions: RegionColumns
    wrong: list[str]
    """What is wrong with its tables, which the audit takes as they are; sentences of `fivefold dump`."""
    is_bad: bool
    """Whether any of these is a finding, and not that something was not looked for."""

    @classmethod
    def of(cls, space: Space, label: str) -> ShownRoot:
        """Scan *space*. Raises what scans raise."""
        regions, loops = region_columns(space), loops_of(space)
        wrong = [*([regions.wrong] if regions.wrong else []), *(loop["message"] for loop in loops)]
        is_bad = regions.wrong is not None or any(loop["what"] != NOT_LOOKED_AT for loop in loops)
        return cls(space, label, regions, wrong, is_bad)


def view_page(space: Space, others: Sequence[tuple[Space, str]] = (), *, with_audit: bool = True) -> str:
    """The page of *space*, and of *others* with their labels to switch to. Raises what scans raise."""
    return page_of(shown_roots(space, others), with_audit=with_audit)


def shown_roots(space: Space, others: Sequence[tuple[Space, str]] = ()) -> list[ShownRoot]:
    """*space* and *others* with their labels, scanned. Raises what scans raise."""
    return [ShownRoot.of(one, label) for one, label in [(space, space.root.how), *others]]


def page_of(shown: Sequence[ShownRoot], *, with_audit: bool = True) -> str:
    """The page of roots that were scanned; the first of them is the one that is audited."""
    space = shown[0].space
    tables = table_columns(one.space for one in shown)
    findings, not_audited = _findings(space) if with_audit else ([], "not asked for")
    more_findings = max(len(findings) - MAX_FINDINGS, 0)
    return render(
        "view.html",
        title=f"{space.source.name}, root {hex64(space.root.value)}",
        space=space,
        maps=_maps(space),
        data={
            "schema": SCHEMA,
            "source": space.source.name,
            "mode": space.mode.value.name,
            "levels": space.levels,
            "roots": [_root(one) for one in shown],
            "tables": _tables(tables),
            "fields": all_fields(),
            "cpu": _cpu(space),
            "findings": findings[:MAX_FINDINGS],
            "more_findings": more_findings,
            "not_audited": not_audited,
            "kinds": {int(kind): kind.name for kind in RegionKind},
            "pages": {int(level): name for level, name in PAGE_NAMES.items()},
        },
        blocks=[
            ("frames", tables.frames.text),
            ("entries", tables.entries.text),
            *((f"regions-{index}", one.regions.packed.text) for index, one in enumerate(shown)),
        ],
    )


def _root(one: ShownRoot) -> dict[str, Any]:
    space, columns = one.space, one.regions
    return {
        "root": hex64(space.root.value),
        "label": one.label,
        "levels": space.levels,
        "areas": _areas(space),
        "areas_known_from": space.areas.how,
        "columns": columns.packed.described(),
        "names": columns.names,
        "cut_at": columns.at,
        "cut": columns.cut,
        "wrong": one.wrong,
    }


def _areas(space: Space) -> list[dict[str, Any]]:
    """The named areas with what is mapped in each: bytes as text, since a number of JavaScript has 53 bits."""
    mapped = mapped_bytes(space).by_area
    rows = [
        _area(area, mapped.get(area.name, 0))
        for area in space.areas.areas
        if area.kind not in _EMPTY_KINDS or mapped.get(area.name)
    ]
    if mapped.get("unnamed"):
        rows.append({"name": "unnamed", "start": None, "end": None, "size": None, **_bytes(mapped["unnamed"])})
    return rows


def _area(area: Area, mapped: int) -> dict[str, Any]:
    ends = {"start": hex64(area.start), "end": hex64(area.end - 1)}
    size = {"size": about_size(area.size), "size_bits": area.size.bit_length()}
    return {"name": area.name, "kind": area.kind, **ends, **size, **_bytes(mapped)}


def _bytes(mapped: int) -> dict[str, Any]:
    return {
        "mapped_bytes": str(mapped),
        "mapped": about_size(mapped) if mapped else "0",
        "mapped_bits": mapped.bit_length(),
    }


def _tables(tables: TableColumns) -> dict[str, Any]:
    return {
        "frames": tables.frames.described(),
        "entries": tables.entries.described(),
        "left_out": tables.left_out,
    }


def _cpu(space: Space) -> dict[str, Any]:
    """What decides about an entry beside its bits."""
    nxe = space.nxe.value is not False
    return decoding_rules(space.cpu, nxe, ignores_read_only=space.controls.ignores_read_only)


def _findings(space: Space) -> tuple[list[dict[str, Any]], str | None]:
    """What the audit of the root finds, or why it could not be asked."""
    try:
        found = audit(space)
    except (FivefoldError, TooManyRuns) as error:
        return [], str(error)
    rows = [
        {
            "rule": one.rule.name,
            "severity": one.severity.name.lower(),
            "start": None if one.window is None else hex64(one.window.start),
            "end": None if one.window is None else hex64(one.window.stop - 1),
            "area": one.area,
            "message": one.message,
            "excepted": one.excepted,
        }
        for result in found.results
        for one in result.findings
    ]
    return rows, None


class AddressMap(NamedTuple):
    """One map to draw: its *areas* from low to high, and what it is of."""

    id: str
    title: str
    areas: Sequence[Area]


def _maps(space: Space) -> list[AddressMap]:
    """The guest's own map, and those that are documented for both modes of its release, where it is Linux."""
    own = [AddressMap("own", "this guest", space.areas.areas)] if space.areas.areas else []
    if not space.system.is_linux:
        return own
    with suppress(LayoutError):
        release = str(parse_version(space.system.release.value or DEFAULT_RELEASE))
        own += [
            AddressMap(f"levels{levels}", f"{word} levels, Linux {release} as documented", linux_areas(release, levels))
            for levels, word in ((4, "four"), (5, "five"))
        ]
    return own

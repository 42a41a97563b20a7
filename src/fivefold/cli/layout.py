"""`fivefold layout`: what a kernel puts where."""

from __future__ import annotations

import sys
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from fivefold.cli import values
from fivefold.cli.choices import TableFormat
from fivefold.cli.source_options import JsonOption

if TYPE_CHECKING:
    from fivefold.arch import PagingMode
    from fivefold.layout import Area


class ModeChoice(StrEnum):
    """How many levels of page tables."""

    la48 = "la48"
    la57 = "la57"


def layout(
    addresses: Annotated[
        list[int] | None,
        typer.Argument(parser=values.address, metavar="[ADDRESS]...", help="Show what is at these addresses."),
    ] = None,
    mode: Annotated[ModeChoice | None, typer.Option(help="Use four or five levels; la57 unless a source says.")] = None,
    linux: Annotated[
        str | None, typer.Option(metavar="RELEASE", help="Show the map of this Linux release, such as 6.1 or 4.14.")
    ] = None,
    source: Annotated[
        str | None, typer.Option(metavar="SOURCE", help="Use the bases of the kernel in this source.")
    ] = None,
    format: Annotated[TableFormat, typer.Option(help="How to print it.")] = TableFormat.text,
    as_json: JsonOption = False,
) -> int:
    """Show the map of areas, or what is at an address: its area, its indices, its KASAN shadow."""
    if source is not None and (mode is not None or linux is not None):
        raise typer.BadParameter("--source says which mode and release it is; expected it without --mode and --linux")
    from fivefold.layout import shadow_offset
    from fivefold.report.json_text import write_document
    from fivefold.report.sheet import sheet
    from fivefold.report.text import layout as layout_text
    from fivefold.survey.guest.describe_address import describe_address

    paging, areas, how, release = _map(source) if source is not None else _documented(mode, linux)
    offset = shadow_offset(release, int(paging.top))
    facts = [describe_address(address, paging, areas, offset) for address in addresses or []]
    report = layout_text.LayoutReport(paging, areas, how, facts)
    if as_json or format is TableFormat.json:
        write_document(layout_text.layout_json(report), sys.stdout)
    elif format is TableFormat.csv:
        layout_text.write_csv(report, sys.stdout)
    else:
        layout_text.write_text(report, sheet())
    return 0


def _documented(mode: ModeChoice | None, linux: str | None) -> tuple[PagingMode, tuple[Area, ...], str, str]:
    from fivefold.arch import LA48, LA57
    from fivefold.layout import linux_areas

    paging = LA48 if mode is ModeChoice.la48 else LA57
    release = linux or "6.1"
    areas = linux_areas(release, int(paging.top))
    return paging, areas, f"Linux {release}, without randomisation", release


def _map(source: str) -> tuple[PagingMode, tuple[Area, ...], str, str]:
    from fivefold.survey.guest.areas import ASSUMED_RELEASE
    from fivefold.survey.space import open_space

    with open_space(source) as space:
        return space.mode.value, space.areas.areas, space.areas.how, space.release.value or ASSUMED_RELEASE

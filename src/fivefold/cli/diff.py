"""`fivefold diff`: what changed between two address spaces."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from fivefold.cli import values
from fivefold.cli.choices import BitsChoice, TableFormat
from fivefold.cli.source_options import JsonOption, SourceChoice, on_source, telling

if TYPE_CHECKING:
    from fivefold.survey.diff.diff import Diff
    from fivefold.survey.space import Space


@on_source
def diff(
    chosen: SourceChoice,
    other: Annotated[str, typer.Argument(metavar="OTHER", help="What to compare it with: later, or another guest.")],
    format: Annotated[TableFormat, typer.Option(help="How to print it.")] = TableFormat.text,
    as_json: JsonOption = False,
    other_cr3: Annotated[
        int | None, typer.Option("--other-cr3", parser=values.address, metavar="VALUE", help="The root in OTHER.")
    ] = None,
    other_cpu: Annotated[
        int | None,
        typer.Option(
            "--other-cpu", parser=values.count(0), metavar="N", help="Use the registers of this CPU in OTHER."
        ),
    ] = None,
    other_levels: Annotated[
        int | None, typer.Option(parser=values.count(4, 5), metavar="4|5", help="Levels of page tables in OTHER.")
    ] = None,
    window: Annotated[
        range | None,
        typer.Option("--range", parser=values.window, metavar="A-B", help="Only these addresses of SOURCE."),
    ] = None,
    bits: Annotated[
        BitsChoice, typer.Option(help="few: without accessed, dirty, software bits and key.")
    ] = BitsChoice.few,
    phys: Annotated[bool, typer.Option("--phys/--no-phys", help="Compare physical addresses, too.")] = True,
    relative: Annotated[
        bool, typer.Option("--relative", help="Lay areas over each other by their bases: two boots with KASLR.")
    ] = False,
) -> int:
    """Compare two address spaces: what was added, removed, changed. Status 1 when something was.

    The root and levels of OTHER are its own: --cr3, --cr4, --cpu and --levels are of SOURCE, the other options of both.
    """
    from fivefold.survey.diff.diff import DiffSettings
    from fivefold.survey.diff.diff import diff as compare

    settings = DiffSettings(all_bits=bits is BitsChoice.all, phys=phys, relative=relative, window=window)
    given = {**chosen.given, "cr3": other_cr3, "cr4": None, "levels": other_levels, "cpu": other_cpu}
    with (
        chosen.open_space() as before,
        _open_other(replace(chosen, name=other, given=given), before if other == chosen.name else None) as after,
    ):
        with telling() as tell:
            found = compare(before, after, settings, tell)
        _write(found, TableFormat.json if as_json else format)
    return 0 if found.same else 1


def _open_other(chosen: SourceChoice, before: Space | None) -> Space:
    """The space of OTHER; what refuses it names OTHER's own options. *before* is SOURCE where the two are one."""
    from fivefold.errors import NotKnownError

    try:
        return chosen.open_space() if before is None else chosen.space_of(before.source)
    except NotKnownError as error:
        raise NotKnownError(re.sub(r"--(cr3|cpu|levels)\b", r"--other-\1", str(error))) from error


def _write(found: Diff, form: TableFormat) -> None:
    from fivefold.report.sheet import sheet
    from fivefold.report.text.diff import write_csv, write_json, write_text

    if form is TableFormat.text:
        write_text(found, sheet())
    else:
        (write_json if form is TableFormat.json else write_csv)(found, sys.stdout)

"""`fivefold watch`: what changes in the page tables of a live guest."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Annotated

import typer

from fivefold.cli import values
from fivefold.cli.choices import BitsChoice
from fivefold.cli.source_options import SourceChoice, on_source_without

if TYPE_CHECKING:
    from fivefold.report.live_watch import Shown, Totals
    from fivefold.survey.space import Space


@on_source_without("ept", "npt", "vtd", "ram_map", "freeze", "max_unpacked", "legend")
def watch(
    chosen: SourceChoice,
    interval: Annotated[
        float, typer.Option(parser=values.seconds, metavar="SECONDS", help="How long from look to look.")
    ] = 1.0,
    count: Annotated[
        int | None,
        typer.Option(parser=values.count(1), metavar="N", help="End after N looks."),
    ] = None,
    seconds: Annotated[
        float | None, typer.Option("--for", parser=values.seconds, metavar="SECONDS", help="End after this time.")
    ] = None,
    most_still: Annotated[
        float,
        typer.Option(parser=values.seconds, metavar="SECONDS", help="Give up a look that takes longer."),
    ] = 0.25,
    as_json: Annotated[bool, typer.Option("--json", help="A line of JSON for each look, and one at the end.")] = False,
    window: Annotated[
        range | None, typer.Option("--range", parser=values.window, metavar="A-B", help="Only these addresses.")
    ] = None,
    bits: Annotated[
        BitsChoice, typer.Option(help="few: without accessed, dirty, software bits and key.")
    ] = BitsChoice.few,
    phys: Annotated[bool, typer.Option("--phys/--no-phys", help="Compare physical addresses, too.")] = True,
) -> int:
    """Show what changes in the page tables of a live guest: qmp:SOCKET, libvirt:DOMAIN or pid:NUMBER.

    The guest is stopped for as long as it takes to copy its tables, at most a twentieth of the time, and runs while
    they are compared. Ctrl-C ends the watch (130); the guest runs on.
    """
    from fivefold.report.live_watch import Totals
    from fivefold.survey.diff.diff import DiffSettings
    from fivefold.survey.diff.watch import Watcher, refuse_what_stands_still
    from fivefold.survey.diff.watch import watch as looks

    settings = DiffSettings(all_bits=bits is BitsChoice.all, phys=phys, window=window)
    totals = Totals()
    if chosen.name.startswith(("gdb:", "kcore:")):  # which would want --freeze, or be searched first
        refuse_what_stands_still(chosen.name, "a stub stops its guest" if chosen.name[0] == "g" else "this machine")
    with chosen.open_space() as space:
        watcher = Watcher(space, settings, most_still=most_still)
        with _shown(watcher.space, interval, as_json, totals) as show:
            for look in looks(watcher, interval=interval, count=count, seconds=seconds):
                totals.take(look)
                show(look)
    return 0


def _shown(space: Space, interval: float, as_json: bool, totals: Totals) -> AbstractContextManager[Shown]:
    from fivefold.report.live_watch import shown_as_json, shown_as_lines, shown_live
    from fivefold.report.sheet import sheet

    if as_json:
        return shown_as_json(sys.stdout, totals)
    if sys.stdout.isatty():
        return shown_live(space, interval, totals)
    return shown_as_lines(sheet(), space, interval, totals)

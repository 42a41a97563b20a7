"""`fivefold walk`: the path of an address through the tables."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fivefold.cli import values
from fivefold.cli.source_options import JsonOption, SourceChoice, on_source
from fivefold.units import VirtAddr

if TYPE_CHECKING:
    from fivefold.survey.paths import Path as Walked
    from fivefold.survey.space import Space


@on_source
def walk(
    chosen: SourceChoice,
    addresses: Annotated[
        list[int], typer.Argument(parser=values.address, metavar="ADDRESS...", help="Virtual addresses.")
    ],
    as_json: JsonOption = False,
    as_html: Annotated[bool, typer.Option("--html", help="Write a page to look at, with every bit explained.")] = False,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE.html", help="Where --html writes; - is stdout."),
    ] = None,
) -> int:
    """Show every entry that the CPU reads for an address, the rights so far, and the answer or the refusal.

    Status 1 when a walk meets something wrong: a malformed entry, or a table that is not in memory.
    """
    if as_html != (output is not None) or (as_html and as_json):
        raise typer.BadParameter("a page needs both --html and -o FILE.html, without --json", param_hint="--html")
    from fivefold.arch import Mapped
    from fivefold.report.json_text import write_document
    from fivefold.report.sheet import sheet
    from fivefold.report.text.walk import walk_json, write_path

    with chosen.open_space() as space:
        paths = [space.path(address) for address in addresses]
        if output is not None:
            _write_page(space, paths, output)
        elif as_json:
            write_document(walk_json(space, paths), sys.stdout)
        else:
            out = sheet()
            out.write(
                f"root {space.root.value:#x} ({space.root.how}), {space.mode.value.name} ({space.mode.evidence})\n"
            )
            sentences = _what_lies_there(space, [path for path in paths if not isinstance(path.end, Mapped)])
            for path in paths:
                write_path(path, space, out)
                if path.va in sentences:
                    out.write(f"  {sentences[path.va]}\n")
    return int(any(path.is_finding for path in paths))


def _write_page(space: Space, paths: list[Walked], output: Path) -> None:
    from fivefold.cli.printing import write_output
    from fivefold.report.page.walk_page import walk_page

    data = walk_page(space, paths).encode()
    write_output(output, data, f"{len(data)} bytes")


def _what_lies_there(space: Space, refused: list[Walked]) -> dict[int, str]:
    """What `explain` says of addresses that were refused, where its map and the guest's own areas agree."""
    from fivefold.explain import explain

    if not refused:
        return {}
    # Without EFER it takes 32-bit code in long mode for PAE paging.
    told = explain(memory=space, addresses=[path.va for path in refused])
    if told.mode not in (None, space.mode.value.name):
        return {}
    area_at = {path.va: path.area for path in refused}
    return {place.address: place.sentence for place in told.places if place.area == area_at[VirtAddr(place.address)]}

"""`fivefold walk`: the path of an address through the tables."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from fivefold.cli import values
from fivefold.cli.source_options import JsonOption, SourceChoice, on_source


@on_source
def walk(
    chosen: SourceChoice,
    addresses: Annotated[
        list[int], typer.Argument(parser=values.number, metavar="ADDRESS...", help="Virtual addresses.")
    ],
    as_json: JsonOption = False,
) -> int:
    """Show every entry that the CPU reads for an address, the rights so far, and the answer or the refusal.

    Status 1 when a walk meets something wrong: a malformed entry, or a table that is not in memory.
    """
    from fivefold.report.json_text import write_document
    from fivefold.report.walk_text import walk_json, write_path

    with chosen.open_space() as space:
        for address in addresses:
            if not 0 <= address < 1 << 64:
                raise typer.BadParameter(f"{address:#x} is no 64-bit address")
        paths = [space.path(address) for address in addresses]
        if as_json:
            write_document(walk_json(space, paths), sys.stdout)
        else:
            sys.stdout.write(
                f"root {space.root.value:#x} ({space.root.how}), {space.mode.value.name} ({space.mode.how})\n"
            )
            for path in paths:
                write_path(path, space.tables, sys.stdout)
    return int(any(path.is_finding for path in paths))

"""`fivefold view`: the address space to look at."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fivefold.cli.printing import write_output
from fivefold.cli.source_options import SourceChoice, on_source


@on_source
def view(
    chosen: SourceChoice,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE.html", help="The file to write; - is standard output.")
    ],
) -> int:
    """Write one page of HTML that needs nothing else: areas, and every region with its rights, to filter."""
    from fivefold.report.html_view import html_page

    with chosen.open_space() as space:
        data = "".join(html_page(space)).encode()
    write_output(output, data, f"{len(data)} bytes")
    return 0

"""`fivefold stats`: an address space in numbers."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from fivefold.cli.choices import TableFormat
from fivefold.cli.source_options import JsonOption, SourceChoice, on_source


@on_source
def stats(
    chosen: SourceChoice,
    format: Annotated[TableFormat, typer.Option(help="How to print it.")] = TableFormat.text,
    as_json: JsonOption = False,
) -> int:
    """Tell how much memory page tables take, how full they are, and how much is mapped as what.

    Status 1 when entries are malformed, tables are not in memory, or lead back to themselves or to two levels.
    """
    from fivefold.report.json_text import write_document
    from fivefold.report.sheet import sheet
    from fivefold.report.text.stats import sentences, stats_json, write_csv, write_text
    from fivefold.survey.stats import stats as count

    with chosen.open_space() as space:
        found = count(space)
        if as_json or format is TableFormat.json:
            write_document(stats_json(found), sys.stdout)
        elif format is TableFormat.csv:
            write_csv(found, sys.stdout)
        else:
            write_text(found, sheet())
        wrong = sentences(found)
        if format is not TableFormat.text or as_json:  # the text has them
            for sentence in wrong:
                print(f"fivefold: {sentence}", file=sys.stderr)
    return int(bool(wrong))

"""`fivefold info`: what a source is, and how that is known."""

from __future__ import annotations

import sys

from fivefold.cli.source_options import JsonOption, SourceChoice, on_source


@on_source
def info(chosen: SourceChoice, as_json: JsonOption = False) -> int:
    """Format, extents, CPUs, mode, root, kernel and bases of a guest, each with its evidence."""
    from fivefold.errors import NotKnownError
    from fivefold.report.json_text import write_document
    from fivefold.report.sheet import sheet
    from fivefold.report.text.info import write_info
    from fivefold.survey.guest.info import About

    with chosen.open_source() as source:
        try:
            about, refusal = About(source, chosen.space_of(source)), None
        except NotKnownError as error:
            # What is known is worth showing; the status still says that it is not enough.
            about, refusal = About(source, None, str(error), chosen.check_given()), error
        if as_json:
            write_document(about.to_json(), sys.stdout)
        else:
            write_info(about, sheet())
        if refusal is not None:
            raise refusal
    return 0

"""`fivefold roots`: top-level tables in a memory, found without registers."""

from __future__ import annotations

import sys

from fivefold.cli.source_options import JsonOption, SourceChoice, on_source


@on_source
def roots(chosen: SourceChoice, as_json: JsonOption = False) -> int:
    """Find page-table roots in all of memory, group those of one kernel, and say what speaks for each.

    Status 1 when there are none.
    """
    from fivefold.report.json_text import write_document
    from fivefold.report.roots_text import roots_json, write_roots
    from fivefold.survey.roots import find_roots

    given = chosen.check_given()
    with chosen.open_source() as source:
        found = find_roots(source, given.levels, given.phys_bits)
        if as_json:
            write_document(roots_json(source, found), sys.stdout)
        else:
            write_roots(found, sys.stdout)
        if not found:
            print(f"fivefold: no page-table roots in {source.name}", file=sys.stderr)
    return 0 if found else 1

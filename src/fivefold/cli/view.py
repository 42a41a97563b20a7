"""`fivefold view`: the address space to look at."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from fivefold.cli.printing import write_output
from fivefold.cli.source_options import SourceChoice, on_source

if TYPE_CHECKING:
    from fivefold.survey.space import Space

MAX_OTHERS: Final = 31
"""Roots on a page beside the first one."""


@on_source
def view(
    chosen: SourceChoice,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE.html", help="The file to write; - is standard output.")
    ],
    all_roots: Annotated[
        bool, typer.Option("--all-roots", help="Put the other roots in memory on the page, too, to switch to.")
    ] = False,
    no_audit: Annotated[bool, typer.Option("--no-audit", help="Leave the findings of an audit out.")] = False,
) -> int:
    """Write one page of HTML that needs nothing else: areas, tables, every region and its walk, findings.

    Status 1 when entries of the first root are malformed, tables are not in memory, or lead back to themselves or to
    two levels. What the audit finds is on the page only.
    """
    from fivefold.report.page.view_page import page_of, shown_roots

    with chosen.open_space() as space:
        shown = shown_roots(space, _others(space) if all_roots else [])
        data = page_of(shown, with_audit=not no_audit).encode()
    write_output(output, data, f"{len(data)} bytes")
    for sentence in shown[0].wrong:
        print(f"fivefold: {sentence}", file=sys.stderr)
    return int(shown[0].is_bad)


def _others(space: Space) -> list[tuple[Space, str]]:
    """The other roots of the same mode with what they are for; on stderr how many are left out."""
    from fivefold.survey.guest.root_spaces import root_spaces
    from fivefold.survey.names.root_owners import root_owners

    given = replace(space.given, cr3=None, cr4=None, cpu=None, force=False, levels=space.levels)
    found = root_spaces(space.source, given, space.symbol_file)
    owners = root_owners(space.source, found.roots, space.symbol_file)
    names = {root.root: ", ".join(f"{one.name} ({one.pid})" for one in owners.of(root)[:3]) for root in found.roots}
    labels = {root.root: names[root.root] or root.label or root.reasons[0] for root in found.roots}
    others = [one for one in found.spaces() if one.root.value != space.root.value]
    if (left := len(others) - MAX_OTHERS) > 0:
        print(f"fivefold: {left} more roots are not on the page", file=sys.stderr)
    return [(one, labels[one.root.value]) for one in others[:MAX_OTHERS]]

"""`fivefold vectors`: test vectors for page-table walkers in any language."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from fivefold.cli import values
from fivefold.cli.choices import CaseModeChoice


def vectors(
    out: Annotated[
        Path | None, typer.Option("-o", "--out", metavar="FILE", help="Write to this file. [default: stdout]")
    ] = None,
    count: Annotated[
        int, typer.Option("--count", parser=values.count(1, 1_000_000), metavar="N", help="Write this many vectors.")
    ] = 1000,
    seed: Annotated[int, typer.Option(parser=values.count(), metavar="S", help="Seed of the random half.")] = 1,
    mode: Annotated[CaseModeChoice, typer.Option(help="Paging modes.")] = CaseModeChoice.both,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON Schema of the document instead.")] = False,
) -> int:
    """Write page tables, registers, accesses and what the CPU must do, as JSON of the schema fivefold.vectors/1."""
    from fivefold.conform.cases.case import MODES
    from fivefold.conform.vectors import schema_text, write_vectors

    if schema:
        print(schema_text(), end="")
        return 0
    modes = tuple(MODES) if mode is CaseModeChoice.both else (mode.value,)
    if out is None or str(out) == "-":
        write_vectors(sys.stdout, count, seed, modes)
        return 0
    with out.open("w", encoding="utf-8") as file:
        write_vectors(file, count, seed, modes)
    return 0

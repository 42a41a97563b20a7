"""`fivefold image`: write the bootable image."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from fivefold.cli import values


class FormatChoice(StrEnum):
    """What kind of file."""

    elf = "elf"


class EntryChoice(StrEnum):
    """Where the 32-bit entry of the file leads."""

    pvh = "pvh"
    long48 = "long48"
    long57 = "long57"


def image(
    output: Annotated[Path, typer.Option("--output", "-o", help="The file to write.")],
    format: Annotated[
        FormatChoice, typer.Option(help="ELF with a PVH note: `qemu-system-x86_64 -kernel` starts it.")
    ] = FormatChoice.elf,
    load_address: Annotated[
        int | None,
        typer.Option(parser=values.address, metavar="ADDRESS", help="Where it is to be loaded: a multiple of 2 MiB."),
    ] = None,
    entry: Annotated[
        EntryChoice, typer.Option(help="Decide in 32-bit code, or first turn paging on in that depth.")
    ] = EntryChoice.pvh,
) -> int:
    """Write the bootable image: the same bytes from the same sources."""
    from fivefold.boot import DEFAULT_LOAD_ADDRESS, build_image, write_file

    built = build_image()
    symbol = "pvh_entry" if entry is EntryChoice.pvh else f"stub_{entry.value}"
    data = built.place(DEFAULT_LOAD_ADDRESS if load_address is None else load_address, symbol)
    write_file(output, data)
    print(f"{output}: {format.value}, {len(data)} bytes, {built.size} bytes in memory")
    return 0

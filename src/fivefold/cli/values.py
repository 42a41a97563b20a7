"""Values that options take: sizes and addresses, refused with what was expected."""

from __future__ import annotations

import typer

from fivefold.units import parse_size


def size(text: str) -> int:
    """A size in bytes, such as 512M."""
    try:
        return parse_size(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


def address(text: str) -> int:
    """An address, such as 0x1000000 or 16M."""
    try:
        return parse_size(text)
    except ValueError as error:
        raise typer.BadParameter(f"{text!r} is not an address; expected a number such as 0x1000000 or 16M") from error

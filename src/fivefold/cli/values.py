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


def number(text: str) -> int:
    """A register or address in hexadecimal, or a decimal number without letters."""
    try:
        return int(text.replace("_", ""), 16 if set(text.lower()) & set("abcdef") else 0)
    except ValueError as error:
        raise typer.BadParameter(f"{text!r} is not a number; expected one such as 0xffff888000000000") from error


def seconds(text: str) -> float:
    """A time to wait, up to a day."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 86400:
        raise typer.BadParameter(f"{text!r} is no time to wait; expected seconds, more than 0 and up to 86400")
    return value


def window(text: str) -> range:
    """A range of addresses, such as 0x1000-0x2000, 1M-2G, 0x1000+4K or, to the end, 0xffff800000000000-."""
    start, dash, end = text.partition("-")
    if dash:
        return _checked(text, _end(start), _end(end) if end else 1 << 64)
    start, plus, length = text.partition("+")
    if plus:
        return _checked(text, _end(start), _end(start) + size(length))
    raise typer.BadParameter(f"{text!r} is not a range; expected START-END, START+SIZE or START-, the end exclusive")


def _end(text: str) -> int:
    # No hexadecimal digit is a unit.
    return size(text) if text[-1:].upper() in tuple("KMGTP") else number(text)


def _checked(text: str, start: int, end: int) -> range:
    if not 0 <= start < end <= 1 << 64:
        raise typer.BadParameter(f"{text!r} is no range of 64-bit addresses; expected the start before the end")
    return range(start, end)

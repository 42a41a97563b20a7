"""The man page, in roff, from the same rows as the help of the commands."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import metadata
from typing import Any, Final

from fivefold.cli.examples import EXAMPLES
from fivefold.cli.help_page import description, panels, usage


def man_page(group: Any, commands: Mapping[str, str]) -> str:
    """The page of section 1 for all *commands* (name and line of help) of *group*."""
    return "\n".join(_lines(group, commands)) + "\n"


def _lines(group: Any, commands: Mapping[str, str]) -> Iterator[str]:
    yield f'.TH FIVEFOLD 1 "" "fivefold {metadata.version("fivefold")}" "User Commands"'
    yield from (".SH NAME", r"fivefold \- x86-64 paging with four and five levels, chosen at boot")
    yield from (".SH SYNOPSIS", r".B fivefold", r".I COMMAND", r"[\fIOPTIONS\fR]")
    yield ".SH COMMANDS"
    for name, text in commands.items():
        yield from (".TP", rf".B {_roff(name)}", _roff(text))
    for name in commands:
        yield from _command(name, group.get_command(None, name))
    yield from (".SH NUMBERS", *map(_roff, _NUMBERS))
    yield ".SH EXIT STATUS"
    for status, text in _STATUSES.items():
        yield from (".TP", rf".B {status}", _roff(text))


_NUMBERS: Final = (
    "Addresses and registers are hexadecimal, with or without 0x, or decimal with K, M, G, T or P.",
    "A size needs a unit or 0x. Counts are decimal.",
)
_STATUSES: Final = {
    "0": "All is well.",
    "1": "A check failed, or what was asked for was not found.",
    "2": "It could not be done; one line on standard error says why.",
    "3": "An unexpected error.",
}


def _command(name: str, command: Any) -> Iterator[str]:
    yield rf'.SH "FIVEFOLD {name.upper()}"'
    yield rf"\fBfivefold {_roff(name)}\fR {_roff(usage(command))}"
    for paragraph in description(command):
        yield from (".PP", _roff(paragraph))
    for panel, rows in panels(command).items():
        yield f'.SS "{_roff(panel)}"'
        for row in rows:
            yield from (".TP", rf"\fB{_roff(row.name)}\fR", _roff(row.text))
    if examples := EXAMPLES.get(name):
        yield '.SS "Examples"'
        for line, text in examples:
            yield from (".TP", rf"\fB{_roff(line)}\fR", _roff(text))


def _roff(text: str) -> str:
    """*text* so that nothing in it is a request, and that a minus can be copied."""
    safe = text.replace("\\", r"\e").replace("-", r"\-").replace("…", "...")
    return rf"\&{safe}" if safe.startswith((".", "'")) else safe

"""The console that commands print to: its width and its colours are decided here, once."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterable
from typing import Any, Final, Literal, NoReturn, TextIO

from rich.console import Console
from rich.theme import Theme

Color = Literal["auto", "always", "never"]
LEAST: Final = 40
"""Columns that a report needs; a narrower terminal wraps."""

STYLES: Final = {
    "bad": "bold red",
    "warning": "yellow",
    "good": "green",
    "heading": "bold",
    "quiet": "dim",
    "name": "cyan",
}
"""What is coloured: writable and executable, malformed, refused, failed; what to heed; what is well."""

_color: Color = "auto"


def choose_color(choice: Color) -> None:
    """Have all consoles from now on coloured, not coloured, or as the terminal and NO_COLOR want it."""
    global _color
    _color = choice


def wants_color(out: TextIO) -> bool:
    """Whether *out* is to be coloured: a terminal without NO_COLOR, unless ``--color`` says otherwise."""
    if _color != "auto":
        return _color == "always"
    return not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb" and out.isatty()


def columns_of(out: TextIO) -> int | None:
    """How many columns *out* has: COLUMNS where it is set, those of a terminal; None for a pipe or a file.

    What reads a pipe can cut lines, but cannot put them together again: there they stay whole.
    """
    told = os.environ.get("COLUMNS", "")
    if told.isascii() and told.isdecimal() and int(told) > 0:
        return max(int(told), LEAST)
    try:
        return max(os.get_terminal_size(out.fileno()).columns, LEAST) if out.isatty() else None
    except (OSError, ValueError):
        return None


class ReportConsole(Console):
    """Rich's, but a reader that goes away, such as `head`, is told to the caller and ends nothing."""

    def on_broken_pipe(self) -> NoReturn:
        """Raise `BrokenPipeError` where rich would end the program with status 1."""
        raise BrokenPipeError


def report_console(out: TextIO | None = None, *, width: int | None = None, piped: int = 160) -> ReportConsole:
    """The console for a report to *out*, by default standard output; *piped* is its width where that has none."""
    out = out or sys.stdout
    color = wants_color(out)
    return ReportConsole(
        file=out,
        width=width or columns_of(out) or piped,
        highlight=False,
        force_terminal=color,
        no_color=not color,
        color_system="standard" if color else None,
        theme=Theme(STYLES),
    )


def rendered(parts: Iterable[Any]) -> str:
    """*parts* as text for standard output, 80 columns wide where that is no terminal."""
    text = io.StringIO()
    color = wants_color(sys.stdout)
    console = ReportConsole(
        file=text,
        width=columns_of(sys.stdout) or 80,
        highlight=False,
        force_terminal=color,
        no_color=not color,
        color_system="standard" if color else None,
    )
    for part in parts:
        console.print(part, markup=False)
    lines = [line.rstrip() for line in text.getvalue().splitlines()]
    return "\n".join(lines) + "\n"

"""Rich's console for reports with tables; its width and its colours are those of `fivefold.report.sheet`."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterable
from typing import Any, NoReturn, TextIO

from rich.console import Console

from fivefold.report.sheet import columns_of, wants_color


class ReportConsole(Console):
    """Rich's, but a reader that goes away, such as `head`, is reported to the caller and ends nothing."""

    def on_broken_pipe(self) -> NoReturn:
        """Raise `BrokenPipeError` where rich would end the program with status 1."""
        raise BrokenPipeError


def report_console(
    out: TextIO | None = None, *, piped: int, to: TextIO | None = None, folds: bool = False
) -> ReportConsole:
    """A console as wide and coloured as *out*, which is *piped* columns wide where it has none; it prints *to* that.

    Lines that are wider than *piped* stay whole, unless it *folds* them.
    """
    out = out or sys.stdout
    color = wants_color(out)
    return ReportConsole(
        file=to or out,
        width=columns_of(out) or piped,
        soft_wrap=columns_of(out) is None and not folds,
        highlight=False,
        force_terminal=color,
        no_color=not color,
        color_system="standard" if color else None,
    )


def rendered(parts: Iterable[Any]) -> str:
    """*parts* as text for standard output, 80 columns wide where that is no terminal."""
    text = io.StringIO()
    console = report_console(piped=80, to=text, folds=True)
    for part in parts:
        console.print(part, markup=False)
    lines = [line.rstrip() for line in text.getvalue().splitlines()]
    return "\n".join(lines) + "\n"

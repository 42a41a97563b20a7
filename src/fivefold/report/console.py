"""The console that commands print to."""

from __future__ import annotations

from typing import NoReturn

from rich.console import Console


class ReportConsole(Console):
    """Rich's, but a reader that goes away, such as `head`, is told to the caller and ends nothing."""

    def on_broken_pipe(self) -> NoReturn:
        """Raise `BrokenPipeError` where rich would end the program with status 1."""
        raise BrokenPipeError

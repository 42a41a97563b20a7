"""Rich's console for reports with tables; its width and its colours are those of `fivefold.report.sheet`."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Iterable, Iterator
from typing import Any, Final, NoReturn, TextIO, cast

from rich.console import Console
from rich.segment import Segment

from fivefold.errors import UNSEEN, escape
from fivefold.report.sheet import columns_of, lead_of, wants_color

_CONTROLS: Final = re.compile(f"[\x00-\x08\x0b-\x1f{UNSEEN}]")


class _Marked:
    """The stream *out*; what begins a colour is written as *out* lets it pass."""

    def __init__(self, out: TextIO, lead: str) -> None:
        self._out, self._lead = out, lead

    def write(self, text: str) -> int:
        """Write *text*, all escapes of which are colours of ours."""
        return self._out.write(text.replace("\x1b", self._lead))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._out, name)


class ReportConsole(Console):
    """Rich's, but control characters in what it prints are spelled.

    A reader that goes away, such as `head`, is reported to the caller and ends nothing.
    """

    def render(self, *words: Any, **options: Any) -> Iterator[Segment]:
        """Rich's segments, each without controls of its own; colours are added later."""
        for segment in super().render(*words, **options):
            if segment.control or not _CONTROLS.search(segment.text):
                yield segment
            else:
                yield Segment(_CONTROLS.sub(escape, segment.text), segment.style)

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
        file=cast(TextIO, _Marked(to or out, lead_of(out))),
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

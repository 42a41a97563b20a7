"""Where text reports are written: lines that fit the terminal, and colours for what matters.

Width and colours are decided here, for rich's console as well (`fivefold.report.console`). Nothing of rich is
loaded for a report without colours.
"""

from __future__ import annotations

import os
import re
import sys
from functools import cache
from typing import Final, Literal, Protocol, TextIO

Color = Literal["auto", "always", "never"]
LEAST: Final = 40
"""Columns that a report needs; a narrower terminal wraps."""

UNKNOWN: Final = 80
"""Columns of a terminal that does not know its size and says 0, as over a serial line."""

STYLES: Final = {
    "bad": "bold red",
    "warning": "yellow",
    "good": "green",
    "heading": "bold",
    "quiet": "dim",
}
"""What is coloured: writable and executable, malformed, refused, failed; what to heed; what is well."""

MARK: Final = f"<{os.urandom(8).hex()}>"
"""What a colour of ours begins with on its way to a stream that spells all others: a guest cannot know it."""

_ESCAPES: Final = re.compile(f"((?:\x1b|{MARK})\\[[0-9;]*m)")
_NAMED: Final = re.compile(r"\S+(?: \S+)?  +")
_WORDS: Final = re.compile(r"( *)([^ ]+)(?=((?: [^ ]+){0,30}))")
"""Blanks, a word, and what follows it in the same column, as far as that could matter."""
_HANG: Final = 4

_color: Color = "auto"


class Writable(Protocol):
    """What a report is written to: a file, or a `Sheet`."""

    def write(self, text: str, /) -> object:
        """Write *text*."""
        ...


def choose_color(choice: Color) -> None:
    """Have all reports from now on coloured, not coloured, or as the terminal and NO_COLOR want it."""
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
        return max(os.get_terminal_size(out.fileno()).columns or UNKNOWN, LEAST) if out.isatty() else None
    except (OSError, ValueError):
        return None


class Sheet:
    """Folds lines between words where they are wider than *width* (None: never); `paint` colours where that is wanted.

    Every line has to be ended: an open one is not written.
    """

    def __init__(self, out: TextIO, width: int | None = None, *, color: bool = False) -> None:
        self._out = out
        self.width = width
        self.color = color
        self.lead = lead_of(out)
        self._open = ""

    def write(self, text: str, /) -> int:
        """Write the lines in *text*."""
        *lines, self._open = (self._open + text).split("\n")
        for line in lines:
            self._out.write(fold(line, self.width) + "\n")
        return len(text)


def sheet(out: TextIO | None = None) -> Sheet:
    """The sheet for *out*, by default standard output, as wide and coloured as that is."""
    out = out or sys.stdout
    return Sheet(out, columns_of(out), color=wants_color(out))


def width_of(out: Writable) -> int | None:
    """How wide lines to *out* may be; None where that does not matter."""
    return out.width if isinstance(out, Sheet) else None


def paint(out: Writable, text: str, style: str) -> str:
    """*text* in one of `STYLES` (or in none), where *out* is coloured."""
    if not text or not style or not isinstance(out, Sheet) or not out.color:
        return text
    before, after = (part.replace("\x1b", out.lead) for part in _escapes(style))
    return f"{before}{text}{after}"


def lead_of(out: object) -> str:
    """What colours begin with that are written to *out*: `MARK` where it spells all others."""
    return MARK if getattr(out, "understands_mark", False) else "\x1b"


@cache
def _escapes(style: str) -> tuple[str, str]:
    from rich.color import ColorSystem
    from rich.style import Style

    before, _, after = Style.parse(STYLES[style]).render("|", color_system=ColorSystem.STANDARD).partition("|")
    return before, after


def fold(line: str, width: int | None) -> str:
    """*line*, broken between words so that no part is wider than *width*; later parts are indented."""
    if width is None or _length(line) <= width:
        return line
    line = _less_indented(line, width)
    hang = " " * _hang(line, width)
    lines, last = [], ""
    for gap, word, column in _WORDS.findall(line):
        taken = _length(last) + len(gap)
        # What stands in a column of its own goes below as a whole, not after its first word.
        whole = len(gap) > 1 and taken > width // 2
        if last.strip() and taken + _length(word + column * whole) > width:
            lines.append(last)
            last, gap = hang, ""
        last += gap + word
        while _length(last) > width:  # one word that is wider than that
            first, rest = _cut(last, _joint(last, len(hang), width))
            lines.append(first)
            last = hang + rest
    return "\n".join([*lines, last])


def _less_indented(line: str, width: int) -> str:
    """*line* with no more than three tenths of *width* before its first word."""
    own = len(line) - len(line.lstrip())
    return " " * min(own, 3 * width // 10) + line.lstrip()


def _hang(line: str, width: int) -> int:
    """How far the later parts are indented: below the value where the line names one, else a little more than it is."""
    line = _ESCAPES.sub("", line)
    if (named := _NAMED.match(line)) and len(named[0]) <= width // 3:
        return len(named[0])
    return len(line) - len(line.lstrip()) + _HANG


def _joint(text: str, start: int, width: int) -> int:
    """Where to cut a word that is too wide: behind the last dash or slash that fits, else at *width*."""
    if _ESCAPES.search(text):
        return width
    return max(text.rfind(mark, start + 1, width) for mark in "-/") + 1 or width


def _cut(text: str, width: int) -> tuple[str, str]:
    """*text* in two, the first part *width* columns wide; no colour is cut in two."""
    at = seen = 0
    for number, part in enumerate(_ESCAPES.split(text)):
        if number % 2 == 0:
            if seen + len(part) >= width:
                return text[: at + width - seen], text[at + width - seen :]
            seen += len(part)
        at += len(part)
    return text, ""


def _length(text: str) -> int:
    return len(_ESCAPES.sub("", text))

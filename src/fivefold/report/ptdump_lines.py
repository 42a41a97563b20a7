"""The kernel's own ``page_tables`` files, line for line, from pieces of an address space.

What Linux 6.1 does with each entry that it meets (*arch/x86/mm/dump_pagetables.c*): a line ends
where protection, effective protection, level or heading change, though not all of these
bits are printed. One heading at most is printed for an entry that is met, even if it is past two of
them. Of the ESPfix stacks sixteen lines are printed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from fivefold.arch import Flag, Level
from fivefold.errors import FivefoldError
from fivefold.layout import Marker
from fivefold.survey.ptdump_walk import Piece, TableWalk
from fivefold.units import MASK64

SPACE_END: Final = 1 << 64
ESPFIX_LINES: Final = 16
"""Lines that are printed of an area that is known to be long."""
CUT_SHORT: Final = {"ESPfix Area": ESPFIX_LINES}

MAX_PIECES: Final = 1 << 24
"""No kernel's tables unfold into so many; forged ones do."""

_FOLDED_NAMES: Final = ("pte", "pmd", "pud", "pgd")
_NAMES: Final = ("pte", "pmd", "pud", "p4d", "pgd")


Write = Callable[[str], object]


class Lines:
    """What the kernel remembers between entries: makes lines of pieces, and writes each without its newline.

    *markers* are the headings, ascending. `take` raises `FivefoldError` above *limit* pieces.
    """

    def __init__(self, markers: Sequence[Marker], levels: int, write: Write, limit: int | None = MAX_PIECES) -> None:
        self._markers = markers
        self._names = _FOLDED_NAMES if levels == 4 else _NAMES
        self._write = write
        self._heading = 0
        self._due = self._next_heading()
        self._start = 0
        self._now: tuple[int, int, Level] | None = None
        self._lines = 0
        self._last_left = 0
        self._pieces = 0
        self._limit = limit

    def take(self, piece: Piece) -> None:
        """Write the lines that end with the entries of *piece*."""
        start, end, level, prot, allowed, _, left = piece
        like = (prot, self._last_left if allowed is None else allowed, level)
        if left is not None:
            self._last_left = left
        if self._now is None:
            self._write(f"---[ {self._markers[0].text} ]---")
            self._now = like
        elif like != self._now or start >= self._due:
            self._flush(start, like)
        if self._due < end:
            self._headings_inside(piece, like)
        self._pieces += 1
        if self._limit is not None and self._pieces > self._limit:
            raise FivefoldError(f"more than {self._limit} runs of entries; the tables may be forged: --all goes on")

    def finish(self) -> None:
        """Write the last line. The kernel ends it by an entry at address 0 of no level."""
        if self._now is not None:
            self._write(self._line(0))

    def _headings_inside(self, piece: Piece, like: tuple[int, int, Level]) -> None:
        """A heading is noticed at the first entry that starts at it or later, one for each entry."""
        at = piece.start + piece.step
        while self._due < piece.end:
            at = max(at, piece.start + -(-(self._due - piece.start) // piece.step) * piece.step)
            if at >= piece.end:
                return
            self._flush(at, like)
            at += piece.step

    def _next_heading(self) -> int:
        """Where the next heading is due; past everything after the last."""
        following = self._heading + 1
        return self._markers[following].start if following < len(self._markers) else SPACE_END

    def _flush(self, at: int, like: tuple[int, int, Level]) -> None:
        """End the line at *at*, with the heading that is due there, and begin another for *like*."""
        limit = CUT_SHORT.get(self._markers[self._heading].text)
        if limit is None or self._lines < limit:
            self._write(self._line(at))
        self._lines += 1
        if at >= self._due:
            if limit is not None and self._lines > limit:
                skipped = self._lines - limit
                self._write(f"... {skipped} entr{'y' if skipped == 1 else 'ies'} skipped ... ")
            self._heading += 1
            self._due = self._next_heading()
            self._lines = 0
            self._write(f"---[ {self._markers[self._heading].text} ]---")
        self._start, self._now = at, like

    def _line(self, end: int) -> str:
        prot, _, level = self._now or (0, 0, Level.PT)
        size, unit = end - self._start & MASK64, 0
        while size & 1023 == 0 and unit < 6:
            size, unit = size >> 10, unit + 1
        size_text = f"{size:9d}{'BKMGTPE'[unit]}"
        return f"0x{self._start:016x}-0x{end:016x}   {size_text} {_flags(prot, level)}{self._names[level - 1]}"


def write_ptdump(walk: TableWalk, markers: Sequence[Marker], write: Write, *, limit: int | None = MAX_PIECES) -> None:
    """Write the dump of what *walk* goes through, line by line; `FivefoldError` above *limit* runs of entries."""
    lines = Lines(markers, int(walk.top), write, limit)
    walk.each(lines.take)
    lines.finish()


def _flags(prot: int, level: Level) -> str:
    if not prot & int(Flag.P):
        return " " * 30
    return "".join(
        (
            "USR " if prot & int(Flag.US) else "    ",
            "RW " if prot & int(Flag.RW) else "ro ",
            "PWT " if prot & int(Flag.PWT) else "    ",
            "PCD " if prot & int(Flag.PCD) else "    ",
            "PSE " if prot & int(Flag.BIT7) and level > Level.PT else "    ",
            "PAT " if prot & int(Flag.BIT7) and level == Level.PT else "    ",
            "GLB " if prot & int(Flag.G) else "    ",
            "NX " if prot & int(Flag.NX) else "x  ",
        )
    )

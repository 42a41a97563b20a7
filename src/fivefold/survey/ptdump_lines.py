"""The kernel's own ``page_tables`` files, line for line, from pieces of an address space.

What Linux 6.1 does with each entry that it meets (*arch/x86/mm/dump_pagetables.c*): a line ends
where protection, effective protection, level or heading change, though not all of these
bits are printed. One heading at most is printed for an entry that is met, even if it is past two of
them. Of the ESPfix stacks sixteen lines are printed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from fivefold.arch import Flag, Level, TooManyRuns
from fivefold.layout import Marker
from fivefold.survey.ptdump_walk import Piece
from fivefold.units import MASK64, PhysAddr

SPACE_END: Final = 1 << 64
ESPFIX_LINES: Final = 16
"""Lines that are printed of an area that is known to be long."""
CUT_SHORT: Final = {"ESPfix Area": ESPFIX_LINES}

MAX_PIECES: Final = 1 << 24
"""No kernel's tables unfold into so many; forged ones do."""

_FOLDED_NAMES: Final = ("pte", "pmd", "pud", "pgd")
_NAMES: Final = ("pte", "pmd", "pud", "p4d", "pgd")


class _State:
    """What the kernel remembers between entries; turns pieces into lines."""

    def __init__(self, markers: Sequence[Marker], folded: bool) -> None:
        self.markers = markers
        self.heading = 0
        self.names = _FOLDED_NAMES if folded else _NAMES
        self.start = 0
        self.now: tuple[int, int, Level] | None = None
        self.lines = 0
        self.last_left = 0

    def take(self, piece: Piece) -> Iterator[str]:
        """The lines that end with the entries of *piece*."""
        effective = self.last_left if piece.effective is None else piece.effective
        if piece.left is not None:
            self.last_left = piece.left
        like = (piece.prot, effective, piece.level)
        if self.now is None:
            self.now = like
            yield f"---[ {self.markers[0].text} ]---"
        elif like != self.now or piece.start >= self.next_heading():
            yield from self.flush(piece.start, like)
        yield from self._headings_inside(piece, like)

    def _headings_inside(self, piece: Piece, like: tuple[int, int, Level]) -> Iterator[str]:
        """A heading is noticed at the first entry that starts at it or later, one for each entry."""
        at = piece.start + piece.step
        while self.next_heading() < piece.end:
            late = -(-(self.next_heading() - piece.start) // piece.step) * piece.step + piece.start
            at = max(at, late)
            if at >= piece.end:
                return
            yield from self.flush(at, like)
            at += piece.step

    def next_heading(self) -> int:
        """Where the next heading is due; past everything after the last."""
        following = self.heading + 1
        return self.markers[following].start if following < len(self.markers) else SPACE_END

    def flush(self, at: int, like: tuple[int, int, Level] | None) -> Iterator[str]:
        """End the line at *at*, with the heading that is due there, and begin another for *like*."""
        limit = CUT_SHORT.get(self.markers[self.heading].text)
        if limit is None or self.lines < limit:
            yield self._line(at)
        self.lines += 1
        if at >= self.next_heading():
            if limit is not None and self.lines > limit:
                skipped = self.lines - limit
                yield f"... {skipped} entr{'y' if skipped == 1 else 'ies'} skipped ... "
            self.heading += 1
            self.lines = 0
            yield f"---[ {self.markers[self.heading].text} ]---"
        self.start, self.now = at, like

    def _line(self, end: int) -> str:
        prot, _, level = self.now or (0, 0, Level.PT)
        size, unit = end - self.start & MASK64, 0
        while size & 1023 == 0 and unit < 6:
            size, unit = size >> 10, unit + 1
        size_text = f"{size:9d}{'BKMGTPE'[unit]}"
        return f"0x{self.start:016x}-0x{end:016x}   {size_text} {_flags(prot, level)}{self.names[level - 1]}"


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


def lines(pieces: Iterable[Piece], markers: Sequence[Marker], levels: int) -> Iterator[str]:
    """The lines of the dump without their newlines; *markers* are its headings, ascending.

    `TooManyRuns` above `MAX_PIECES`.
    """
    state = _State(markers, folded=levels == 4)
    for number, piece in enumerate(pieces):
        if number == MAX_PIECES:
            raise TooManyRuns(PhysAddr(0), MAX_PIECES)
        yield from state.take(piece)
    if state.now is not None:
        # The kernel ends the last line by an entry at address 0 of no level.
        yield state._line(0)

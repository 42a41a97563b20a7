"""Runs of physical addresses that lie somewhere in a file, made free of overlaps."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Final, NamedTuple

from fivefold.memory.base import Extent

MAX_SPANS: Final = 1 << 18
"""More runs than this are refused: no real dump has them, and each costs memory here."""


class Span(NamedTuple):
    """Bytes *start* to *end* (exclusive) are found from *offset* on in the thing behind."""

    start: int
    end: int
    offset: int


def without_overlap(spans: Sequence[Span]) -> list[Span]:
    """The same bytes, each once, ascending; where *spans* overlap the first of them wins.

    A sweep over the ends with a heap of what is open: time grows with
    n log n whatever the input says.
    """
    order = sorted((i for i, span in enumerate(spans) if span.end > span.start), key=lambda i: spans[i].start)
    edges = sorted({edge for i in order for edge in spans[i][:2]})
    open_spans: list[int] = []
    pieces: list[Span] = []
    upcoming = 0
    for low, high in pairwise(edges):
        while upcoming < len(order) and spans[order[upcoming]].start <= low:
            heapq.heappush(open_spans, order[upcoming])
            upcoming += 1
        while open_spans and spans[open_spans[0]].end <= low:
            heapq.heappop(open_spans)
        if open_spans:
            best = spans[open_spans[0]]
            _append(pieces, Span(low, high, best.offset + low - best.start))
    return pieces


def _append(pieces: list[Span], piece: Span) -> None:
    if pieces:
        last = pieces[-1]
        if last.end == piece.start and last.offset + last.end - last.start == piece.offset:
            pieces[-1] = last._replace(end=piece.end)
            return
    pieces.append(piece)


def extents_of(runs: Iterable[tuple[int, int]]) -> list[Extent]:
    """Join ascending runs (start, end) that touch.

    >>> extents_of([(0x1000, 0x2000), (0x2000, 0x3000), (0x8000, 0x9000)])
    [Extent(start=4096, end=12288), Extent(start=32768, end=36864)]
    """
    joined: list[Extent] = []
    for start, end in runs:
        if joined and joined[-1].end == start:
            joined[-1] = Extent(joined[-1].start, end)
        else:
            joined.append(Extent(start, end))
    return joined

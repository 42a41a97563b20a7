"""Overlaps go, the first span wins, and no byte is lost."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fivefold.memory.spans import Span, extents_of, without_overlap

spans = st.lists(
    st.builds(lambda start, size, offset: Span(start, start + size, offset), *[st.integers(0, 60)] * 3), max_size=12
)


@given(spans)
def test_each_byte_comes_from_the_first_span_that_has_it(given_spans: list[Span]) -> None:
    want: dict[int, int] = {}
    for span in given_spans:
        for at in range(span.start, span.end):
            want.setdefault(at, span.offset + at - span.start)
    pieces = without_overlap(given_spans)
    got = {at: piece.offset + at - piece.start for piece in pieces for at in range(piece.start, piece.end)}

    assert got == want
    assert sum(piece.end - piece.start for piece in pieces) == len(want)
    assert pieces == sorted(pieces)


def test_pieces_that_run_on_are_joined() -> None:
    assert without_overlap([Span(0x1000, 0x2000, 0), Span(0x2000, 0x3000, 0x1000)]) == [Span(0x1000, 0x3000, 0)]
    assert extents_of([(1, 1), (1, 4), (6, 8)]) == [(1, 4), (6, 8)]

"""Physical memory that lies in a file: what raw images, ELF cores and LiME files come down to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from fivefold.memory.banked import Bank, BankedMemory
from fivefold.memory.base import Extent
from fivefold.memory.files import MAX_RUNS, FileBytes
from fivefold.memory.spans import Span, extents_of


def file_memory(file: FileBytes, pieces: Sequence[Span]) -> BankedMemory:
    """*pieces* of *file*, ascending and apart, as memory that is not copied; closing it closes *file*."""
    banks = [Bank(piece.start, file.view(piece.offset, piece.end - piece.start)) for piece in pieces]

    def written() -> list[Extent]:
        return extents_of(_written(file, pieces))

    return BankedMemory(banks, file.name, on_close=file.close, check=file.check_alive, written=written)


def _written(file: FileBytes, pieces: Sequence[Span]) -> Iterator[tuple[int, int]]:
    left = MAX_RUNS
    for piece in pieces:
        for low, high in file.written(piece.offset, piece.offset + piece.end - piece.start, left):
            # For all pieces together: they may lie at the same place of the file.
            left = max(left - 1, 0)
            yield piece.start + low - piece.offset, piece.start + high - piece.offset

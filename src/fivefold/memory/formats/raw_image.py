"""Raw images: physical memory byte for byte, with a map where it has holes."""

from __future__ import annotations

from itertools import pairwise
from typing import Final

from fivefold.errors import FormatError
from fivefold.memory.file_memory import file_memory
from fivefold.memory.files import FileBytes
from fivefold.memory.source import Source
from fivefold.memory.spans import MAX_SPANS, Span
from fivefold.units import MASK64, parse_address

NO_MAP: Final = "no header was recognised: taken as raw memory from physical 0, without holes"
"""The note of an image that is read as it lies, since no map was given."""


def parse_ram_map(text: str) -> list[Span]:
    """Read ``START-END[=OFFSET],…``: physical ranges, end exclusive, and where they are in the file.

    Without an offset a range lies at its own address. Numbers as `parse_address` takes them. Ascending
    order is not needed, overlap is refused. Raises `ValueError` that says which item is wrong.

    >>> parse_ram_map("0-0xa0000,4G-6G=2G")[1]
    Span(start=4294967296, end=6442450944, offset=2147483648)
    """
    items = text.split(",")
    if len(items) > MAX_SPANS:
        raise ValueError(f"RAM map has {len(items)} ranges, at most {MAX_SPANS} are taken")
    spans = sorted(_parse_range(item.strip()) for item in items)
    for low, high in pairwise(spans):
        if high.start < low.end:
            raise ValueError(f"RAM map ranges overlap at {high.start:#x}")
    return spans


def _parse_range(item: str) -> Span:
    bounds, equals, offset = item.partition("=")
    start, dash, end = bounds.partition("-")
    if not dash:
        raise ValueError(f"{item[:60]!r} is not a range; expected START-END or START-END=OFFSET, such as 4G-6G=2G")
    first, last = parse_address(start), parse_address(end)
    if not first < last <= MASK64 + 1:
        raise ValueError(f"range {item[:60]!r} is empty or too large; expected START below END, END up to 2^64")
    return Span(first, last, parse_address(offset) if equals else first)


def read_raw(file: FileBytes, ram_map: str | None = None) -> Source:
    """*file* as physical memory from 0 up, or where *ram_map* says; takes over *file*.

    `FormatError` where the map points past the file's end.
    """
    if ram_map is None:
        spans = [Span(0, file.size, 0)]
        notes: tuple[str, ...] = (NO_MAP,)
    else:
        spans, notes = parse_ram_map(ram_map), ()
    for span in spans:
        if span.offset + span.end - span.start > file.size:
            raise FormatError(
                f"{file.name}: RAM map puts {span.start:#x}-{span.end:#x} at file offset {span.offset:#x}, "
                f"the file ends at {file.size:#x}"
            )
    memory = file_memory(file, spans)
    return Source(memory=memory, format="raw image", notes=notes)

"""The header by which GRUB knows the image, read as the specification says; and a loader that follows it."""

from __future__ import annotations

import struct

import pytest

from fivefold.boot import DEFAULT_LOAD_ADDRESS, Image
from fivefold.boot.multiboot2 import HEADER_SIZE, WITHIN
from fivefold.machine.elf import load_segments
from fivefold.units import GIB, MIB

MAGIC = 0xE852_50D6


def found(data: bytes) -> int | None:
    """Offset of the header in a file, None without one."""
    for at in range(0, min(len(data), WITHIN) - 16, 8):
        if sum(words := struct.unpack_from("<4I", data, at)) & 0xFFFF_FFFF == 0 and words[0] == MAGIC:
            return at
    return None


def tags_of(data: bytes) -> dict[int, tuple[int, ...]]:
    """The tags of a file's header by type: the 32-bit words of each."""
    at = found(data)
    assert at is not None
    architecture, size = struct.unpack_from("<II", data, at + 4)
    assert (architecture, size % 8, size <= HEADER_SIZE) == (0, 0, True)
    end, at = at + size, at + 16
    tags = {}
    while at < end:
        kind, flags, size = struct.unpack_from("<HHI", data, at)
        assert (flags, kind not in tags) == (0, True)
        tags[kind] = struct.unpack_from(f"<{size // 4 - 2}I", data, at + 8)
        at += size + -size % 8
    assert (at, tags.popitem()) == (end, (0, ()))
    return tags


@pytest.mark.parametrize("load", [2 * MIB, DEFAULT_LOAD_ADDRESS, 3 * GIB], ids=hex)
def test_tags(image: Image, load: int) -> None:
    tags = tags_of(image.place(load))
    assert tags.keys() == {1, 2, 3, 6, 10}
    assert tags[1] == (6,), "a memory map is wanted"
    assert tags[3] == (image.physical("multiboot2_entry", load),)
    assert tags[10] == (load, 0xFFFF_FFFF, 2 * MIB, 1), "anywhere from there on, low rather than high"


@pytest.mark.parametrize("load", [2 * MIB, 3 * GIB], ids=hex)
def test_a_loader_that_follows_the_address_tag_loads_what_the_segments_say(image: Image, load: int) -> None:
    data = image.place(load)
    header, start, data_end, end = tags_of(data)[2]
    offset = found(data)
    assert offset is not None and start <= header
    raw = data[offset - (header - start) :][: data_end - start].ljust(end - start, b"\0")
    segments = load_segments(data)
    assert (start, end) == (segments[0].start, segments[-1].end)
    for segment in segments:
        assert raw[segment.start - start : segment.end - start].startswith(segment.data)


@pytest.mark.parametrize("load", [4 * GIB, 5 * GIB], ids=hex)
def test_no_header_above_4_gib(image: Image, load: int) -> None:
    """No loader that starts in 32 bits can put it there; it is not invited to put it elsewhere."""
    assert found(image.place(load)) is None
    assert found(image.place(load - 3 * GIB)) is not None

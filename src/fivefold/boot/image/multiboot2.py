"""The header by which a multiboot2 loader, such as GRUB, knows the image: where it goes, and where it is entered.

It lies in the image's first bytes. Its address tag has the loader take the file as it is, since GRUB looks for the
entry of an ELF file among virtual addresses, and ours is physical. The image runs at any multiple of 2 MiB below
4 GiB, so a loader may choose. Source: Multiboot2 Specification 2.0, "OS image format".
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from fivefold.units import MIB

MAGIC: Final = 0xE852_50D6
I386: Final = 0
"""Protected mode of i386, the one way to be entered."""
WITHIN: Final = 32768
"""Bytes from the start of the file in which the header must lie."""
HEADER_SIZE: Final = 128
"""What the image has room for."""
_HIGHEST: Final = (1 << 32) - 1
_ALIGNMENT: Final = 2 * MIB
_LOWEST_THAT_FITS: Final = 1
_END, _REQUEST, _ADDRESS, _ENTRY, _MODULE_ALIGNMENT, _RELOCATABLE = 0, 1, 2, 3, 6, 10
_MEMORY_MAP: Final = 6


class ImageExtent(NamedTuple):
    """Physical addresses: of the header, of the image's start, of the end of the file's bytes, and of its memory."""

    header: int
    start: int
    data_end: int
    end: int


def multiboot2_header(at: ImageExtent, entry: int) -> bytes:
    """The header for an image that likes to be at ``at.start`` and is entered at *entry*; zeros if it cannot be.

    That is so above 4 GiB, where no loader that starts in 32 bits can put it.
    """
    if at.end > _HIGHEST:
        return bytes(HEADER_SIZE)
    tags = b"".join(
        (
            _tag(_REQUEST, _MEMORY_MAP),
            _tag(_ADDRESS, *at),
            _tag(_ENTRY, entry),
            _tag(_MODULE_ALIGNMENT),
            _tag(_RELOCATABLE, at.start, _HIGHEST, _ALIGNMENT, _LOWEST_THAT_FITS),
            _tag(_END),
        )
    )
    size = 16 + len(tags)
    head = struct.pack("<4I", MAGIC, I386, size, -(MAGIC + I386 + size) & _HIGHEST)
    return (head + tags).ljust(HEADER_SIZE, b"\0")


def _tag(kind: int, *words: int) -> bytes:
    """A tag that the loader must know, padded to 8 bytes."""
    data = struct.pack(f"<HHI{len(words)}I", kind, 0, 8 + 4 * len(words), *words)
    return data + bytes(-len(data) % 8)

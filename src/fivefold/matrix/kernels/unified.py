"""The kernel in a unified kernel image: an EFI program with a section ``.linux``.

Source: *UAPI Group Specifications*, UKI; PE format, "Section MatrixTable".
"""

from __future__ import annotations

import struct

_MOST_SECTIONS = 96


def linux_section(data: bytes) -> bytes | None:
    """The bytes of the section ``.linux``, or None."""
    if len(data) < 0x40:
        return None
    (head,) = struct.unpack_from("<I", data, 0x3C)
    if data[head : head + 4] != b"PE\0\0" or head + 24 > len(data):
        return None
    count, optional = struct.unpack_from("<H", data, head + 6)[0], struct.unpack_from("<H", data, head + 20)[0]
    for number in range(min(count, _MOST_SECTIONS)):
        at = head + 24 + optional + 40 * number
        row = data[at : at + 40]
        if len(row) == 40 and row[:8].rstrip(b"\0") == b".linux":
            virtual, _, size, offset = struct.unpack_from("<IIII", row, 8)
            return data[offset : offset + min(size, virtual or size)]
    return None

"""The functions of a kernel by its file: for a machine whose page tables do not lead to its kernel's own names.

A kernel's image lies in physical memory as it was linked, at a multiple of 2 MiB, long before it runs at its own
addresses; and the code that unpacks it lies there as it stands in the bzImage.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from fivefold.errors import FivefoldError, MemoryReadError
from fivefold.matrix.kernels.kernel_file import KernelFile, kernel_of
from fivefold.memory import SourceMemory
from fivefold.survey.names.image_bytes import ImagePiece
from fivefold.survey.names.kallsyms import find_kallsyms
from fivefold.symbols import Symbols
from fivefold.units import GIB, MIB, PhysAddr

_ALIGNED: Final = 2 * MIB
_HEAD: Final = 256
_LIKE: Final = 0.9
"""Relocation changes some bytes of the image's head and leaves the most of it."""
_WINDOW: Final = range(0xFFFF_FFFF_8000_0000, 0xFFFF_FFFF_C000_0000)
_SETUP_SECTORS_AT: Final = 0x1F1


@dataclass
class FileSymbols:
    """What a kernel's file says of its functions. *first* is the lowest address that it was linked for."""

    symbols: Symbols
    first: int
    size: int
    head: bytes = field(repr=False)
    unpacker: bytes = field(repr=False)

    def name(self, offset: int) -> str | None:
        """The function at *offset* from the image's beginning."""
        found = self.symbols.symbol_at(self.first + offset)
        return found.name if found is not None else None

    def loaded_at(self, memory: SourceMemory) -> Iterator[int]:
        """Physical addresses below 4 GiB where the image begins."""
        for extent in memory.extents:
            start = -(-extent.start // _ALIGNED) * _ALIGNED
            for pa in range(start, min(extent.end, 4 * GIB), _ALIGNED):
                try:
                    there = memory.read(PhysAddr(pa), _HEAD)
                except MemoryReadError:
                    continue
                if sum(map(int.__eq__, there, self.head)) >= _LIKE * len(self.head):
                    yield pa

    def in_unpacker(self, code: bytes) -> bool:
        """Whether *code*, some bytes as they stand in memory, is of what unpacks the kernel."""
        return bool(code.strip(b"\0")) and code in self.unpacker


def file_symbols(data: bytes) -> FileSymbols | None:
    """Of a bzImage or a vmlinux; None where it cannot be unpacked, or has no names in it."""
    try:
        kernel = kernel_of("kernel", data)
        pieces = list(_pieces(kernel.vmlinux))
    except (FivefoldError, ValueError, struct.error):
        return None
    found = find_kallsyms(pieces)
    if found is None:
        return None
    first = min(piece.start for piece in pieces)
    size = max(piece.start + len(piece.data) for piece in pieces) - first
    head = next(bytes(piece.data[:_HEAD]) for piece in pieces if piece.start == first)
    return FileSymbols(Symbols((found.span,), "the kernel's file"), first, size, head, _unpacker(kernel))


def _pieces(elf: bytes) -> Iterator[ImagePiece]:
    """What the ELF file loads into the window of a kernel's image. Source: gABI, "Program Header"."""
    at, size, count = struct.unpack_from("<Q", elf, 32)[0], *struct.unpack_from("<HH", elf, 54)
    for number in range(count):
        kind, _, offset, va, _, length = struct.unpack_from("<IIQQQQ", elf, at + number * size)
        if kind == 1 and va in _WINDOW and length:
            yield ImagePiece(va, bytearray(elf[offset : offset + length]))


def _unpacker(kernel: KernelFile) -> bytes:
    """All of a bzImage but the real-mode code and the payload."""
    if kernel.kind != "bzImage":
        return b""
    start = 512 * ((kernel.data[_SETUP_SECTORS_AT] or 4) + 1)
    at, size = struct.unpack_from("<II", kernel.data, 0x248)
    return kernel.data[start : start + at] + kernel.data[start + at + size :]

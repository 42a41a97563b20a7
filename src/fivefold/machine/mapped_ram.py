"""Guest RAM as pages of this process: costs nothing until it is touched."""

from __future__ import annotations

import ctypes
import mmap
from bisect import bisect_right
from contextlib import suppress
from typing import Final

from fivefold.errors import MachineError, MemoryReadError
from fivefold.memory import Extent
from fivefold.units import PhysAddr, format_size

# Python names this flag since 3.13; the number is that of every Linux but alpha, mips and parisc.
_NO_RESERVE: Final = getattr(mmap, "MAP_NORESERVE", 0x4000)


class MappedRam:
    """Physical memory in one mapping per extent, with holes that raise `MemoryReadError`."""

    def __init__(self, parts: list[tuple[Extent, mmap.mmap, int]], name: str) -> None:
        """*parts*: (extent, mapping, offset of the extent's first byte in it), ascending."""
        self.name = name
        self._parts = parts
        self._starts = [extent.start for extent, _, _ in parts]

    @classmethod
    def anonymous(cls, extents: list[Extent], name: str) -> MappedRam:
        """Zeroed memory for *extents* (ascending, whole pages), of this process alone."""
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NO_RESERVE
        parts: list[tuple[Extent, mmap.mmap, int]] = []
        for extent in extents:
            size = extent.end - extent.start
            try:
                parts.append((extent, mmap.mmap(-1, size, flags=flags), 0))
            except (OSError, OverflowError) as error:
                raise MachineError(f"this host cannot reserve {format_size(size)} of guest memory") from error
        return cls(parts, name)

    @property
    def extents(self) -> list[Extent]:
        """What exists, ascending."""
        return [extent for extent, _, _ in self._parts]

    def read(self, pa: PhysAddr, size: int, /) -> bytes:
        data, offset = self._find(pa, size)
        return data[offset : offset + size]

    def write(self, pa: PhysAddr, data: bytes, /) -> None:
        target, offset = self._find(pa, len(data))
        target[offset : offset + len(data)] = data

    def fill(self, byte: int) -> None:
        """Set every byte. Touches all of the memory: for small guests."""
        for extent, data, offset in self._parts:
            size = extent.end - extent.start
            data[offset : offset + size] = bytes([byte]) * size

    def pointers(self) -> list[tuple[Extent, int]]:
        """(extent, address of its first byte in this process); valid until `close`."""
        return [
            (extent, ctypes.addressof(ctypes.c_char.from_buffer(data, offset))) for extent, data, offset in self._parts
        ]

    def close(self) -> None:
        """Give the pages back. No code may use pointers to them any more."""
        for data in {id(data): data for _, data, _ in self._parts}.values():
            data.close()
        self._parts, self._starts = [], []

    def _find(self, pa: int, size: int) -> tuple[mmap.mmap, int]:
        index = bisect_right(self._starts, pa) - 1
        if index >= 0 and size >= 0:
            extent, data, offset = self._parts[index]
            if pa + size <= extent.end:
                return data, offset + pa - extent.start
        raise MemoryReadError(pa, size, self.name)


class Bus:
    """RAM as a processor sees it: where nothing answers reads give ones, and writes are lost."""

    def __init__(self, ram: MappedRam) -> None:
        self._ram = ram

    def read(self, pa: PhysAddr, size: int, /) -> bytes:
        try:
            return self._ram.read(pa, size)
        except MemoryReadError:
            return b"\xff" * size

    def write(self, pa: PhysAddr, data: bytes, /) -> None:
        with suppress(MemoryReadError):
            self._ram.write(pa, data)

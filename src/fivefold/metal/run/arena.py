"""The native memory of plain code: regions at made-up addresses, bounds-checked.

An access that is not wholly inside one region raises `MemoryReadError`, where
machine code would fault or read what lies beside.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import Any, Final, Protocol

from fivefold.errors import MemoryReadError
from fivefold.memory.base import PhysMemory
from fivefold.units import PhysAddr, hex64

FIRST_ADDRESS: Final = 0x5000_0000_0000
"""Where the arena starts to place regions: canonical in both modes, and far from 0."""

_GAP: Final = 1 << 16
"""Nothing lies this near behind a region, so that an overrun is caught."""


class NativeBytes(Protocol):
    """Some bytes of native memory; offsets count from its start."""

    def read(self, offset: int, size: int) -> bytes:
        """Return *size* bytes; the arena has checked that they are inside."""
        ...

    def write(self, offset: int, data: bytes) -> None:
        """Store *data*; the arena has checked that it fits."""
        ...

    def release(self) -> None:
        """Let go of what the region holds."""
        ...


class BufferRegion:
    """A Python buffer; it cannot be resized or closed while it is mapped."""

    def __init__(self, data: Any) -> None:
        self._view = memoryview(data).cast("B")
        self.size = len(self._view)

    def read(self, offset: int, size: int) -> bytes:
        """Return bytes of the buffer."""
        return bytes(self._view[offset : offset + size])

    def write(self, offset: int, data: bytes) -> None:
        """Store into the buffer; `TypeError` where it is read-only."""
        self._view[offset : offset + len(data)] = data

    def release(self) -> None:
        """Give the buffer back to its owner."""
        self._view.release()


class PhysicalRegion:
    """Physical memory of any kind, from *base*; its holes raise `MemoryReadError` themselves."""

    def __init__(self, memory: PhysMemory, base: int) -> None:
        self._memory = memory
        self._base = base

    def read(self, offset: int, size: int) -> bytes:
        """Read at the physical address."""
        return self._memory.read(PhysAddr(self._base + offset), size)

    def write(self, offset: int, data: bytes) -> None:
        """Write at the physical address."""
        self._memory.write(PhysAddr(self._base + offset), data)

    def release(self) -> None:
        """Nothing is held."""


class Arena:
    """An address space of regions that do not overlap."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._regions: list[tuple[int, NativeBytes]] = []
        self._next = FIRST_ADDRESS

    def add(self, region: NativeBytes, size: int, at: int | None = None, align: int = 4096) -> int:
        """Place *region* at *at*, or at an address of the arena's choice; return the address.

        Raises `ValueError` if it would overlap another one.
        """
        start = self._place(size, align) if at is None else at
        index = bisect_right(self._starts, start)
        before = index > 0 and self._regions[index - 1][0] > start
        after = index < len(self._starts) and self._starts[index] < start + size
        if before or after or start + size > 1 << 64:
            raise ValueError(f"cannot map {size} bytes at {hex64(start)}: the place is taken")
        self._starts.insert(index, start)
        self._regions.insert(index, (start + size, region))
        return start

    def _place(self, size: int, align: int) -> int:
        start = (self._next + align - 1) & ~(align - 1)
        self._next = start + size + _GAP
        return start

    def remove(self, start: int) -> None:
        """Take the region that starts at *start* away; `ValueError` if there is none."""
        index = bisect_right(self._starts, start) - 1
        if index < 0 or self._starts[index] != start:
            raise ValueError(f"nothing is mapped at {hex64(start)}")
        del self._starts[index]
        self._regions.pop(index)[1].release()

    def read(self, addr: int, size: int) -> bytes:
        """Return *size* bytes at *addr*."""
        region, offset = self._find(addr, size)
        return region.read(offset, size)

    def write(self, addr: int, data: bytes) -> None:
        """Store *data* at *addr*."""
        region, offset = self._find(addr, len(data))
        region.write(offset, data)

    def check(self, addr: int, size: int) -> None:
        """Raise `MemoryReadError` unless all of *size* bytes at *addr* are in one region."""
        self._find(addr, size)

    def _find(self, addr: int, size: int) -> tuple[NativeBytes, int]:
        index = bisect_right(self._starts, addr) - 1
        if index >= 0:
            end, region = self._regions[index]
            if addr + size <= end:
                return region, addr - self._starts[index]
        raise MemoryReadError(addr, size, "native memory")

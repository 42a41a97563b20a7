"""The protocol of physical memory: one method to read, one more to write.

A hole raises `MemoryReadError`; it never reads as zeros. `Ram` is shipped code
and the only test double.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from fivefold.errors import MemoryReadError
from fivefold.units import PhysAddr, hex64


class PhysReader(Protocol):
    """Physical memory that can be read."""

    def read(self, pa: PhysAddr, size: int, /) -> bytes:
        """Return exactly *size* bytes, or raise `MemoryReadError`."""
        ...


class PhysMemory(PhysReader, Protocol):
    """Physical memory that can also be written."""

    def write(self, pa: PhysAddr, data: bytes, /) -> None:
        """Write all of *data*, or raise `MemoryReadError` having written nothing."""
        ...


class Extent(NamedTuple):
    """A run of physical memory that exists: *start* inclusive, *end* exclusive."""

    start: int
    end: int


@dataclass(frozen=True, slots=True)
class _Bank:
    start: int
    data: bytearray


class Ram:
    """Physical memory held in this process, in one bank or in several with holes.

    >>> ram = Ram.of_size(0x2000)
    >>> ram.write(PhysAddr(0x1ff8), b"12345678"); ram.read(PhysAddr(0x1ffe), 2)
    b'78'
    """

    def __init__(self, extents: list[Extent], name: str = "ram") -> None:
        """Zeroed memory for *extents*, which may come in any order but not overlap."""
        self.name = name
        self.extents = sorted(extents)
        for low, high in zip(self.extents, self.extents[1:], strict=False):
            if high.start < low.end:
                raise ValueError(f"extents overlap at {hex64(high.start)}")
        self._banks = [_Bank(e.start, bytearray(e.end - e.start)) for e in self.extents]
        self._starts = [bank.start for bank in self._banks]

    @classmethod
    def of_size(cls, size: int, start: int = 0, name: str = "ram") -> Ram:
        """One bank of *size* bytes from *start*."""
        return cls([Extent(start, start + size)], name)

    def read(self, pa: PhysAddr, size: int, /) -> bytes:
        bank, offset = self._find(pa, size)
        return bytes(bank.data[offset : offset + size])

    def write(self, pa: PhysAddr, data: bytes, /) -> None:
        bank, offset = self._find(pa, len(data))
        bank.data[offset : offset + len(data)] = data

    def banks(self) -> list[tuple[int, bytearray]]:
        """The storage itself, ascending: (physical start, bytes), for native code and engines."""
        return [(bank.start, bank.data) for bank in self._banks]

    def _find(self, pa: int, size: int) -> tuple[_Bank, int]:
        index = bisect_right(self._starts, pa) - 1
        if index >= 0:
            bank = self._banks[index]
            if pa + size <= bank.start + len(bank.data):
                return bank, pa - bank.start
        raise MemoryReadError(pa, size, self.name)

"""A kernel's memory by virtual addresses, read through its own tables."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final

from fivefold.arch import AddressSpace, Mapped, translate
from fivefold.errors import FormatError, MemoryReadError, printable
from fivefold.units import MASK64, PAGE, PhysAddr, VirtAddr, hex64

_PAGES_KEPT: Final = 1 << 14


class KernelMemory:
    """Reads what *tables* map. `MemoryReadError` where nothing is mapped, or the page is not in memory."""

    def __init__(self, tables: AddressSpace, name: str) -> None:
        """*name* is for messages."""
        self.tables = tables
        self.name = name
        self._pages: dict[int, bytes] = {}

    def phys(self, va: int) -> PhysAddr:
        """Where *va* leads."""
        found = translate(self.tables, VirtAddr(va & MASK64))
        if not isinstance(found, Mapped):
            raise MemoryReadError(va & MASK64, 1, f"{self.name}: virtual memory")
        return found.pa

    def read(self, va: int, size: int) -> bytes:
        """Exactly *size* bytes from *va* on."""
        parts, at, end = [], va, va + size
        while at < end:
            page = at & ~(PAGE - 1)
            parts.append(self._page(page)[at - page : min(end - page, PAGE)])
            at = page + PAGE
        return b"".join(parts)

    def word(self, va: int) -> int:
        """The 8 bytes at *va*, as a number."""
        (value,) = struct.unpack("<Q", self.read(va, 8))
        return int(value)

    def half(self, va: int) -> int:
        """The 4 bytes at *va*, as a number."""
        (value,) = struct.unpack("<I", self.read(va, 4))
        return int(value)

    def text(self, va: int, size: int) -> str:
        """Text of at most *size* bytes, up to its NUL, controls spelled; nothing behind that is read, but its page."""
        found, at, end = b"", va, va + size
        while at < end and b"\0" not in found:
            part = min(end, (at | PAGE - 1) + 1) - at
            found += self.read(at, part)
            at += part
        return printable(found.partition(b"\0")[0].decode("utf-8", "backslashreplace"))

    def ring(self, head: int, most: int) -> Iterator[int]:
        """The members of the kernel's list (`list_head`) at *head*, in its order.

        `FormatError` where it comes upon one of them once more, or has more than *most*.
        """
        seen: set[int] = set()
        at = self.word(head)
        while at != head:
            if at in seen or len(seen) == most:
                raise FormatError(
                    f"the list at {hex64(head)} leads to {hex64(at)} after {len(seen)} members; expected its head"
                )
            seen.add(at)
            yield at
            at = self.word(at)

    def _page(self, page: int) -> bytes:
        if page not in self._pages:
            if len(self._pages) == _PAGES_KEPT:
                self._pages.clear()
            self._pages[page] = self.tables.memory.read(self.phys(page), PAGE)
        return self._pages[page]

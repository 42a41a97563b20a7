"""What the page in a browser asks: a log explained, an address walked in both modes. Plain values go in and out.

It runs under Pyodide, where there is no numpy and nothing native: an import contract keeps it so.
"""

from __future__ import annotations

import io
from typing import Any, Final

from fivefold.arch import LA48, LA57, AddressSpace, Cpu, Entry, Flag, Frames, Level, PagingMode, map_page, walk
from fivefold.errors import FivefoldError, MemoryReadError
from fivefold.explain import explain
from fivefold.layout import area_of, linux_areas
from fivefold.report.page.entry_bits import all_fields, decoding_rules
from fivefold.report.text.explain import explanation_lines
from fivefold.units import MASK64, PhysAddr, VirtAddr, hex64, parse_address

ROOT: Final = PhysAddr(0x1000)
_TABLES: Final = 8
_PAGE: Final = PhysAddr(0x20_0000)


def explain_log(text: str, width: int = 100) -> dict[str, Any]:
    """The report on a log, line by line, and the schema ``fivefold.explain/1``; or ``error``, one line."""
    try:
        found = explain(io.BytesIO(text.encode("utf-8", "surrogateescape")))
    except (FivefoldError, ValueError) as error:
        return {"error": str(error)}
    return {"lines": list(explanation_lines(found, width=width)), "explanation": found.to_json()}


def walk_address(text: str, release: str = "6.1") -> dict[str, Any]:
    """*text* as an address, taken apart and walked with four and with five levels; or ``error``, one line.

    The tables are made for it: one page of 4 KiB is mapped there, as a kernel would map its own data or a process'.
    """
    try:
        va = VirtAddr(parse_address(text))
        if va > MASK64:  # the end of all memory is a number, too
            raise ValueError(f"{text!r} does not fit in 64 bits")
        return {"address": hex64(va), "modes": [_walked(va, mode, release) for mode in (LA48, LA57)]}
    except (FivefoldError, ValueError) as error:
        return {"error": str(error)}


def entry_rules() -> dict[str, Any]:
    """What a script needs to decode entries: their fields, and what this CPU reserves."""
    return {"fields": all_fields(), "cpu": decoding_rules(Cpu(), True, ignores_read_only=False)}


class _Memory:
    """A little memory for the tables of one example."""

    def __init__(self) -> None:
        self._bytes = bytearray(ROOT + 4096 * _TABLES)

    def read(self, pa: PhysAddr, size: int) -> bytes:
        if pa + size > len(self._bytes):
            raise MemoryReadError(pa, size, "the example")
        return bytes(self._bytes[pa : pa + size])

    def write(self, pa: PhysAddr, data: bytes) -> None:
        self._bytes[pa : pa + len(data)] = data


def _walked(va: VirtAddr, mode: PagingMode, release: str) -> dict[str, Any]:
    levels = int(mode.top)
    area = area_of(linux_areas(release, levels), va)
    told = {
        "mode": mode.name,
        "levels": levels,
        "canonical": mode.is_canonical(va),
        "area": None if area is None else area.name,
        "area_size": None if area is None else hex64(area.size),
    }
    return {**told, "steps": _steps(va, mode) if told["canonical"] else []}


def _steps(va: VirtAddr, mode: PagingMode) -> list[dict[str, Any]]:
    memory = _Memory()
    frames = Frames(memory, ROOT, _TABLES)
    space = AddressSpace(memory, frames.take(), mode, Cpu())
    flags = int(Flag.P | Flag.RW | Flag.A | Flag.D | Flag.NX) | (0 if va >> 63 else int(Flag.US))
    map_page(memory, space, VirtAddr(va & ~0xFFF), Entry(_PAGE | flags, Level.PT), frames)
    return [
        {"level": int(step.entry.level), "at": hex64(step.at), "entry": hex64(step.entry.raw)}
        for step in walk(space, va)
    ]

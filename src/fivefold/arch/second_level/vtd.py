"""Intel VT-d's second-stage tables: EPT's form, with rights for reads and writes only.

Source: Intel Virtualization Technology for Directed I/O, "Second-Stage Translation", "Second-Stage Paging Entries".
"""

from __future__ import annotations

from typing import NamedTuple

from fivefold.arch.cpu import Cpu
from fivefold.arch.entry import FRAME_BITS
from fivefold.arch.modes import Level
from fivefold.arch.walk import TableReader
from fivefold.units import PhysAddr, hex64

READ, WRITE, LARGE = 1 << 0, 1 << 1, 1 << 7


class VtdResult(NamedTuple):
    """The host's address, or None and why; *rights* over the path, *entries* as they were read."""

    hpa: PhysAddr | None
    rights: int
    entries: tuple[int, ...]
    reason: str = ""


def vtd_walk(
    memory: TableReader, root: int, levels: int, address: int, access: int = READ, cpu: Cpu | None = None
) -> VtdResult:
    """Translate a device's *address* by the second-stage table of *levels* (3 to 5) at *root*.

    `ValueError` for another number of levels; `MemoryReadError` where a table cannot be read.
    """
    cpu = cpu or Cpu()
    if not 3 <= levels <= 5:
        raise ValueError(f"a second-stage table of {levels} levels; expected 3 to 5")
    if address >> (12 + 9 * levels):
        return VtdResult(None, 0, (), f"{hex64(address)} is beyond {12 + 9 * levels} bits")
    table, rights, entries = root & FRAME_BITS, READ | WRITE, []
    for number in range(levels, 0, -1):
        level = Level(number)
        raw = int.from_bytes(memory.read(PhysAddr(table + 8 * level.index(address)), 8), "little")
        entries.append(raw)
        rights &= raw
        if not raw & (READ | WRITE):
            return VtdResult(None, 0, tuple(entries), f"{level.name} entry not present")
        large = level > Level.PT and bool(raw & LARGE)
        reserved = raw & FRAME_BITS & ~((1 << cpu.width) - 1) | (raw & LARGE if level > Level.PDPT else 0)
        if large and level <= Level.PDPT:
            reserved |= raw & FRAME_BITS & (level.span - 1)
        if reserved:
            return VtdResult(None, 0, tuple(entries), f"{level.name} entry has reserved bits {hex64(reserved)}")
        if level is Level.PT or large:
            if access & ~rights:
                return VtdResult(None, rights, tuple(entries), "rights do not allow it")
            return VtdResult(
                PhysAddr(raw & cpu.frame_mask(level.span) | address & (level.span - 1)), rights, tuple(entries)
            )
        table = raw & cpu.frame_mask(4096)
    raise AssertionError("a walk ends at its last level")

"""The entries that a kernel printed with its report, as a memory that holds these and nothing else."""

from __future__ import annotations

from dataclasses import dataclass, replace

from fivefold.arch import Entry, Level, slot_of
from fivefold.errors import MemoryReadError
from fivefold.explain.logs.trace import PrintedEntry, RaisedException
from fivefold.explain.rules.situation import UNKNOWN_ROOT, Situation
from fivefold.units import PhysAddr, VirtAddr


@dataclass(frozen=True, slots=True)
class PrintedMemory:
    """A few entries by their place; everything else is not there."""

    entries: dict[PhysAddr, int]

    def read(self, pa: PhysAddr, size: int, /) -> bytes:
        """One entry, or `MemoryReadError`."""
        if size != 8 or pa not in self.entries:
            raise MemoryReadError(pa, size, "the printed entries")
        return self.entries[pa].to_bytes(8, "little")


def with_printed_entries(here: Situation, raised: RaisedException, va: int) -> Situation:
    """*here* with the printed entries for a memory, where there is no better one and the number of levels is known.

    CR3 need not be known: only the place of the first entry follows from it.
    """
    mode = here.mode
    values = [] if mode is None else _values(raised.entries, len(mode.levels))
    if mode is None or not values or here.memory is not None or not mode.is_canonical(va):
        return here
    cr3 = here.registers.cr3
    table = UNKNOWN_ROOT if cr3 is None else cr3 & ~0xFFF & (1 << 52) - 1
    printed = PrintedMemory({})
    for level, value in zip(mode.levels, values, strict=False):
        printed.entries[slot_of(PhysAddr(table), level, VirtAddr(va))] = value
        table = here.cpu.frame(Entry(value, Level(level)))
    state = replace(here.state, cr3=UNKNOWN_ROOT) if cr3 is None else here.state
    return replace(here, memory=printed, state=state, has_unknown_root=cr3 is None)


def _values(entries: tuple[PrintedEntry, ...], levels: int) -> list[int]:
    """The values from the root down. With four levels the PGD and a P4D after it are one entry."""
    named = list(entries)
    if levels == 4 and len(named) > 1 and (named[0].name, named[1].name) == ("PGD", "P4D"):
        if named[0].value != named[1].value:
            return []
        del named[0]
    if levels == 5 and len(named) > 1 and named[1].name == "PUD":
        return []
    return [entry.value for entry in named] if named and named[0].name in ("PGD", "P4D") else []

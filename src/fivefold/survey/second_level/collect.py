"""Read all of a second-level table: its pages as ordinary tables, and what it maps, as runs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import repeat
from typing import Any, Final

import numpy as np

from fivefold.arch import FRAME_BITS, TABLE_SIZE, Cpu, Level, TableReader
from fivefold.arch.second_level.ept import Eptp
from fivefold.errors import FormatError, MemoryReadError
from fivefold.units import PhysAddr, hex64

Words = np.ndarray[Any, np.dtype[np.uint64]]
MOST_TABLES: Final = 1 << 18
"""More are not read: such tables would map half a TiB in 4 KiB pages, or are shared without end."""
_P, _RW, _US, _A, _D, _PS, _NX = 1, 2, 4, 1 << 5, 1 << 6, 1 << 7, 1 << 63


class SecondLevelKind(StrEnum):
    """Whose format the tables have."""

    ept = "ept"
    npt = "npt"
    vtd = "vtd"


@dataclass(frozen=True, slots=True)
class SecondLevelRoot:
    """A pointer as the hardware has it, and how many levels of tables it leads to."""

    kind: SecondLevelKind
    raw: int
    levels: int

    @property
    def root(self) -> PhysAddr:
        """Where the top table lies."""
        return PhysAddr(self.raw & FRAME_BITS)

    @property
    def option(self) -> str:
        """What a command takes for it."""
        return f"--{self.kind.value} {self.raw:#x}" + ("" if self.kind is SecondLevelKind.ept else f":{self.levels}")


@dataclass
class Collected:
    """Every table by its address, as ordinary entries, and every page: guest's address, host's address, size."""

    tables: dict[int, Words] = field(default_factory=dict)
    pages: list[tuple[int, int, int]] = field(default_factory=list)
    missing: int = 0
    """Tables that are not in memory; what they map is left out."""
    above_accessed: bool = False
    """An entry that leads to a table has bit 5 set: A of an ordinary entry, reserved in EPT."""
    other_leaves: int = 0
    """Leaves that EPT would have neither as write-back nor as uncached memory."""
    write_back_leaves: int = 0
    """Leaves whose bits 5 to 3 are 6: write-back memory in EPT."""


def ept_root(raw: int, cpu: Cpu | None = None) -> SecondLevelRoot:
    """The root that an EPT pointer names. `FormatError` where VM entry would refuse it."""
    pointer = Eptp(raw)
    if problem := pointer.problem(cpu or Cpu()):
        raise FormatError(f"--ept {raw:#x} is no EPT pointer: {problem}")
    return SecondLevelRoot(SecondLevelKind.ept, raw, pointer.levels)


def collect(memory: TableReader, root: SecondLevelRoot, sample: int | None = None) -> Collected:
    """Read the tables of *root*, or a *sample* of them; `FormatError` where there are more than `MOST_TABLES`."""
    found, visits = Collected(), 0
    work = [(int(root.root), Level(root.levels), 0)]
    while work:
        table, level, base = work.pop()
        try:
            raw = np.frombuffer(memory.read(PhysAddr(table), TABLE_SIZE), "<u8")
        except MemoryReadError:
            if table == root.root:
                raise
            found.missing += 1
            continue
        if visits == sample:
            break
        visits += 1
        if visits > MOST_TABLES:
            raise FormatError(f"{root.option}: more than {MOST_TABLES} tables; these are no second-level tables")
        present, leaf = _shape(root.kind, raw, level)
        found.tables[table] = _as_ordinary(root.kind, raw, level, present, leaf)
        below = np.flatnonzero(present & ~leaf)
        found.above_accessed |= bool(np.any(raw[below] & np.uint64(_A)))
        types = raw[leaf] >> np.uint64(3) & np.uint64(7)
        found.write_back_leaves += int(np.count_nonzero(types == 6))
        found.other_leaves += int(np.count_nonzero((types != 6) & (types != 0)))
        span = level.span
        frames = (raw[leaf] & np.uint64(FRAME_BITS & ~(span - 1))).tolist()
        found.pages += zip((np.flatnonzero(leaf) * span + base).tolist(), frames, repeat(span), strict=False)
        work += [(int(raw[i]) & FRAME_BITS, Level(level - 1), base + i * span) for i in below.tolist()]
    return found


def _shape(kind: SecondLevelKind, raw: Words, level: Level) -> tuple[Any, Any]:
    """Which entries are present, and which of them are leaves."""
    rights = {SecondLevelKind.ept: 7, SecondLevelKind.npt: 1, SecondLevelKind.vtd: 3}[kind]
    present = (raw & np.uint64(rights)) != 0
    if level is Level.PT:
        return present, present
    large = (raw & np.uint64(_PS)) != 0
    return present, present & large if level <= Level.PDPT else np.zeros_like(present)


def _as_ordinary(kind: SecondLevelKind, raw: Words, level: Level, present: Any, leaf: Any) -> Words:
    """The entries as an ordinary table has them: R/W, XD, A, D, and U/S set, as every guest access is a user's."""
    if kind is SecondLevelKind.npt:
        return raw.copy()
    out = raw & np.uint64(FRAME_BITS) | np.uint64(_P | _US)
    out |= raw & np.uint64(_RW)
    if kind is SecondLevelKind.ept:
        out |= np.where(raw & np.uint64(4), np.uint64(0), np.uint64(_NX))
        out |= (raw >> np.uint64(8) & np.uint64(1)) << np.uint64(5)
        out |= np.where(leaf, (raw >> np.uint64(9) & np.uint64(1)) << np.uint64(6), np.uint64(0))
    else:
        out |= np.uint64(_NX)  # a device fetches nothing
    if level > Level.PT:
        out |= np.where(leaf, np.uint64(_PS), np.uint64(0))
    result: Words = np.where(present, out, np.uint64(0))
    return result


def runs(pages: list[tuple[int, int, int]]) -> Iterator[tuple[int, int, int]]:
    """*pages* by the guest's address, those that go on in both memories as one."""
    start = host = size = 0
    for guest, frame, span in sorted(pages):
        if size and (guest, frame) == (start + size, host + size):
            size += span
            continue
        if size:
            yield start, host, size
        start, host, size = guest, frame, span
    if size:
        yield start, host, size


def kind_seen(found: Collected) -> SecondLevelKind | None:
    """EPT where leaves say write-back and no entry above was accessed; NPT, or ordinary, where one was; else None."""
    if found.above_accessed:
        return SecondLevelKind.npt
    return SecondLevelKind.ept if found.write_back_leaves and not found.other_leaves else None


def wrong_kind(root: SecondLevelRoot, found: Collected) -> str | None:
    """Why the tables are not of the kind of *root*, with the option to give instead; None where nothing says so."""
    seen = kind_seen(found)
    if root.kind is not SecondLevelKind.npt and seen is SecondLevelKind.npt:
        return (
            f"{hex64(root.root)} leads to ordinary tables: entries above the pages have the accessed flag, which is "
            f"reserved there; give --npt {root.root:#x}:{root.levels}, or --cr3 {root.root:#x}"
        )
    if root.kind is SecondLevelKind.npt and seen is SecondLevelKind.ept:
        return ept_instead(root.root, root.levels)
    return None


def ept_instead(root: int, levels: int) -> str:
    """The sentence for EPT tables that were given as ordinary ones."""
    return (
        f"{hex64(root)} leads to EPT tables: their pages have EPT's write-back type and no entry above was accessed; "
        f"give --ept {root | (levels - 1) << 3 | 6:#x}"
    )

"""What a scan of an address space answers with: one row for each range, as a numpy table."""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import IntEnum
from typing import Final

import numpy as np
import numpy.typing as npt

from fivefold.arch import FRAME_BITS, Cpu, Entry, Flag, Level, Rights, Vendor
from fivefold.notebook import SHOWN, html_table
from fivefold.survey.scan.info_word import kind_of, level_of, rights_of
from fivefold.units import MASK64, PhysAddr, hex64

Words = npt.NDArray[np.uint64]
Rows = npt.NDArray[np.void]
Flags = npt.NDArray[np.bool_]

RANGE: Final = np.dtype([(name, "<u8") for name in ("start", "last", "phys", "flags", "info", "jump")])
"""The rows, as the kernel's scan writes them; `last` is inclusive. `ScanResult` takes `info` and `jump` apart."""

DEFAULT_FLAGS: Final = 0x8000_0000_0000_119F
"""P W U PWT PCD, PS or PAT, G, PAT of large leaves, NX: all but A, D, the software bits and the key."""

ALL_FLAGS: Final = MASK64 & ~FRAME_BITS | Flag.BIT12
"""Every bit that is not address."""


class RegionKind(IntEnum):
    """What a range is. An absent entry is no range."""

    MAPPED = 1
    MALFORMED = 2
    """Present entries with reserved bits set; `phys` is what the first holds as its address."""
    UNREADABLE = 3
    """The table at `phys` is not in memory; `level` is that table's."""
    REPEAT = 4
    """The table at `phys`, of this level, was listed before and is mapped again, once or several times in a row."""


class Contiguity(IntEnum):
    """What a scan does where virtual addresses are contiguous and physical ones are not."""

    IGNORE = 0
    NOTE = 1
    BREAK = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class ScanSettings:
    """What is told, what tells ranges apart, and which bits are reserved.

    *flags*: bits of a leaf that are reported, and break a range where they change (effective rights, page size and
    kind always do). *first* and *last*, both inclusive: only what touches them is listed, large leaves whole.
    *repeat_above*: a shared table with more ranges than this is listed once and then as `RegionKind.REPEAT`; None for
    never.
    *reserved*: bits reserved at all levels; *reserved_top*: at PML4 and PML5 as well.
    """

    flags: int = DEFAULT_FLAGS
    contiguity: Contiguity = Contiguity.NOTE
    first: int = 0
    last: int = MASK64
    repeat_above: int | None = None
    reserved: int = 0
    reserved_top: int = int(Flag.BIT7)
    gib_pages: bool = True

    @classmethod
    def for_cpu(
        cls,
        cpu: Cpu,
        nxe: bool = True,
        *,
        flags: int = DEFAULT_FLAGS,
        contiguity: Contiguity = Contiguity.NOTE,
        first: int = 0,
        last: int = MASK64,
        repeat_above: int | None = None,
    ) -> ScanSettings:
        """With the reserved bits of *cpu*; *nxe* is EFER.NXE."""
        return cls(
            flags=flags,
            contiguity=contiguity,
            first=first,
            last=last,
            repeat_above=repeat_above,
            reserved=cpu.must_be_zero(Entry(0, Level.PT), nxe),
            reserved_top=int(Flag.BIT7) | (int(Flag.G) if cpu.vendor is Vendor.AMD else 0),
            gib_pages=cpu.gib_pages,
        )


@dataclass(frozen=True, slots=True)
class ScanCounts:
    """Totals of a scan.

    Bytes count every place that something is mapped at. Entries and tables count once for each walk:
    not again when a shared table was answered from an earlier walk (`replays`).
    """

    mapped_bytes: int
    wx_bytes: int
    """Mapped writable and executable in effect."""
    tables_met: int
    """Distinct tables."""
    tables_walked: int
    """More than `tables_met` where a table is met at several levels or under several rights."""
    replays: int
    malformed_entries: int
    unreadable_tables: int
    cycles: int
    """Entries that point to a table above them."""
    first_cycle: int
    """The address behind the first of them; 0 without any."""
    mixed_levels: int
    """How often a table was met at another level than before."""
    first_mixed: int


COUNT_NAMES: Final = tuple(field.name for field in fields(ScanCounts))


@dataclass(frozen=True, eq=False)
class ScanResult:
    """All ranges of an address space, ascending: *rows* of type `RANGE`, and columns made from them."""

    root: PhysAddr
    levels: int
    settings: ScanSettings
    rows: Rows
    counts: ScanCounts

    @classmethod
    def nothing(cls, root: PhysAddr, levels: int, settings: ScanSettings) -> ScanResult:
        """The result where nothing was to be looked at."""
        return cls(root, levels, settings, np.empty(0, RANGE), ScanCounts(*(0 for _ in COUNT_NAMES)))

    def __len__(self) -> int:
        """How many ranges there are."""
        return len(self.rows)

    def __repr__(self) -> str:
        """Root, levels and totals on one line."""
        found = f"{len(self)} ranges, {self.counts.mapped_bytes:#x} bytes, {self.counts.tables_met} tables"
        return f"<ScanResult root {hex64(self.root)}, {self.levels} levels: {found}>"

    def _repr_html_(self) -> str:
        shown = self.rows[:SHOWN]
        kinds = [RegionKind(kind_of(info)).name.lower() for info in column(shown, "info").tolist()]
        rights = zip(*(part[:SHOWN].tolist() for part in (self.writable, self.user, self.executable)), strict=True)
        columns = [map(hex64, column(shown, name).tolist()) for name in ("start", "last", "phys", "flags")]
        told = [Rights(*one) for one in rights]
        rows = zip(*columns, kinds, self.level[:SHOWN].tolist(), told, strict=True)
        head = ("start", "last", "phys", "flags", "kind", "level", "rights")
        more = f"{len(self) - SHOWN} more ranges are not shown" if len(self) > SHOWN else ""
        return html_table(repr(self).strip("<>"), head, rows, left_out=more)

    @property
    def start(self) -> Words:
        """First addresses, canonical."""
        return column(self.rows, "start")

    @property
    def last(self) -> Words:
        """Last addresses, inclusive."""
        return column(self.rows, "last")

    @property
    def phys(self) -> Words:
        """What the first entry of each range holds as its address."""
        return column(self.rows, "phys")

    @property
    def flags(self) -> Words:
        """Bits of the leaf that are in the settings' mask; for malformed entries the reserved bits, too."""
        return column(self.rows, "flags")

    @property
    def size(self) -> Words:
        """Bytes."""
        return self.last - self.start + np.uint64(1)

    @property
    def kind(self) -> Words:
        """`RegionKind` as a number."""
        return kind_of(column(self.rows, "info"))

    @property
    def level(self) -> Words:
        """Of the leaf, of the malformed entry, or of the table that is missing or repeated; 1 is the PT."""
        return level_of(column(self.rows, "info"))

    @property
    def writable(self) -> Flags:
        """Whether all entries on the path allow writes."""
        return self._right(0)

    @property
    def user(self) -> Flags:
        """Whether all entries on the path allow user mode."""
        return self._right(1)

    @property
    def executable(self) -> Flags:
        """Whether no entry on the path has NX."""
        return self._right(2)

    def _right(self, bit: int) -> Flags:
        found: Flags = rights_of(column(self.rows, "info")) >> np.uint64(bit) & np.uint64(1) != 0
        return found

    @property
    def contiguous(self) -> Flags:
        """Whether it is mapped and physically contiguous throughout. `ValueError` if that was ignored."""
        if self.settings.contiguity is Contiguity.IGNORE:
            raise ValueError("the scan ignored physical contiguity; ask with NOTE or BREAK")
        found: Flags = (column(self.rows, "jump") == 0) & (self.kind == RegionKind.MAPPED)
        return found

    @property
    def repeats(self) -> Words:
        """How often in a row a repeated table is mapped here; 0 for other ranges."""
        span = np.uint64(1) << (np.uint64(12) + np.uint64(9) * self.level)
        return np.where(self.kind == RegionKind.REPEAT, self.size // span, np.uint64(0))


def column(rows: Rows, name: str) -> Words:
    """One column of *rows*."""
    words: Words = rows[name]
    return words


LEAF: Final = np.dtype([("start", "<u8"), ("phys", "<u8"), ("flags", "<u8"), ("level", "<u8")])


def expand_leaves(result: ScanResult) -> Rows:
    """One row of type `LEAF` for each leaf that is mapped; `ValueError` unless the scan broke at physical jumps."""
    if result.settings.contiguity is not Contiguity.BREAK:
        raise ValueError("leaves can be separated only after a scan with Contiguity.BREAK")
    chosen = result.rows[result.kind == RegionKind.MAPPED]
    level = level_of(column(chosen, "info"))
    span = np.uint64(1) << (np.uint64(3) + np.uint64(9) * level)
    counts = ((column(chosen, "last") - column(chosen, "start")) // span + np.uint64(1)).astype(np.int64)
    which = np.repeat(np.arange(len(chosen)), counts)
    nth = (np.arange(len(which)) - np.repeat(np.cumsum(counts) - counts, counts)).astype(np.uint64)
    leaves = np.empty(len(which), LEAF)
    leaves["start"] = column(chosen, "start")[which] + nth * span[which]
    leaves["phys"] = column(chosen, "phys")[which] + nth * span[which]
    leaves["flags"] = column(chosen, "flags")[which]
    leaves["level"] = level[which]
    return leaves

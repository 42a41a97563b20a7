"""A whole address space as runs of equal pages, in address order.

Descending and noting are separate. A table is walked once for each level and each set of
rights that it is reached with, and its runs are reused when it is reached again. Tables are
distinguished by address, never by content. Plain Python: a witness, not a fast dump.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from struct import Struct
from typing import Final, NamedTuple

from fivefold.arch.entry import Entry, Flag
from fivefold.arch.modes import ENTRIES, TABLE_SIZE, Level
from fivefold.arch.walk import AddressSpace, Mapped, Rights, translate
from fivefold.errors import FivefoldError, MemoryReadError
from fivefold.units import PhysAddr, VirtAddr, hex64

ACCESS_HISTORY: Final = int(Flag.A | Flag.D)
"""The bits that the CPU sets by itself; runs do not break on them unless asked."""

_TABLE: Final = Struct("<512Q")
_TOP: Final = 1 << 64


class Content(Enum):
    """What a run is. An absent entry makes no run."""

    MAPPED = "mapped"
    MALFORMED = "reserved bits set"
    UNREADABLE = "table not in memory"


class PageRun(NamedTuple):
    """A run of equal pages: *start* inclusive, *end* exclusive (2**64 for the last).

    *level* is that of the leaf, or of the entry that is malformed or points at the unreadable
    table. *flags* are the leaf's bits that are neither address nor left out; *phys* is where the
    first page lies. For what is not mapped, *rights* are those down to there and *phys* is the
    address in the entry.
    """

    start: VirtAddr
    end: int
    level: Level
    rights: Rights
    flags: int
    phys: PhysAddr
    content: Content = Content.MAPPED

    @property
    def size(self) -> int:
        """Bytes of virtual space."""
        return self.end - self.start

    def __str__(self) -> str:
        """First and last byte, page, rights, place and flags, on one line."""
        ends = f"{hex64(self.start)}-{hex64(self.end - 1)}"
        what = "" if self.content is Content.MAPPED else f" {self.content.value}"
        return f"{ends} {self.level.name:4} {self.rights} {hex64(self.phys)} {self.flags:#x}{what}"


class TooManyRuns(FivefoldError):  # noqa: N818 - named for what happened
    """The tables unfold into more runs than the caller allows: hostile, or not page tables."""

    def __init__(self, root: PhysAddr, limit: int) -> None:
        super().__init__(f"the tables at {hex64(root)} unfold into more than {limit} runs")
        self.root = root
        self.limit = limit


@dataclass(frozen=True, slots=True)
class Scan:
    """How to read a space as runs.

    *contiguous*: a run also breaks where physical addresses do. *ignore*: bits of the leaf that
    do not count. *limit*: how many runs one table, or the whole, may unfold into.
    """

    space: AddressSpace
    contiguous: bool = False
    ignore: int = ACCESS_HISTORY
    limit: int = 1 << 20


def regions(
    space: AddressSpace, window: range | None = None, contiguous: bool = False, ignore: int = ACCESS_HISTORY
) -> Iterator[PageRun]:
    """Yield the runs of *space* that meet *window*, cut to it, in ascending order.

    *window* is a range of canonical addresses, its end exclusive; all of them by default. A
    table that cannot be read is a run of `Content.UNREADABLE`, but the root, which raises
    `MemoryReadError`. `TooManyRuns` above 1,048,576.
    """
    return scan(Scan(space, contiguous, ignore), window)


def scan(how: Scan, window: range | None = None) -> Iterator[PageRun]:
    """`regions`, with every choice in *how*."""
    space = how.space
    window = range(_TOP) if window is None else window
    walker = _Walker(how)
    space.memory.read(space.root, TABLE_SIZE)
    low, high = range(space.mode.gap.start), range(space.mode.gap.stop, _TOP)
    # In the table the halves touch; in the address space they do not, and no run goes on from one to the other.
    for half, shift in ((low, 0), (high, high.start - low.stop)):
        part = _meet(half, window)
        if not part:
            continue
        inside = range(part.start - shift, part.stop - shift)
        for run in walker.runs(space.root, space.mode.top, Rights(), inside):
            moved = run._replace(start=VirtAddr(run.start + shift), end=run.end + shift)
            yield from _cut(space, moved, part)


def distinct_tables(space: AddressSpace) -> dict[Level, frozenset[PhysAddr]]:
    """The tables reachable from the root, by the level they are met at; each is read once.

    Tables that cannot be read are left out; a frame that serves two levels counts at both.
    """
    found: dict[Level, frozenset[PhysAddr]] = {}
    level_tables = {space.root}
    for level in space.mode.levels:
        readable: set[PhysAddr] = set()
        below: set[PhysAddr] = set()
        for table in level_tables:
            entries = _read_table(space, table)
            if entries is not None:
                readable.add(table)
                below.update(_children(space, entries, level))
        found[level] = frozenset(readable)
        level_tables = below
    return found


def _children(space: AddressSpace, entries: tuple[int, ...], level: Level) -> Iterator[PhysAddr]:
    """The tables that the well-formed entries of one table point to."""
    for raw in set(entries):
        entry = Entry(raw, level)
        if entry.is_present and not entry.is_leaf and not space.reserved(entry):
            yield PhysAddr(space.cpu.frame(entry))


def _read_table(space: AddressSpace, table: int) -> tuple[int, ...] | None:
    """The 512 entries at *table*, or None where memory has none."""
    try:
        return _TABLE.unpack(space.memory.read(PhysAddr(table), TABLE_SIZE))
    except MemoryReadError:
        return None


class _Walker:
    """The runs below a table, with addresses counted from the start of what it spans."""

    def __init__(self, how: Scan) -> None:
        self.how = how
        self.space = how.space
        self._known: dict[tuple[int, Level, Rights], list[PageRun] | None] = {}

    def runs(self, table: int, level: Level, rights: Rights, window: range) -> list[PageRun]:
        """The runs of the *level* table at *table* that may meet *window*; empty too where it cannot be read."""
        return self._below(table, level, rights, window) or []

    def _below(self, table: int, level: Level, rights: Rights, window: range) -> list[PageRun] | None:
        if window != range(ENTRIES * level.span):
            # Only a part of the table: what is known of the whole, and the other way round, is of no use.
            entries = _read_table(self.space, table)
            return None if entries is None else self._join(entries, level, rights, window)
        key = (table, level, rights)
        if key not in self._known:
            entries = _read_table(self.space, table)
            self._known[key] = None if entries is None else self._join(entries, level, rights, window)
        return self._known[key]

    def _join(self, entries: tuple[int, ...], level: Level, rights: Rights, window: range) -> list[PageRun]:
        """Join the runs behind each of *entries* that *window* reaches."""
        runs: list[PageRun] = []
        for index in range(window.start >> level.shift, -(-window.stop >> level.shift)):
            if not entries[index] & 1:
                continue
            for run in self._behind(Entry(entries[index], level), index << level.shift, rights, window):
                if runs and self._continues(runs[-1], run):
                    runs[-1] = runs[-1]._replace(end=run.end)
                elif len(runs) == self.how.limit:
                    raise TooManyRuns(self.space.root, self.how.limit)
                else:
                    runs.append(run)
        return runs

    def _behind(self, entry: Entry, start: int, rights: Rights, window: range) -> Iterable[PageRun]:
        """The runs behind one present entry that spans from *start*."""
        level, cpu = entry.level, self.space.cpu
        here = PageRun(VirtAddr(start), start + level.span, level, rights, 0, PhysAddr(cpu.frame(entry)))
        if self.space.reserved(entry):
            return (here._replace(flags=self._flags(entry), content=Content.MALFORMED),)
        below = rights.through(entry)
        if entry.is_leaf:
            return (here._replace(rights=below, flags=self._flags(entry)),)
        part = _meet(range(start, start + level.span), window)
        inside = range(part.start - start, part.stop - start)
        runs = self._below(here.phys, Level(level - 1), below, inside)
        if runs is None:
            return (here._replace(rights=below, content=Content.UNREADABLE),)
        return (run._replace(start=VirtAddr(run.start + start), end=run.end + start) for run in runs)

    def _flags(self, entry: Entry) -> int:
        """The bits of *entry* that count, without its address."""
        return entry.raw & ~self.space.cpu.frame(entry) & ~self.how.ignore

    def _continues(self, run: PageRun, after: PageRun) -> bool:
        """Whether *after* is more of the same."""
        if run.end != after.start or run[2:5] != after[2:5] or run.content is not after.content:
            return False
        return not self.how.contiguous or run.phys + run.size == after.phys


def _meet(one: range, other: range) -> range:
    """The addresses in both; empty if there are none."""
    return range(max(one.start, other.start), min(one.stop, other.stop))


def _cut(space: AddressSpace, run: PageRun, window: range) -> Iterator[PageRun]:
    """*run* within *window*, if any of it is."""
    both = _meet(range(run.start, run.end), window)
    if not both:
        return
    start = VirtAddr(both.start)
    if start != run.start and run.content is Content.MAPPED:
        # Pages inside a run need not follow each other in physical memory: look.
        found = translate(space, start)
        run = run._replace(phys=found.pa if isinstance(found, Mapped) else run.phys)
    yield run._replace(start=start, end=both.stop)

"""From a linear address to a physical one: one loop walks, everything else folds over its steps.

Source: Intel SDM, "4-Level Paging and 5-Level Paging" and "Determination of Access Rights".
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Final, NamedTuple, Protocol

from fivefold.arch.accesses import Access, Kind
from fivefold.arch.cpu import Cpu
from fivefold.arch.entry import FRAME_BITS, Entry, flag_names
from fivefold.arch.modes import TABLE_SIZE, Level, PagingMode
from fivefold.arch.state import ControlState
from fivefold.notebook import html_table
from fivefold.units import MASK64, PhysAddr, VirtAddr, format_size, hex64

_RW: Final = 1 << 1
_US: Final = 1 << 2
_NX: Final = 1 << 63


class TableReader(Protocol):
    """What a walk needs of memory; every source in `fivefold.memory` has it."""

    def read(self, pa: PhysAddr, size: int, /) -> bytes:
        """Return exactly *size* bytes, or raise `MemoryReadError`."""
        ...


class Rights(NamedTuple):
    """What the path so far allows: AND of R/W, AND of U/S, no NX anywhere.

    >>> Rights(write=False).through(Entry(0x03, Level.PT)).write
    False
    """

    write: bool = True
    user: bool = True
    execute: bool = True

    def through(self, entry: Entry) -> Rights:
        """Narrow by one entry. Where EFER.NXE=0, bit 63 is a reserved bit and no right."""
        raw = entry.raw
        return Rights(
            self.write and bool(raw & _RW),
            self.user and bool(raw & _US),
            self.execute and not raw & _NX,
        )

    def __str__(self) -> str:
        """Four letters, a dash for each right that is missing; what is mapped can be read.

        >>> str(Rights(write=True, user=False, execute=True))
        'rwx-'
        """
        return f"r{'w' if self.write else '-'}{'x' if self.execute else '-'}{'u' if self.user else '-'}"


class Step(NamedTuple):
    """One entry the walk read, where it lies, and the rights down to and with it.

    The rights of an entry that is not present or malformed mean nothing.
    """

    at: PhysAddr
    entry: Entry
    rights: Rights

    def __str__(self) -> str:
        """Level, place, value and rights, on one line."""
        return f"{self.entry.level.name:4} {hex64(self.at)}  {hex64(self.entry.raw)}  {self.rights}"


STEP_COLUMNS: Final = ("level", "index", "at", "entry", "what it is", "flags", "so far")
"""What `step_cells` tells of an entry."""


def step_cells(step: Step) -> tuple[object, ...]:
    """One entry for a table that a notebook shows; what is not present has no rights."""
    entry, index = step.entry, (step.at & TABLE_SIZE - 1) // 8
    place = (entry.level.name, index, hex64(step.at), hex64(entry.raw))
    if not entry.is_present:
        return (*place, "empty" if entry.is_zero else "not present", "", "")
    size = entry.level.span if entry.is_leaf else TABLE_SIZE
    what = f"{format_size(size)} page" if entry.is_leaf else "table"
    target = entry.raw & FRAME_BITS & ~(size - 1)
    flags = flag_names(entry.raw & ~(FRAME_BITS & ~(size - 1)), entry.level)
    return (*place, f"{what} {hex64(target)}", " ".join(flags), step.rights)


class Owner(Enum):
    """What beside the page tables may keep an access from a page."""

    SGX = "the enclave page cache map"
    RMP = "the reverse map table"


@dataclass(frozen=True, slots=True)
class Owned:
    """Physical pages that have an owner beside the page tables.

    *epcm*: enclave pages whose entry in the enclave page cache map refuses any access by the code that runs now.
    *rmp*: pages that the reverse map table assigns to a guest, which their host may read but not write.
    Sources: Intel SDM, "Enclave Access Control"; AMD APM volume 2, "RMP and VMPL Access Checks".
    """

    epcm: tuple[range, ...] = ()
    rmp: tuple[range, ...] = ()

    def refuses(self, pa: int, write: bool) -> Owner | None:
        """The owner that keeps an access from the page at *pa*, if one does."""
        if any(pa in part for part in self.epcm):
            return Owner.SGX
        return Owner.RMP if write and any(pa in part for part in self.rmp) else None


@dataclass(frozen=True, slots=True)
class Hlat:
    """Hypervisor-managed linear-address translation: a second root, for addresses that begin with ones.

    *prefix* is how many of the highest bits have to be 1; 0 means every address. Source: Intel SDM,
    "HLAT Paging".
    """

    root: PhysAddr
    prefix: int = 0

    def covers(self, va: VirtAddr) -> bool:
        """Whether *va* is translated from this root first."""
        return va >> (64 - self.prefix) == (1 << self.prefix) - 1


HLAT_RESTART: Final = 1 << 11
"""In a present entry below HLAT's root: start again at CR3's root. Ignored in ordinary paging."""


@dataclass(frozen=True, slots=True)
class AddressSpace:
    """A root table and everything needed to read meaning from it. *nxe* is EFER.NXE."""

    memory: TableReader
    root: PhysAddr
    mode: PagingMode
    cpu: Cpu = field(default_factory=Cpu)
    nxe: bool = True
    hlat: Hlat | None = None
    owned: Owned | None = None

    @classmethod
    def from_state(cls, memory: TableReader, state: ControlState, cpu: Cpu) -> AddressSpace:
        """The space that *state* makes a CPU use. `ValueError` if that is not a long mode."""
        if state.mode is None:
            raise ValueError(f"{state.paging.value}; expected 4-level or 5-level paging")
        return cls(memory, PhysAddr(state.cr3 & cpu.frame_mask(4096)), state.mode, cpu, state.nxe)

    def reserved(self, entry: Entry) -> int:
        """Bits set in *entry* that must be clear here; not zero means malformed."""
        return self.cpu.reserved(entry, self.nxe)

    def refused_by_owner(self, page: Mapped, how: Access) -> Owner | None:
        """The owner beside the tables that keeps *how* from *page*, if one does."""
        return self.owned.refuses(page.pa, how.kind is Kind.WRITE) if self.owned else None

    def entry_at(self, at: PhysAddr, level: Level) -> Entry:
        """The entry stored at *at*, read as one of *level*."""
        return Entry(int.from_bytes(self.memory.read(at, 8), "little"), level)


class Cause(Enum):
    """Why an address or an access is refused."""

    NON_CANONICAL = "non-canonical address"
    NOT_PRESENT = "entry not present"
    RESERVED = "reserved bit set"
    PROTECTION = "rights do not allow it"
    KEY = "protection key does not allow it"
    SEPARATED = "the half of the address space does not allow it"
    OWNER = "the page's owner does not allow it"


@dataclass(frozen=True, slots=True)
class Mapped:
    """The translation of *va*: its byte's address, and the level of the page it lies in.

    *restarted* are entries that HLAT read before it started again at CR3's root.
    """

    va: VirtAddr
    pa: PhysAddr
    page: Level
    steps: tuple[Step, ...]
    restarted: tuple[Step, ...] = ()

    @property
    def leaf(self) -> Entry:
        """The entry that maps the page."""
        return self.steps[-1].entry

    @property
    def rights(self) -> Rights:
        """The rights folded over the whole path."""
        return self.steps[-1].rights

    def _repr_html_(self) -> str:
        return _html(self, self.steps)

    def __str__(self) -> str:
        """The two addresses, the page and the rights, on one line."""
        return f"{hex64(self.va)} -> {hex64(self.pa)} {format_size(self.page.span)} page {self.rights}"


@dataclass(frozen=True, slots=True)
class Unmapped:
    """Why *va* has no translation, and *hole*: every address that the same entry rules out.

    The hole's end is exclusive; for the highest addresses it is 2**64. *hlat*: it is HLAT's entry.
    """

    va: VirtAddr
    cause: Cause
    hole: range
    steps: tuple[Step, ...]
    hlat: bool = False
    restarted: tuple[Step, ...] = ()

    def _repr_html_(self) -> str:
        return _html(self, self.steps)

    def __str__(self) -> str:
        """The address, the cause and the hole, its last byte included, on one line."""
        at = f" at {self.steps[-1].entry.level.name}" if self.steps else ""
        hole = f"{hex64(self.hole.start)}-{hex64(self.hole.stop - 1)}"
        return f"{hex64(self.va)}: {self.cause.value}{at}, nothing in {hole}"


Translation = Mapped | Unmapped


def _html(answer: Translation, steps: tuple[Step, ...]) -> str:
    rows = [step_cells(step) for step in steps]
    return html_table(str(answer), STEP_COLUMNS, rows)


def slot_of(table: int, level: Level, va: int) -> PhysAddr:
    """Where *va*'s entry lies in the *level* table at *table*."""
    return PhysAddr(table + 8 * level.index(va))


def walk(space: AddressSpace, va: VirtAddr, root: PhysAddr | None = None) -> Iterator[Step]:
    """Yield each entry the CPU would read for *va*, from *root* down, by default the space's.

    Ends after the leaf, or after the entry that stops the translation: not present, or with a
    reserved bit set. *va* is taken as canonical. `MemoryReadError` where a table cannot be read.
    """
    table, rights = int(space.root if root is None else root), Rights()
    for level in space.mode.levels:
        at = slot_of(table, level, va)
        entry = space.entry_at(at, level)
        rights = rights.through(entry)
        yield Step(at, entry, rights)
        if not entry.is_present or space.reserved(entry) or entry.is_leaf:
            return
        table = space.cpu.frame(entry)


def span_of(va: int, level: Level) -> range:
    """The addresses behind the entry of *level* that *va* takes; the end is exclusive."""
    first = va & MASK64 & ~(level.span - 1)
    return range(first, first + level.span)


def translate(space: AddressSpace, va: VirtAddr) -> Translation:
    """Translate *va*, or say what stops it. `MemoryReadError` where a table cannot be read.

    A refusal by the tables is a value; a table that is not in memory is not an absent one.
    """
    if not space.mode.is_canonical(va):
        return Unmapped(va, Cause.NON_CANONICAL, space.mode.gap, ())
    if space.hlat is None or not space.hlat.covers(va):
        return _ended(space, va, tuple(walk(space, va)))
    steps = tuple(_hlat_walk(space, va, space.hlat.root))
    if _restarts(space, steps[-1].entry):
        return replace(_ended(space, va, tuple(walk(space, va))), restarted=steps)
    found = _ended(space, va, steps)
    return replace(found, hlat=True) if isinstance(found, Unmapped) else found


def _restarts(space: AddressSpace, entry: Entry) -> bool:
    return entry.is_present and not space.reserved(entry) and bool(entry.raw & HLAT_RESTART)


def _hlat_walk(space: AddressSpace, va: VirtAddr, root: PhysAddr) -> Iterator[Step]:
    """The entries that HLAT reads for *va*; the last one may ask to start again."""
    for step in walk(space, va, root):
        yield step
        if _restarts(space, step.entry):
            return


def _ended(space: AddressSpace, va: VirtAddr, steps: tuple[Step, ...]) -> Translation:
    """What a walk of *va* came to that read *steps*."""
    entry = steps[-1].entry
    if not entry.is_present:
        return Unmapped(va, Cause.NOT_PRESENT, span_of(va, entry.level), steps)
    if space.reserved(entry):
        return Unmapped(va, Cause.RESERVED, span_of(va, entry.level), steps)
    offset = va & (entry.level.span - 1)
    return Mapped(va, PhysAddr(space.cpu.frame(entry) | offset), entry.level, steps)

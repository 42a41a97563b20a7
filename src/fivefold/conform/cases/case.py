"""A case: page-table entries, registers, one access. Its id is its whole text, so that it can be run again from it.

``la57:write8:3:wp,nxe,smap:ff11000004200ff8:pd=0,pt=4300005`` reads: five levels, `write8` at privilege level 3
with WP, NXE and SMAP set, at that address; the PD entry is 0 and the PT entry 0x4300005, all others are the usual
ones. ``pt2`` and its like are those of the page after. ``pkru=`` and ``pkrs=`` may follow.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from typing import Final, NamedTuple

from fivefold.arch import LA48, LA57, RFLAGS_AC, ControlState, Cpu, Cr0, Cr4, Efer, Level, PagingMode
from fivefold.conform.cases.actions import ACTIONS, Action
from fivefold.conform.places import DATA, DATA_END, ROOT, SECOND
from fivefold.errors import FivefoldError
from fivefold.units import MASK64, VirtAddr, hex64

MODES: Final = {"la48": LA48, "la57": LA57}
FLAGS: Final = (
    "wp",
    "nxe",
    "smep",
    "smap",
    "ac",
    "pke",
    "pks",
    "pge",
    "lass",
    "pcide",
    "fsgsbase",
    "cet",
    "pwt",
    "sce",
)
"""What may be set, in the order of the id; what is not named is clear."""
USUAL: Final = 0x7
"""P, RW, US: A and D are clear, so that it is seen who sets them."""
LEVELS: Final = ("pt", "pd", "pdpt", "pml4", "pml5")
_CR4_BITS: Final = {
    "smep": Cr4.SMEP, "smap": Cr4.SMAP, "pke": Cr4.PKE, "pks": Cr4.PKS, "pge": Cr4.PGE, "lass": Cr4.LASS,
    "pcide": Cr4.PCIDE, "fsgsbase": Cr4.FSGSBASE, "cet": Cr4.CET,
}  # fmt: skip
_CR4: Final = {name: int(bit) for name, bit in _CR4_BITS.items()}
_FEATURE: Final = {
    "nxe": "nx", "smep": "smep", "smap": "smap", "ac": "smap", "pke": "pku", "pks": "pks", "pge": "pge",
    "lass": "lass", "pcide": "pcid", "fsgsbase": "fsgsbase", "cet": "cet",
}  # fmt: skip
"""What a CPU must have for a flag to be set, as `Cpu` names it."""
WANTED: Final = {"cet": "cet", "fsgsbase": "fsgsbase", "syscall": "sce", "pku": "pke"}
"""The flag without which an instruction that needs a feature is undefined."""
IST2: Final = 44
"""Where a TSS holds the second of its stacks for interrupts."""
_PAGE: Final = 0xFFF
_PWT: Final = 1 << 3
_PS: Final = 1 << 7


class CaseError(FivefoldError):
    """A text that names no case."""


class Slot(NamedTuple):
    """An entry of a case: its place, its physical address, and what it usually is."""

    place: str
    at: int
    usual: int


@dataclass(frozen=True, slots=True)
class Case:
    """One access. *entries* holds those that are not the usual ones, by place: ``pt``, ``pd2`` and so on."""

    mode: str
    action: str
    cpl: int
    flags: tuple[str, ...]
    va: int
    entries: tuple[tuple[str, int], ...] = ()
    pkru: int = 0
    pkrs: int = 0
    new: int = 0
    """What is stored to the leaf entry, by a case of steps."""

    @property
    def id(self) -> str:
        """The text that `parse_case` reads back."""
        more = [f"{place}={raw:x}" for place, raw in self.entries]
        more += [f"{name}={value:x}" for name, value in (("pkru", self.pkru), ("pkrs", self.pkrs)) if value]
        more += [f"new={self.new:x}"] if self.what.stale is not None else []
        return f"{self.mode}:{self.action}:{self.cpl}:{','.join(self.flags)}:{self.va:x}:{','.join(more)}"

    @property
    def paging(self) -> PagingMode:
        """The paging mode."""
        return MODES[self.mode]

    @property
    def what(self) -> Action:
        """The instruction."""
        return ACTIONS[self.action]

    @property
    def crosses(self) -> bool:
        """Whether the access lies in two pages."""
        return (self.va & _PAGE) + self.what.size > 4096

    @property
    def second_page(self) -> int:
        """The first byte of the page after."""
        return ((self.va | _PAGE) + 1) & MASK64

    def state(self) -> ControlState:
        """The registers during the access."""
        base = _base_state(self.mode, 3 if self.what.to_user else self.cpl)
        has = self.flags.__contains__
        cr0 = base.cr0 if has("wp") else base.cr0 & ~int(Cr0.WP)
        cr4 = base.cr4 | sum(_CR4.get(name, 0) for name in self.flags)
        efer = base.efer if has("nxe") else base.efer & ~int(Efer.NXE)
        efer |= int(Efer.SCE) if has("sce") else 0
        rflags = 2 | (RFLAGS_AC if has("ac") else 0)
        return replace(
            base,
            cr3=base.cr3 | (_PWT if has("pwt") else 0),
            cr0=cr0,
            cr4=cr4,
            efer=efer,
            rflags=rflags,
            pkru=self.pkru,
            pkrs=self.pkrs,
        )

    def needs(self, cpu: Cpu) -> str | None:
        """The feature that *cpu* lacks to run this case, if it lacks one."""
        if self.mode == "la57" and not cpu.la57:
            return "LA57"
        if self.what.needs not in (None, "syscall") and not getattr(cpu, str(self.what.needs)):
            return self.what.needs.upper()
        return next(
            (flag.upper() for flag in self.flags if flag in _FEATURE and not getattr(cpu, _FEATURE[flag])), None
        )

    def stores(self) -> dict[int, int]:
        """Every entry of the case by physical address, the usual ones too, but none of the driver's."""
        stores = {slot.at: slot.usual for slot in self.path}
        if self.entries:
            where = {slot.place: slot.at for slot in self.path}
            stores |= {where[place]: raw for place, raw in self.entries}
        return stores

    def place_of(self, at: int) -> str | None:
        """The place whose entry lies at physical *at*."""
        return next((place for place, where, _ in self.path if where == at), None)

    def usual(self, place: str) -> int:
        """The usual entry of *place*; `CaseError` if this case has no such place."""
        for name, _, raw in self.path:
            if name == place:
                return raw
        raise CaseError(f"{place!r} is no entry of this case")

    @property
    def path(self) -> tuple[Slot, ...]:
        """Every entry of the case, from the root down, the first page's first."""
        if self.what.register is not None or self.what.invpcid is not None:
            return ()
        return path_of(self.mode, self.va, self.crosses)

    def __str__(self) -> str:
        return self.id


@cache
def _base_state(mode: str, cpl: int) -> ControlState:
    return ControlState.long(MODES[mode], ROOT, cpl)


@lru_cache(4096)
def path_of(mode: str, va: int, crosses: bool) -> tuple[Slot, ...]:
    """The entries of an access at *va*; with *crosses* those of the page after it too."""
    paging = MODES[mode]
    if paging.top.index(va) == 0:
        return ()  # an address that is not canonical, behind the driver's entry
    found = list(_entries_of(paging, va, "", None))
    after = ((va | _PAGE) + 1) & MASK64
    if crosses and paging.is_canonical(after) and after:
        found += _entries_of(paging, after, "2", va)
    return tuple(found)


def _entries_of(paging: PagingMode, va: int, suffix: str, first: int | None) -> Iterator[Slot]:
    """The entries of one page; those that the page of *first* has too are left out."""
    table, shared = ROOT, first is not None
    for level in paging.levels:
        at = table + 8 * level.index(va)
        shared = shared and first is not None and level.index(va) == level.index(first)
        below = ROOT + 0x1000 * (paging.top - level + 1) + (0 if first is None or shared else SECOND)
        if not shared:
            yield Slot(LEVELS[level - 1] + suffix, at, (below if level > Level.PT else usual_frame(va)) | USUAL)
        table = below


def usual_frame(va: int) -> int:
    """The page of data that a 4 KiB page at *va* maps: another one than a large page would."""
    return DATA + (va >> 12 & 0x1FF ^ 0x100) * 0x1000


def large_frame(level: Level) -> int:
    """The frame of a large page of *level* that leads into data."""
    return DATA if level is Level.PD else 0


_ID: Final = re.compile(
    r"(la48|la57):([a-z0-9]+):([03]):([a-z,]*):([0-9a-f]{1,16}):((?:[a-z0-9]+=[0-9a-f]{1,16})?(?:,[a-z0-9]+=[0-9a-f]{1,16})*)"
)


def parse_case(text: str) -> Case:
    """Read an id. Raises `CaseError` with what is wrong with it."""
    found = _ID.fullmatch(text.strip().lower())
    if found is None:
        raise CaseError(
            f"{text!r} is no case; expected MODE:ACTION:CPL:FLAGS:ADDRESS:ENTRIES, such as "
            "la57:read8:3:wp,nxe:7f8004200000:pt=0"
        )
    mode, action, cpl, flags, va, more = found.groups()
    if action not in ACTIONS:
        raise CaseError(f"{action!r} is no action; expected one of {', '.join(ACTIONS)}")
    given = {name: int(value, 16) for name, _, value in (part.partition("=") for part in more.split(",") if part)}
    keys = {name: given.pop(name, 0) & 0xFFFF_FFFF for name in ("pkru", "pkrs")}
    new = given.pop("new", 0)
    names = tuple(flags.split(",")) if flags else ()
    if unknown := [name for name in names if name not in FLAGS]:
        raise CaseError(f"{unknown[0]!r} is no flag; expected {', '.join(FLAGS)}")
    case = make_case(mode, action, int(cpl), names, int(va, 16), given, **keys, new=new)
    if reason := impossible(case):
        raise CaseError(f"{text!r} cannot be run: {reason}")
    return case


def make_case(
    mode: str,
    action: str,
    cpl: int,
    flags: tuple[str, ...] | frozenset[str],
    va: int,
    entries: Mapping[str, int] | None = None,
    pkru: int = 0,
    pkrs: int = 0,
    new: int = 0,
) -> Case:
    """A case in its canonical form: flags in order, entries that are the usual ones left out."""
    ordered = tuple(flag for flag in FLAGS if flag in flags)
    bare = Case(mode, action, cpl, ordered, va)
    given = entries or {}
    places = [(place, usual) for place, _, usual in bare.path]
    if unknown := set(given) - {place for place, _ in places}:
        raise CaseError(f"{sorted(unknown)[0]!r} is no entry of an access at {hex64(va)}")
    kept = tuple((place, given[place]) for place, usual in places if given.get(place, usual) != usual)
    # Key 0 is the driver's own: its stack and tables must stay within reach, of engines that err too.
    pkru, pkrs = pkru & ~3 if "pke" in ordered else 0, pkrs & ~3 if "pks" in ordered else 0
    new = new if ACTIONS[action].stale is not None else 0
    return Case(mode, action, cpl, ordered, va, kept, pkru, pkrs, new)


def impossible(case: Case) -> str | None:
    """Why no engine can run *case*, or None."""
    top = case.paging.top
    if "cet" in case.flags and "wp" not in case.flags:
        return "CET needs WP"
    if {"pwt", "pcide"} <= set(case.flags):
        return "the driver cannot set PCIDE over a PCID"
    if case.what.stale is not None and (reason := _no_steps(case)):
        return reason
    if case.what.then == "wp" and "cet" in case.flags:
        return "CET needs WP"
    wanted = WANTED.get(case.what.needs or "")
    if wanted is not None and wanted not in case.flags:
        return f"{case.what.name} needs {wanted}"
    if case.va % case.what.align:
        return f"its address is a multiple of {case.what.align}"
    if case.what.register is not None:
        return "a register write is for privilege level 0 here" if case.cpl == 3 else None
    if case.what.access is not None and case.what.access.shadow and case.va & 7:
        return "a shadow stack's address is a multiple of 8"
    if case.action == "accessed" and case.crosses:
        return "which of the two pages is written is the CPU's affair"
    if case.what.fetches and case.va & 7 != (6 if case.action == "fetch10" else 0):
        return "no instruction of the data starts there"
    if case.what.invpcid is not None:
        return None if case.cpl == 0 else f"{case.what.name} is for privilege level 0"
    if top.index(case.va) == 0 and case.paging.is_canonical(case.va):
        return "its address is behind slot 0 of the root, which is the driver's"
    if case.what.supervisor_only and case.cpl == 3:
        return f"{case.what.name} is for privilege level 0"
    if case.what.implicit and not case.what.tss and not case.paging.is_canonical(case.va):
        return "LLDT takes no base that is not canonical"
    if case.what.tss and not all(map(case.paging.is_canonical, (case.va - IST2 & MASK64, case.va + 7 & MASK64))):
        return "LTR takes no base that is not canonical, and which exception a TSS beyond the end raises is not told"
    return None


def _no_steps(case: Case) -> str | None:
    """Why a case of steps cannot be run, or None: its first access must go ahead, and both pages be data."""
    stale = case.what.stale or ""
    big = stale.startswith("big")
    leaf = "pd" if big else "pt"
    if set(case.flags) - {"wp", "nxe", "pge", "pcide"} or any(place != leaf for place, _ in case.entries):
        return "steps are run with wp, nxe, pge and pcide, and the leaf entry alone may be unusual"
    if stale == "keep" and "pcide" not in case.flags:
        return "a load of CR3 that keeps entries needs pcide"
    if case.va & 7:
        return "the address of steps is a multiple of 8"
    old = dict(case.entries).get(leaf, USUAL | usual_frame(case.va))
    if stale.startswith("pd") and case.new & 1:
        return "a PD entry of steps is taken away"
    if big and not all(raw & _PS for raw in (old, case.new) if raw & 1):
        return "a large page is stored to by these steps"
    for raw in (old, case.new):
        if raw & 1 and not in_data(raw & ~0xFFF, Level.PD.span if big else 4096):
            return "a page of steps is data"
    return None if old & 1 else "the first access of steps goes ahead"


def in_data(pa: int, size: int) -> bool:
    """Whether *size* bytes at physical *pa* are data."""
    return pa >= DATA and pa + size <= DATA_END


def canonical_va(mode: PagingMode, top_slot: int, page: int, offset: int, pdpt_slot: int = 1) -> VirtAddr:
    """An address behind *top_slot* whose low 30 bits lead to page *page* of data, as large pages need."""
    low = DATA + (page << 12) + offset
    middle = 2 << Level.PML4.shift if mode.top > Level.PML4 else 0
    return mode.sign_extend(top_slot << mode.top.shift | middle | pdpt_slot << Level.PDPT.shift | low)

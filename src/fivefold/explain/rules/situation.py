"""The CPU at the moment of an exception: what is known of it, and what is taken to be so.

Sources leave things out: a core has no EFER, a log no CPUID, an oops no IDT. What is filled in
is listed with its reason, so that the story can say it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Final

from fivefold import _arguments
from fivefold.arch import AddressSpace, ControlState, Cpu, Cr0, Cr4, Efer, Level, Paging, PagingMode, TableReader
from fivefold.explain.logs.trace import Levels
from fivefold.memory import CpuState

L_BIT: Final = 1 << 21
"""In the second word of a code segment's descriptor: 64-bit code."""
_D_BIT: Final = 1 << 22
UNKNOWN_ROOT: Final = 0xFFFF_F000
"""Stands for a CR3 that the source does not have, where it printed the entries all the same.

The page below 4 GiB holds the reset vector in ROM, so no table lies there, and every physical width reaches it.
"""
GENEROUS: Final = Cpu(vmx=True, smx=True, cet=True, lam=True)
"""Every feature and 52 bits: what this refuses, every CPU refuses."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GivenState:
    """What the caller says; it goes before what any source says. Numbers, None where nothing is said."""

    vector: int | None = None
    error_code: int | None = None
    cr0: int | None = None
    cr2: int | None = None
    cr3: int | None = None
    cr4: int | None = None
    efer: int | None = None
    rip: int | None = None
    rsp: int | None = None
    rflags: int | None = None
    cpl: int | None = None
    pkru: int | None = None
    phys_bits: int | None = None
    levels: int | None = None

    def __post_init__(self) -> None:
        """Refuse, with `TypeError`, what is no number."""
        _arguments.fields(self, **dict.fromkeys(self.__dataclass_fields__, (int, type(None))))

    def __iter__(self) -> Iterator[tuple[str, int]]:
        """The names and values that were given."""
        for name in self.__dataclass_fields__:
            value = getattr(self, name)
            if value is not None:
                yield name, value

    def __bool__(self) -> bool:
        return any(True for _ in self)


@dataclass(frozen=True, slots=True)
class Situation:
    """Everything that decides an access, and where it comes from.

    *registers* is what the source printed; *state* the same as the CPU sees it, completed;
    *assumed* one sentence for each completion that can matter. *known_mode* is False where
    the number of levels is not known. *memory* is None without a memory source.
    """

    registers: CpuState
    state: ControlState
    cpu: Cpu
    memory: TableReader | None
    assumed: Mapping[str, str]
    known_mode: bool
    has_unknown_root: bool = False
    """The walk begins at `UNKNOWN_ROOT`: entries are known, and not where the first of them lies."""

    @property
    def mode(self) -> PagingMode | None:
        """The long paging mode, None if it is another or not known."""
        return self.state.mode if self.known_mode else None

    @property
    def space(self) -> AddressSpace | None:
        """The tables, None without memory, root or long mode."""
        if self.memory is None or self.mode is None or (self.registers.cr3 is None and not self.has_unknown_root):
            return None
        return AddressSpace.from_state(self.memory, self.state, self.cpu)

    def with_phys_bits(self, bits: int, reason: str) -> Situation:
        """The same with a physical width that was inferred for *reason*."""
        return replace(self, cpu=replace(self.cpu, phys_bits=bits), assumed={**self.assumed, "phys_bits": reason})

    def with_state(self, state: ControlState) -> Situation:
        """The same in another state of the control registers; whether the number of levels is known stays."""
        return replace(self, state=state)

    def with_levels(self, mode: PagingMode) -> Situation:
        """The same with another number of levels, which is then known."""
        la57 = int(Cr4.LA57)
        cr4 = self.state.cr4 | la57 if mode.top > Level.PML4 else self.state.cr4 & ~la57
        return replace(self, state=replace(self.state, cr4=cr4), known_mode=True)

    def knows(self, register: str) -> bool:
        """Whether the source says what *register* (``cr0``, ``cr4``, ``efer``) holds."""
        return register not in self.assumed

    @property
    def is_long(self) -> bool:
        """Whether the CPU is in long mode, as far as the source says."""
        return self.state.paging in (Paging.LONG4, Paging.LONG5)

    @property
    def may_be_long(self) -> bool:
        """Whether it is not known if the CPU is in long mode: it runs 32-bit code, and the source has no EFER."""
        return not self.known_mode and not self.is_long and not self.knows("efer")

    def has_gate(self, vector: int, limit: int) -> bool | None:
        """Whether the IDT up to *limit* has the gate of *vector*; None where that depends on the size of gates."""
        sizes = (8, 16) if self.may_be_long else (self.gate_size,)
        inside = {size * vector + size - 1 <= limit for size in sizes}
        return inside.pop() if len(inside) == 1 else None

    @property
    def gate_size(self) -> int:
        """Bytes of an IDT entry: 16 in long mode, 8 in protected mode, 4 in real mode."""
        if self.is_long or self.state.efer & Efer.LMA:
            return 16
        return 8 if self.state.cr0 & Cr0.PE else 4

    @property
    def code_bits(self) -> int:
        """Size of the code that runs: 64, 32 or 16."""
        if self.state.in_64bit:
            return 64
        cs = self.registers.segments.get("cs")
        return 32 if cs is None or cs.flags & _D_BIT else 16


def situation(
    registers: CpuState | None,
    cpl: int | None,
    memory: TableReader | None,
    given: GivenState | None = None,
    levels: Levels | None = None,
) -> Situation:
    """Complete *registers*. Nothing is required; what is guessed is in `Situation.assumed`.

    *levels* is what the source proves without CR4.
    """
    given = given or GivenState()
    registers = _override(registers or CpuState("nothing"), given)
    assumed: dict[str, str] = {}
    cr0 = registers.cr0
    if cr0 is None:
        cr0 = int(Cr0.PE | Cr0.WP | Cr0.PG)
        assumed["cr0"] = "CR0 is not known: paging on and CR0.WP=1 are assumed"
    cr4, known = _cr4(registers, given, levels, assumed)
    cr0, efer = int(cr0), _efer(registers, cr0, cr4, assumed)
    if "efer" in assumed and not efer:
        known = False
    bits = given.phys_bits
    if bits is None:
        assumed["phys_bits"] = "MAXPHYADDR is not known: 52 is assumed, which reserves the fewest bits"
    cs = registers.segments.get("cs")
    state = ControlState(
        cr0,
        registers.cr3 or 0,
        cr4,
        efer,
        rflags=registers.general.get("rflags", 2),
        cpl=_cpl(registers, cpl, given),
        cs_long=cs is None or bool(cs.flags & L_BIT),
        pkru=registers.general.get("pkru", 0) if given.pkru is None else given.pkru,
    )
    cpu = GENEROUS if bits is None else replace(GENEROUS, phys_bits=bits)
    return Situation(registers, state, cpu, memory, assumed, known)


def _override(registers: CpuState, given: GivenState) -> CpuState:
    said = dict(given)
    general = dict(registers.general)
    general.update({name: said[name] for name in ("rip", "rsp", "rflags", "cpl") if name in said})
    return replace(
        registers,
        general=general,
        cr0=said.get("cr0", registers.cr0),
        cr2=said.get("cr2", registers.cr2),
        cr3=said.get("cr3", registers.cr3),
        cr4=said.get("cr4", registers.cr4),
        efer=said.get("efer", registers.efer),
    )


def _cr4(registers: CpuState, given: GivenState, levels: Levels | None, assumed: dict[str, str]) -> tuple[int, bool]:
    """CR4, and whether the number of levels is known."""
    la57 = int(Cr4.LA57)
    cr4 = registers.cr4
    if given.levels is not None:
        base = int(Cr4.PAE) if cr4 is None else cr4
        if cr4 is None:
            assumed["cr4"] = "CR4 is not known, and with it SMEP and SMAP; the number of levels was given"
        return (base | la57 if given.levels == 5 else base & ~la57), True
    if cr4 is not None:
        return cr4, True
    if levels is not None:
        assumed["cr4"] = "CR4 is not known, and with it SMEP and SMAP; the number of levels follows from the log"
        return int(Cr4.PAE) | (la57 if levels.number == 5 else 0), True
    assumed["cr4"] = "CR4 is not known, and with it the number of levels, SMEP and SMAP"
    return int(Cr4.PAE), False


def _efer(registers: CpuState, cr0: int, cr4: int, assumed: dict[str, str]) -> int:
    if registers.efer is not None:
        return registers.efer
    cs = registers.segments.get("cs")
    numbers = (registers.general.get("rip"), registers.general.get("rsp"), registers.cr2, registers.cr3)
    lma = registers.general.get("lma")
    is_64bit = "narrow" not in registers.general if cs is None else bool(cs.flags & L_BIT)
    is_long = is_64bit or lma == 1 or bool(cr4 & Cr4.LA57) or any((number or 0) >> 32 for number in numbers)
    if not (cr0 & Cr0.PG and cr4 & Cr4.PAE) or (lma == 0 and not is_long):
        return 0
    if not is_long:
        assumed["efer"] = (
            "EFER is not known, and with it whether the 32-bit code runs in PAE paging, or in long mode's "
            "compatibility mode"
        )
        return 0
    assumed["efer"] = "EFER is not known: long mode follows from 64-bit code with paging, EFER.NXE=1 is assumed"
    return int(Efer.LME | Efer.LMA | Efer.NXE)


def _cpl(registers: CpuState, cpl: int | None, given: GivenState) -> int:
    if given.cpl is not None:
        return given.cpl
    if cpl is not None:
        return cpl
    if "cpl" in registers.general:
        return registers.general["cpl"]
    cs = registers.segments.get("cs")
    return cs.selector & 3 if cs is not None else 0


PAGING_NAMES: Final = {
    Paging.NONE: "none",
    Paging.BITS32: "32-bit",
    Paging.PAE: "32-bit",
    Paging.LONG4: "la48",
    Paging.LONG5: "la57",
}
"""What the report calls the paging mode."""

"""Which root, which number of levels, which physical width: decided with evidence, or refused.

In this order: what the caller gives, the registers of one CPU (the first unless another is asked for),
what Linux says of itself (VMCOREINFO), the tables. Nothing is guessed in silence.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from fivefold import _arguments
from fivefold.arch import FRAME_BITS, LA48, LA57, MAX_PHYS_BITS, TABLE_SIZE, Cr0, Cr4, PagingMode, TableReader
from fivefold.errors import MemoryReadError, NotKnownError
from fivefold.memory import CpuState, Source
from fivefold.survey.guest.cpu.controls import WHICH, Controls, choose_controls
from fivefold.survey.guest.cpu.encryption import LOWEST_BIT, WithoutBits, choose_c_bit, suspected_bit
from fivefold.survey.guest.cpu.long_mode import why_no_root
from fivefold.survey.guest.evidence import Found
from fivefold.survey.guest.level_evidence import contradicts, level_evidence
from fivefold.survey.guest.vmcoreinfo import kernel_notes
from fivefold.units import MASK64, PhysAddr, hex64

MODES: Final = {4: LA48, 5: LA57}


@dataclass(frozen=True, slots=True, kw_only=True)
class GivenPaging:
    """What the caller says instead of the source; None asks the source. *cr3* and *cr4* are raw registers.

    *cpu* is the number of the CPU whose registers count, None for CPU 0. *force* goes on with *levels* or *cr4*
    where the tables contradict them; the contradiction is then in `Found.against`. *c_bit* is the number of the
    bit of an entry that is about encryption. *as_if* sets controls, by the keys of `controls.WHICH`.
    """

    cr3: int | None = None
    cr4: int | None = None
    levels: int | None = None
    phys_bits: int | None = None
    cpu: int | None = None
    force: bool = False
    c_bit: int | None = None
    as_if: Mapping[str, bool] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse values of a wrong type, what no CPU has, and what contradicts itself."""
        number = (int, type(None))
        _arguments.fields(self, cr3=number, cr4=number, levels=number, phys_bits=number, cpu=number, force=(bool,))
        _arguments.fields(self, c_bit=number, as_if=(Mapping,))
        if unknown := set(self.as_if) - set(WHICH):
            raise ValueError(f"as_if has {sorted(unknown)[0]!r}; expected {', '.join(WHICH)}")
        if self.levels not in (None, 4, 5):
            raise ValueError(f"{self.levels} levels of page tables; expected 4 or 5")
        if self.phys_bits is not None and not 32 <= self.phys_bits <= MAX_PHYS_BITS:
            raise ValueError(f"{self.phys_bits} physical address bits; expected 32 to {MAX_PHYS_BITS}")
        for name, value in (("cr3", self.cr3), ("cr4", self.cr4)):
            if value is not None and not 0 <= value <= MASK64:
                raise ValueError(f"{name} {value:#x} does not fit in 64 bits")
        if self.c_bit is not None and not LOWEST_BIT <= self.c_bit < MAX_PHYS_BITS:
            raise ValueError(f"c_bit is {self.c_bit}; expected {LOWEST_BIT} to {MAX_PHYS_BITS - 1}")
        if self.cpu is not None and self.cpu < 0:
            raise ValueError(f"CPU {self.cpu}; expected a number from 0 on")
        if self.cr4 is not None and self.levels not in (None, _levels_of(self.cr4)):
            raise ValueError(f"cr4 {self.cr4:#x} means {_levels_of(self.cr4)} levels, but {self.levels} are given, too")


def _levels_of(cr4: int) -> int:
    return 5 if cr4 & Cr4.LA57 else 4


def root_of(cr3: int, not_address: int = 0) -> PhysAddr:
    """The top table's address in a raw CR3, without PCID, LAM, the other bits, and those in *not_address*."""
    return PhysAddr(cr3 & FRAME_BITS & ~not_address)


def encryption_mask(source: Source, given: GivenPaging) -> int:
    """The bit of entries and of CR3 that is about encryption, as a mask; 0 without one."""
    bit = choose_c_bit(given.c_bit, kernel_notes(source)).value
    return 0 if bit is None else 1 << bit


def table_reader(source: Source, given: GivenPaging) -> TableReader:
    """The memory of *source*, for readers of tables that know of no encryption."""
    mask = encryption_mask(source, given)
    return WithoutBits(source.memory, mask) if mask else source.memory


def chosen_cpu(source: Source, given: GivenPaging) -> tuple[int, CpuState | None]:
    """The CPU whose registers count, with its number; None without any. `NotKnownError` where *given* asks in vain."""
    number = given.cpu or 0
    if number < len(source.cpus):
        return number, source.cpus[number]
    if given.cpu is None:
        return 0, None
    has = f"the registers of {len(source.cpus)}, counted from 0" if source.cpus else "no registers"
    raise NotKnownError(f"CPU {number}: {source.name} ({source.format}) holds {has}; give another --cpu, or --cr3")


def choose_root(source: Source, given: GivenPaging) -> Found[PhysAddr]:
    """Where the top table lies. `NotKnownError` when nothing says; `MemoryReadError` when it cannot be read."""
    found = _root(source, given)
    try:
        source.memory.read(found.value, TABLE_SIZE)
    except MemoryReadError as error:
        bit = None if given.c_bit is not None else suspected_bit(source.memory, found.value)
        hint = "" if bit is None else f", or --c-bit {bit}: without bit {bit}, CR3 and every entry lead to memory"
        raise NotKnownError(
            f"{source.name} has no memory at the root {hex64(found.value)} ({found.how}); "
            f"expected the top-level table there: give another with --cr3{hint}"
        ) from error
    return found


def _root(source: Source, given: GivenPaging) -> Found[PhysAddr]:
    if given.cr3 is not None:
        return Found(root_of(given.cr3, encryption_mask(source, given)), "given with --cr3")
    number, cpu = chosen_cpu(source, given)
    if cpu is not None and cpu.cr3 is not None:
        _check_paging(source, number, cpu, given)
        return Found(root_of(cpu.cr3, encryption_mask(source, given)), f"CR3 of CPU {number} ({cpu.source})")
    if cpu is not None and given.cpu is not None:
        raise NotKnownError(f"{source.name} holds no CR3 of CPU {number} ({cpu.source}); give --cr3 instead of --cpu")
    notes = kernel_notes(source)
    if notes.root is not None:
        return Found(notes.root, f"init_top_pgt and phys_base in {notes.where}")
    raise NotKnownError(
        f"{source.name} ({source.format}) holds no CR3; give --cr3, or look for roots with `fivefold roots`"
    )


def _check_paging(source: Source, number: int, cpu: CpuState, given: GivenPaging) -> None:
    """Refuse a CPU whose CR3 is not the root of four or five levels."""
    wrong = why_no_root(cpu, source.memory, cr4_given=given.cr4 is not None)
    if wrong:
        raise NotKnownError(
            f"CPU {number} of {source.name} has {wrong}; expected 4- or 5-level paging: give --cr3 and --levels"
            f"{', or another --cpu' if len(source.cpus) > 1 else ''}"
        )


def roots_in_registers(source: Source, given: GivenPaging | None = None) -> dict[PhysAddr, tuple[int, ...]]:
    """The top tables that CPUs have loaded, each with the numbers of those CPUs."""
    mask = encryption_mask(source, given or GivenPaging())
    found: dict[PhysAddr, tuple[int, ...]] = {}
    for number, cpu in enumerate(source.cpus):
        if cpu.cr3 is not None and why_no_root(cpu, source.memory) is None:
            root = root_of(cpu.cr3, mask)
            found[root] = (*found.get(root, ()), number)
    return found


def other_paging(source: Source) -> str | None:
    """Which paging all CPUs of *source* use that have paging on, if it has neither four nor five levels; else None."""
    paging = [(number, cpu) for number, cpu in enumerate(source.cpus) if cpu.cr0 is not None and cpu.cr0 & Cr0.PG]
    reasons = [(number, why_no_root(cpu, source.memory)) for number, cpu in paging]
    if not reasons or any(why is None for _, why in reasons):
        return None
    return f"CPU {reasons[0][0]} has {reasons[0][1]}"


def choose_mode(source: Source, root: PhysAddr, given: GivenPaging) -> Found[PagingMode]:
    """How many levels the tree at *root* has. `NotKnownError` when nothing says, or the tables contradict *given*."""
    known = _recorded_mode(source, given)
    if given.levels is None and given.cr4 is None:
        return _held_against_tables(source, root, given, known) if known else _mode_of_tables(source, root, given)
    levels = given.levels or _levels_of(given.cr4 or 0)
    how = "given with --levels" if given.levels else "given with --cr4"
    if known is not None and known.value is MODES[levels]:
        return Found(MODES[levels], how)
    against = _tables_against(source, root, levels, given)
    if against and not given.force:
        raise NotKnownError(
            f"{against}, not {levels} as {how}; give --levels {9 - levels}, or --force to read them so all the same"
        )
    how += f"; {known.how} says {known.value.name}" if known else ""
    return Found(MODES[levels], how, against)


def _held_against_tables(
    source: Source, root: PhysAddr, given: GivenPaging, known: Found[PagingMode]
) -> Found[PagingMode]:
    """*known* as registers or VMCOREINFO say it, unless the tables speak loudly for the other number of levels."""
    levels = int(known.value.top)
    against = contradicts(table_reader(source, given), root, levels)
    if against is None:
        return known
    text = f"the tables at {hex64(root)} of {source.name} have {9 - levels} levels ({against})"
    if not given.force:
        raise NotKnownError(
            f"{text}, not {levels} as {known.how} says; give --levels {9 - levels}, or --force to read them so"
        )
    return Found(known.value, known.how, text)


def _recorded_mode(source: Source, given: GivenPaging) -> Found[PagingMode] | None:
    """What registers or the kernel's notes say."""
    number, cpu = chosen_cpu(source, given)
    if cpu is not None and cpu.cr4 is not None and why_no_root(cpu, source.memory) in (None, "no CR3"):
        levels = _levels_of(cpu.cr4)
        return Found(MODES[levels], f"CR4.LA57={int(levels == 5)} of CPU {number} ({cpu.source})")
    notes = kernel_notes(source)
    if notes.mode is not None:
        return Found(notes.mode, f"pgtable_l5_enabled={notes.number('pgtable_l5_enabled')} in {notes.where}")
    return None


def _mode_of_tables(source: Source, root: PhysAddr, given: GivenPaging) -> Found[PagingMode]:
    evidence = level_evidence(table_reader(source, given), root)
    if evidence.levels is None:
        raise NotKnownError(
            f"{source.name} does not say how many levels the tables at {hex64(root)} have ({evidence}); give --levels"
        )
    return Found(MODES[evidence.levels], f"the tables: {evidence}")


def _tables_against(source: Source, root: PhysAddr, levels: int, given: GivenPaging) -> str | None:
    """What the tables say against *levels*, by which a walk would take tables for pages, or pages for tables."""
    evidence = level_evidence(table_reader(source, given), root, levels)
    if evidence.levels in (None, levels):
        return None
    return f"the tables at {hex64(root)} of {source.name} have {evidence.levels} levels ({evidence})"


def choose_phys_bits(given: GivenPaging) -> Found[int | None]:
    """MAXPHYADDR, which no source holds; None means that only what is reserved at every width counts as reserved."""
    if given.phys_bits is not None:
        return Found(given.phys_bits, "given with --phys-bits")
    return Found(None, "no source holds CPUID; only bits reserved at every width count as malformed")


def choose_nxe(source: Source, given: GivenPaging) -> Found[bool | None]:
    """EFER.NXE of the CPU that counts, or None where the source does not hold EFER."""
    return controls_of(source, given).nxe


def controls_of(source: Source, given: GivenPaging) -> Controls:
    """The controls of the CPU that counts. `NotKnownError` where *given* asks for a CPU in vain."""
    return choose_controls(source, *chosen_cpu(source, given), given.as_if)

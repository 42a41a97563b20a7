"""Does the root fit the mode? A table of one depth in CR3 while CR4.LA57 selects the other.

Such a root often works for a while: read one level off, a 2 MiB entry passes for a 1 GiB one and
identity mappings hold by accident. So nothing is inferred from looks alone: the addresses that
the CPU is using are put to both readings.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

from fivefold.arch import FETCH, LA48, LA57, TABLE_SIZE, Access, Cr4, Entry, Kind, Level, PagingMode
from fivefold.errors import MemoryReadError
from fivefold.explain.rules.instruction import LONGEST, decode
from fivefold.explain.rules.ruling import Granted, physical, read_virtual, rule_on
from fivefold.explain.rules.situation import Situation
from fivefold.units import MASK64, PhysAddr, hex64


class Witness(NamedTuple):
    """An address that the CPU uses, and what it is."""

    name: str
    va: int
    how: Access


class WrongDepth(NamedTuple):
    """The root fits *fits* and not the mode that is on; *evidence* in sentences."""

    fits: PagingMode
    evidence: tuple[str, ...]


def other_reading(here: Situation) -> Situation | None:
    """The same with the other number of levels, None where paging has none."""
    if here.mode is None:
        return None
    return here.with_state(replace(here.state, cr4=here.state.cr4 ^ int(Cr4.LA57)))


def wrong_depth(here: Situation, va: int, how: Access) -> WrongDepth | None:
    """Whether a refused access to *va* is due to a root of the other depth.

    It is if, read the other way, the root allows that access, the instruction at RIP and all
    that it allows this way, and there is a sign that this way is wrong: something in use is not
    mapped, tables in use have malformed entries, or the instruction that makes the access is only
    there the other way. RSP and GDTR may be left over from before the switch and need not count.
    """
    other = other_reading(here)
    if other is None or here.space is None or other.mode is None:
        return None
    asked = Witness("the address", va, how)
    witnesses = _witnesses(here)
    needed = [w for w in witnesses if w.name == "RIP" or _granted(here, w)]
    if _granted(here, asked) or not needed or not all(_granted(other, witness) for witness in needed):
        return None
    witnesses = [w for w in witnesses if _granted(other, w)]
    signs = list(_signs(here, other, va, witnesses)) if _granted(other, asked) else []
    if stray := _stray(here, other):
        signs.append(stray)
    if not signs:
        return None
    names = ", ".join(f"{w.name} {hex64(w.va)}" for w in (asked, *witnesses) if _granted(other, w))
    return WrongDepth(other.mode, (f"read with {_levels(other.mode)} levels the root maps {names}", *signs))


def _stray(here: Situation, other: Situation) -> str | None:
    """Whether the CPU runs what is no code: RIP leads astray this way, and to memory or to itself the other."""
    rip = here.registers.rip
    if rip is None:
        return None
    now, then = physical(here, rip), physical(other, rip)
    if now is None or then is None or now == then:
        return None
    lost = read_virtual(here, rip, 1) is None and read_virtual(other, rip, 1) is not None
    if not lost and then != rip:
        return None
    reading = f"read with {_levels(here.mode)} levels, as CR4.LA57={int(here.mode is LA57)} asks,"
    return f"{reading} RIP lies at physical {hex64(now)}, the other way at {hex64(then)}: what runs is not the code"


def _signs(here: Situation, other: Situation, va: int, witnesses: list[Witness]) -> Iterator[str]:
    """What is wrong with the reading that the mode asks for."""
    reading = f"read with {_levels(here.mode)} levels, as CR4.LA57={int(here.mode is LA57)} asks,"
    if lost := [w.name for w in witnesses if not _granted(here, w)]:
        yield f"{reading} it does not map {', '.join(lost)}"
    if (count := _malformed(here, witnesses)) and not _malformed(other, witnesses):
        yield f"{reading} {count} entries in the tables in use are malformed, the other way none"
    if _is_explained(other, va) and not _is_explained(here, va):
        yield f"{reading} RIP holds another instruction than the one that touches {hex64(va)}"


def _malformed(here: Situation, witnesses: list[Witness]) -> int:
    """Entries with reserved bits in the tables that the walks of *witnesses* pass."""
    space = here.space
    assert space is not None  # the caller looked
    tables: dict[int, Level] = {}
    for witness in witnesses:
        ruling = rule_on(here, witness.va, witness.how)
        if ruling is not None:
            tables.update({step.at & ~0xFFF: step.entry.level for step in ruling.steps})
    count = 0
    for table, level in tables.items():
        try:
            raw = space.memory.read(PhysAddr(table), TABLE_SIZE)
        except MemoryReadError:
            continue
        entries = (Entry(int.from_bytes(raw[i : i + 8], "little"), level) for i in range(0, TABLE_SIZE, 8))
        count += sum(1 for entry in entries if space.reserved(entry))
    return count


def _is_explained(reading: Situation, va: int) -> bool:
    """Whether the instruction at RIP, in this reading, is one that touches *va*."""
    rip = reading.registers.rip
    code = None if rip is None else read_virtual(reading, rip, LONGEST)
    if rip is None or code is None:
        return False
    found = decode(code, rip, reading.registers, lambda at, size: None, reading.code_bits)
    return found is not None and any(use.va <= va < use.va + use.how.size for use in found.uses)


def _levels(mode: PagingMode | None) -> int:
    return len((mode or LA48).levels)


def _granted(here: Situation, witness: Witness) -> bool:
    return isinstance(rule_on(here, witness.va, witness.how), Granted)


def _witnesses(here: Situation) -> list[Witness]:
    """What must be mapped for the CPU to have come here. Empty registers are none."""
    registers = here.registers
    found = []
    if registers.rip is not None:
        found.append(Witness("RIP", registers.rip, FETCH))
    if registers.rsp:
        found.append(Witness("the stack", registers.rsp - 8 & MASK64, Access(Kind.READ, 1)))
    gdt, idt = registers.gdt, registers.idt
    if gdt is not None and gdt.base and gdt.limit:
        found.append(Witness("the GDT", gdt.base, Access(Kind.READ, 1, implicit=True)))
    if idt is not None and idt.base and idt.limit:
        found.append(Witness("the IDT", idt.base, Access(Kind.READ, 1, implicit=True)))
    return found

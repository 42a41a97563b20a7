"""Which paging a CPU uses: 32-bit and PAE guests are named and refused, also where no EFER is in the source."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from fivefold.arch import LA48, Level
from fivefold.errors import NotKnownError
from fivefold.memory import CpuState, Ram, Segment, Source, open_source
from fivefold.survey.guest.cpu.long_mode import is_pae_root, why_no_root
from fivefold.survey.guest.roots import find_roots
from fivefold.survey.space import Space
from fivefold.units import PhysAddr

CR3 = 0x10_0000
CODE_32, CODE_64 = 0x00CF_9A00, 0x00AF_9A00
PAE = [0x0020_1001, 0x0020_2001, 0, 0x0020_3001]
LONG = [0x0020_1063, 0, 0, 0]

# registers, code segment, the four entries that CR3 points to, what is said of it
ROWS = [
    ({}, CODE_32, PAE, "PAE paging (code segment without L, and CR3 0x100000 points to four PAE entries)"),
    ({"cr3": CR3 + 0x7A0}, CODE_32, LONG, "PAE paging (code segment without L, and CR3 0x1007a0 points into a page)"),
    ({"cr3": CR3 + 0x018}, CODE_32, PAE, "PAE paging (code segment without L, and CR3 0x100018 points to four PAE"),
    ({"cr3": CR3 + 0x7A0, "cr4": 0x206A0}, CODE_32, LONG, None),  # a PCID
    ({}, CODE_32, LONG, None),  # compatibility mode
    ({}, CODE_32, [0x0020_1021], None),  # accessed: no PAE entry
    ({}, CODE_32, [0], None),
    ({}, CODE_32, [1 << 52 | 1], None),
    ({}, CODE_64, PAE, None),
    ({}, None, PAE, None),
    ({"rip": 0xFFFF_FFFF_8100_0000}, CODE_32, PAE, None),
    ({"rip": 0xFFFF_FFFF}, CODE_32, PAE, "PAE paging"),
    ({"efer": 0x800}, CODE_64, LONG, "32-bit or PAE paging (EFER.LMA=0)"),
    ({"efer": 0x500}, CODE_32, PAE, None),
    ({"elf_machine": 3}, CODE_64, LONG, "32-bit or PAE paging (ELF machine 386: EFER.LMA=0)"),
    ({"elf_machine": 62}, CODE_32, PAE, None),
    ({"elf_machine": 3, "efer": 0x500}, CODE_32, LONG, None),
    ({"cr4": 0x10}, CODE_32, PAE, "32-bit paging (CR4.PAE=0)"),
    ({"cr0": 0x33, "elf_machine": 3}, CODE_32, PAE, "paging off (CR0.PG=0)"),
]


def cpu_of(registers: dict[str, int], code: int | None) -> CpuState:
    given = {"cr0": 0x8005_0033, "cr3": CR3, "cr4": 0x6A0} | registers
    general = {"rip": given.pop("rip", 0x10_0000)}
    segments = {} if code is None else {"cs": Segment(8, 0, 0xFFFF_FFFF, code)}
    return CpuState("test", general=general, segments=segments, **given)  # type: ignore[arg-type]


@pytest.mark.parametrize(("registers", "code", "entries", "expected"), ROWS)
def test_what_a_cpu_does_instead(
    registers: dict[str, int], code: int | None, entries: list[int], expected: str | None
) -> None:
    ram = Ram.of_size(0x2000, start=CR3)
    base = registers.get("cr3", CR3) & ~0x1F
    ram.write(PhysAddr(base), struct.pack(f"<{len(entries)}Q", *entries))
    told = why_no_root(cpu_of(registers, code), ram)
    assert told == expected if expected is None else told is not None and told.startswith(expected)


def test_four_entries_beyond_memory_say_nothing() -> None:
    assert not is_pae_root(Ram.of_size(0x1000, start=CR3), 0x9000)


def test_a_pae_guest_is_refused_by_every_question(others: Path) -> None:
    with open_source(str(others / "linux-686-pae.elf.xz")) as source:
        with pytest.raises(NotKnownError, match=r"32-bit or PAE paging \(ELF machine 386"):
            Space(source)
        with pytest.raises(NotKnownError, match="CPU 0 has 32-bit or PAE paging"):
            find_roots(source)


def test_one_cpu_that_is_not_started_yet_hides_no_roots(
    built: Callable[..., Ram], sourced: Callable[..., Source]
) -> None:
    ram = built(LA48, [(0x4000_0000, 0x20_0000 | 7, Level.PT)])
    source = sourced(ram, (cpu_of({}, CODE_64), cpu_of({"elf_machine": 3}, CODE_32)))
    assert [root.root for root in find_roots(source)] == [CR3]

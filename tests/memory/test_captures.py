"""Captures of real guests against what was true of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fivefold.errors import MemoryReadError
from fivefold.memory import open_source
from fivefold.units import PhysAddr

GUESTS = Path(__file__).parents[1] / "data" / "guests"
NAMES = sorted(path.name.removesuffix(".facts.json") for path in GUESTS.glob("*.facts.json"))


def facts_of(name: str) -> Any:
    return json.loads((GUESTS / f"{name}.facts.json").read_text())


def test_there_are_captures() -> None:
    assert len(NAMES) == 8


@pytest.mark.parametrize("name", NAMES)
def test_control_registers(name: str) -> None:
    with open_source(str(GUESTS / f"{name}.elf.xz")) as source:
        got = [[cpu.cr0, cpu.cr2, cpu.cr3, cpu.cr4, cpu.rip] for cpu in source.cpus]
        want = [[int(cpu[key], 16) for key in ("cr0", "cr2", "cr3", "cr4", "rip")] for cpu in facts_of(name)["cpus"]]

        assert got == want
        assert [cpu.efer for cpu in source.cpus] == [None] * len(want)
        assert source.format == "ELF core in xz"


@pytest.mark.parametrize("name", NAMES)
def test_extents(name: str) -> None:
    """Whole pages, inside RAM; every root can be read, what lies between the frames cannot."""
    facts = facts_of(name)
    ram = [(int(r["start"], 16), int(r["start"], 16) + int(r["size"], 16)) for r in facts["ram"]]
    roots = {int(root, 16) & ~0xFFF for root in (*facts["roots"]["cr3"], facts["roots"]["init_top_pgt"])}
    with open_source(str(GUESTS / f"{name}.elf.xz")) as source:
        for extent in source.extents:
            assert extent.start % 4096 == extent.end % 4096 == 0
            assert any(start <= extent.start and extent.end <= end for start, end in ram)
        for root in roots:
            assert len(source.memory.read(PhysAddr(root), 4096)) == 4096
        with pytest.raises(MemoryReadError):
            source.memory.read(PhysAddr(source.extents[0].end), 8)


def test_segments_of_a_cpu() -> None:
    with open_source(str(GUESTS / "plain-la57-kaslr-smp2.elf.xz")) as source:
        first, second = source.cpus

    assert first.idt is not None and second.idt is not None and first.gdt is not None
    assert f"{first.idt.base:x} {first.idt.limit:x}" == "fffffe0000000000 fff"
    assert f"{first.gdt.base:x} {first.gdt.limit:x}" == "fffffe0000001000 7f"
    assert (first.segments["cs"].selector, first.segments["tr"].selector) == (0x10, 0x40)
    assert f"{first.rsp:x}" == "ffffffff9ac03e40"
    assert first.source == "QEMU CPU note"

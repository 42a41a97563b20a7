"""What the loader leaves in memory for either kind of entry, judged by arch."""

from __future__ import annotations

import struct

import pytest

from fivefold.arch import AddressSpace, ControlState, Cpu, Mapped, Unmapped, translate
from fivefold.errors import MachineError
from fivefold.machine import Guest, MapRow, Module
from fivefold.machine.loading.loader import load
from fivefold.machine.loading.loader_state import build_handover, handover_size
from fivefold.memory import Extent, Ram
from fivefold.units import GIB, MIB, TIB

AT = 0x40000
SMALL, BIG = Cpu(la57=False, gib_pages=False, phys_bits=40), Cpu(phys_bits=46)


@pytest.mark.parametrize("entry", ["long48", "long57"])
@pytest.mark.parametrize(
    ("cpu", "top"), [(SMALL, 256 * MIB), (SMALL, 5 * GIB), (BIG, 16 * MIB), (BIG, 3 * TIB // 2), (BIG, 512 * GIB)]
)
def test_all_ram_is_mapped_at_its_own_address(entry, cpu, top):
    if entry == "long57" and not cpu.la57:
        with pytest.raises(MachineError, match=r"^entry long57 needs a CPU with LA57"):
            handover_size(entry, top, cpu)
        return
    size = handover_size(entry, top, cpu)
    memory = Ram([Extent(AT, AT + size)])

    made = build_handover(entry, top, AT, cpu, memory)

    # Not a byte more than was asked for, and not one less: the root is the last page.
    assert made.root + 0x1000 == AT + size
    assert AT < made.stack <= made.root
    space = AddressSpace.from_state(memory, ControlState.long(made.mode, made.root), cpu)
    for address in (0x1000, 2 * MIB, top // 3, top - 1):
        found = translate(space, address)
        assert isinstance(found, Mapped)
        assert (found.pa, found.rights.write, found.rights.execute, found.rights.user) == (address, True, True, False)
    assert isinstance(translate(space, 1 << 46), Unmapped)
    assert memory.read(made.gdt.base + 8, 8) == (0x00AF9B000000FFFF).to_bytes(8, "little")


def test_start_information_lists_modules_rows_and_texts(workshop):
    rows = (MapRow(0x1000, 0x9F000), MapRow(0x100000, 0x800000), MapRow(0x800000, 0x900000, 2))
    memory = Ram([Extent(row.start, row.end) for row in rows])
    guest = Guest(
        workshop.elf(b"\xf4" * 64, memory_size=0x10000),
        cmdline="a=1",
        modules=(Module(b"first", "one"), Module(b"second" * 1000, "")),
    )

    placed = load(guest, rows, memory, BIG)

    assert placed.entry == workshop.base
    head = struct.unpack("<IIIIQQQQII", memory.read(placed.start_info, 56))
    assert head[:4] == (0x336EC578, 1, 0, 2)
    assert memory.read(head[5], 4) == b"a=1\0"
    assert head[6] == 0, "no ACPI tables"
    for number, module in enumerate(guest.modules):
        at, size, text, _ = struct.unpack("<4Q", memory.read(head[4] + 32 * number, 32))
        assert at % 0x1000 == 0
        assert memory.read(at, size) == module.data
        assert memory.read(text, len(module.cmdline) + 1) == module.cmdline.encode() + b"\0"
    assert head[8] == 3
    assert [struct.unpack("<QQI", memory.read(head[7] + 24 * n, 20)) for n in range(3)] == [
        (row.start, row.end - row.start, row.kind) for row in rows
    ]


def test_bss_is_cleared(workshop):
    rows = (MapRow(0x100000, 0x800000),)
    memory = Ram([Extent(0x100000, 0x800000)])
    memory.write(0x200000, b"\xa5" * 0x2000)

    load(Guest(workshop.elf(b"code", memory_size=0x1800)), rows, memory, BIG)

    assert memory.read(0x200000, 0x1800) == b"code" + bytes(0x1800 - 4)
    assert memory.read(0x201800, 4) == b"\xa5" * 4


@pytest.mark.parametrize(
    ("module", "words"),
    [
        (b"x" * (8 << 20), "no room below 4 GiB for a module of 8388608 bytes: too little memory"),
        (b"", None),
    ],
)
def test_modules_need_room(workshop, module, words):
    rows = (MapRow(0x100000, 0x800000),)
    memory = Ram([Extent(0x100000, 0x800000)])
    guest = Guest(workshop.elf(b"code"), modules=(Module(module),))
    if words is None:
        assert load(guest, rows, memory, BIG).start_info
        return
    with pytest.raises(MachineError) as refusal:
        load(guest, rows, memory, BIG)
    assert str(refusal.value) == words


@pytest.mark.parametrize(
    ("entry", "cpu", "top", "pages"),
    [
        ("long48", SMALL, 256 * MIB, 1 + 1 + 1 + 2),
        ("long48", SMALL, 5 * GIB, 5 + 1 + 1 + 2),
        ("long48", SMALL, 257 * GIB, 257 + 1 + 1 + 2),
        ("long48", BIG, 5 * GIB, 1 + 1 + 2),
        ("long57", BIG, 3 * TIB // 2, 3 + 1 + 1 + 2),
        ("long57", BIG, 3 * TIB // 2 + GIB, 4 + 1 + 1 + 2),
    ],
)
def test_no_table_is_built_in_vain(entry, cpu, top, pages):
    """The tables of each level, from the leaf up, and two pages for GDT and stack."""
    assert handover_size(entry, top, cpu) == pages * 0x1000

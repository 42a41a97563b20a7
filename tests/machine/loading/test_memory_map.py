"""Where a guest's RAM is."""

from __future__ import annotations

import itertools

import pytest

from fivefold.errors import MachineError
from fivefold.machine import MapRow
from fivefold.machine.loading.loader import Room
from fivefold.machine.loading.memory_map import memory_map, pc_map, ram_extents, split_extents
from fivefold.units import GIB, MIB

PC_RAM = """
# memory      RAM extents, in hex
1M            0-a0000
2M            0-a0000 100000-200000
3072M         0-a0000 100000-c0000000
3073M         0-a0000 100000-c0000000 100000000-100100000
8192M         0-a0000 100000-c0000000 100000000-240000000
"""


@pytest.mark.parametrize("line", PC_RAM.strip().splitlines()[1:])
def test_pc_map_vectors(line):
    size, *wanted = line.split()
    extents = ram_extents(pc_map(int(size[:-1]) * MIB))

    assert [f"{extent.start:x}-{extent.end:x}" for extent in extents] == wanted


def test_firmware_rows_lie_apart_and_ram_adds_up():
    rows = pc_map(8 * GIB)

    assert all(low.end <= high.start for low, high in itertools.pairwise(rows))
    lost = MIB - 0x9FC00
    assert sum(row.end - row.start for row in rows if row.kind == 1) == 8 * GIB - lost


def test_qemu_split_keeps_offsets_in_the_file():
    parts = split_extents(5 * GIB, 3 * GIB)

    assert [(extent.start, extent.end, at) for extent, at in parts] == [
        (0, 0xA0000, 0),
        (0xC0000, 3 * GIB, 0xC0000),
        (4 * GIB, 6 * GIB, 3 * GIB),
    ]


@pytest.mark.parametrize(
    ("memory", "words"),
    [
        (0, "0 of memory cannot be: expected whole pages, 1M or more"),
        (MIB + 1, "1048577 of memory cannot be: expected whole pages, 1M or more"),
        (1 << 52, "4P of memory does not fit 52 physical address bits"),
        (
            (MapRow(0x2000, 0x1000),),
            "memory map row 0x0000000000002000 to 0x0000000000001000 is not a range of 52 bits",
        ),
    ],
)
def test_impossible_maps(memory, words):
    with pytest.raises(MachineError) as refusal:
        memory_map(memory)

    assert str(refusal.value) == words


def test_room_is_taken_once():
    room = Room((MapRow(0x1000, 0x9000), MapRow(0x100000, 0x200000)))

    assert room.take_exactly(0x3000, 0x4000)
    assert not room.take_exactly(0x3800, 0x3900)
    assert not room.take_exactly(0x8000, 0xA000)
    assert room.take_highest(0x1800, 0x9000) == 0x7000
    assert room.take_highest(0x1000, 0x3500) == 0x2000
    assert room.take_highest(0x1000, 0x1800) is None
    assert room.take_low(0x3001, "a thing") == 0x1FC000
    with pytest.raises(MachineError, match=r"^no room below 4 GiB for a thing \(1048576 bytes\): too little memory$"):
        room.take_low(0x100000, "a thing")

"""Memory: from the least that works to several GiB with a hole, full of ones, and maps that lie."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import pytest

from fivefold.boot import Image, Run
from fivefold.errors import MachineError
from fivefold.machine import Machine, MapRow
from fivefold.units import GIB, MIB, PhysAddr, format_size

Boot = Callable[..., Run]
SIZES = [("la57", 16 * MIB), ("la48", 64 * MIB), ("la48", 3 * GIB + 16 * MIB), ("la57", 4 * GIB)]


@pytest.mark.parametrize(("cpu", "memory"), SIZES, ids=[format_size(size) for _, size in SIZES])
def test_sizes(passes: Boot, cpu: str, memory: int) -> None:
    """Above 3 GiB a PC has a hole, and the rest of its memory behind 4 GiB."""
    run = passes(cpu, memory=memory, load_address=4 * MIB)
    assert run.facts["ram_end"] == memory + (GIB if memory > 3 * GIB else 0)
    assert run.facts["cut_bytes"] == 0


def test_the_least_that_works(passes: Boot, boot: Boot, image: Image) -> None:
    """With less there is one line that says what is missing, and no crash."""
    load = 2 * MIB
    end = load + image.size
    with pytest.raises(MachineError, match=r"too little memory: the image ends at 0x[0-9a-f]{16}, the machine has 2M"):
        boot("la57", load_address=load, memory=2 * MIB)
    least = -(-end // MIB) * MIB
    assert least <= 4 * MIB
    for cpu in ("la57", "la48"):
        passes(cpu, load_address=load, memory=least)


def test_too_little_for_the_tables_is_said(boot: Boot, image: Image) -> None:
    """The image fits, what the kernel makes does not: it says so, and the run has failed."""
    end = -(-(2 * MIB + image.size) // 4096) * 4096
    told = set()
    for pages in (0, 8, 16, 64):
        rows = (MapRow(0, 0x9_F000), MapRow(2 * MIB, end + 4096 * pages))
        run = boot("la57", load_address=2 * MIB, guest={"memory": rows})
        assert not run.ok
        assert run.event == "exit with code 18"
        told |= {line for line in run.output.splitlines() if line.startswith("Bail out! panic: no memory for ")}
    assert len(told) >= 2


@pytest.mark.parametrize(("poison", "entry"), [(0xFF, "pvh"), (0xFF, "long48"), (0x55, "long57")])
def test_memory_that_was_not_zero(passes: Boot, poison: int, entry: str) -> None:
    passes("la57", entry=entry, guest={"poison": poison})


def test_page_sizes_are_those_of_the_cpu(passes: Boot) -> None:
    """`la57` has 1 GiB pages here, `la48` has not; `pages=` asks for less."""
    low = (MapRow(0, 0x9_F000), MapRow(MIB, 32 * MIB))
    large = {"memory": (*low, MapRow(GIB, 2 * GIB))}
    assert passes("la57", guest=large).facts["direct_1g"] == 1
    assert passes("la48", guest=large).facts["direct_1g"] == 0
    assert passes("la57", guest=large, cmdline="pages=2m").facts["direct_1g"] == 0
    small = passes("la57", cmdline="pages=4k")
    assert (small.facts["direct_1g"], small.facts["direct_2m"]) == (0, 0)
    assert small.facts["direct_4k"] * 4096 == small.facts["ram_bytes"]


def forge(rows: list[tuple[int, int, int]]) -> Callable[[Machine], None]:
    """Replace the memory map that the loader left: (start, size, kind)."""

    def write(machine: Machine) -> None:
        info = machine.registers().rbx or machine.registers().rsi
        at = machine.memory.read(PhysAddr(info + 40), 8)
        machine.memory.write(
            PhysAddr(int.from_bytes(at, "little")), b"".join(struct.pack("<QQII", *row, 0) for row in rows)
        )
        machine.memory.write(PhysAddr(info + 48), struct.pack("<I", len(rows)))

    return write


PC = [(0, 0x9_FC00, 1), (0x9_FC00, 0x400, 2), (MIB, 31 * MIB, 1)]
LIES = [
    ("overlapping", [*PC[:2], (MIB, 20 * MIB, 1), (8 * MIB, 24 * MIB, 1)], 31 * MIB),
    ("twice", [*PC, *PC], 31 * MIB),
    ("descending", PC[::-1], 31 * MIB),
    ("empty rows", [(5 * MIB, 0, 1), *PC, (0, 0, 1)], 31 * MIB),
    ("RAM and reserved at once", [*PC, (24 * MIB, 2 * MIB, 2)], 29 * MIB),
    ("reserved that wraps", [*PC, (24 * MIB, (1 << 64) - 1, 2)], 23 * MIB),
    ("unaligned", [*PC[:2], (MIB, 27 * MIB + 0x123, 1), (28 * MIB + 0x123, 2 * MIB + 0xABC, 1)], 29 * MIB - 0x1000),
    ("beyond what the CPU reaches", [*PC, (1 << 40, 1 << 40, 1)], 31 * MIB),
    ("wraps", [*PC, (1 << 63, 1 << 63, 1)], 31 * MIB),
]


@pytest.mark.parametrize(("name", "rows", "high"), LIES, ids=[row[0] for row in LIES])
def test_maps_that_lie(passes: Boot, name: str, rows: list[tuple[int, int, int]], high: int) -> None:
    run = passes("la48" if name in ("overlapping", "wraps") else "la57", before=forge(rows))
    assert run.facts["ram_bytes"] == high + 0x9_F000
    if name in ("beyond what the CPU reaches", "wraps"):
        assert run.facts["cut_bytes"] > 0
        assert "memory beyond the direct map of this mode is not used, bytes 0x" in run.output


@pytest.mark.parametrize(
    ("rows", "panic"),
    [
        ([(0, 1 << 32, 2)], "panic: the memory map has no usable memory"),
        ([], "panic: the memory map has no usable memory"),
        ([(0x1000, 0, 1)], "panic: the memory map has no usable memory"),
        ([(0, 1 << 32, 1), (0, (1 << 64) - 1, 2)], "panic: the memory map has no usable memory"),
    ],
)
def test_maps_without_memory(boot: Boot, rows: list[tuple[int, int, int]], panic: str) -> None:
    run = boot("la57", before=forge(rows))
    assert not run.ok
    assert panic in run.output


def test_a_map_with_too_many_rows_is_said(boot: Boot) -> None:
    rows = tuple(MapRow(start, start + 0x1000) for start in range(17 * MIB, 17 * MIB + 520 * 0x2000, 0x2000))
    run = boot("la57", guest={"memory": (MapRow(0, 0x9_F000), MapRow(MIB, 17 * MIB - 0x1000), *rows)})
    assert not run.ok
    assert "panic: the memory map has more than 512 rows" in run.output


def neighbours(count: int) -> tuple[MapRow, ...]:
    """A map with *count* rows more than it needs: each page its own row."""
    pages = [24 * MIB + 0x1000 * i for i in range(count)]
    return (MapRow(0, 0x9_F000), MapRow(MIB, 24 * MIB), *(MapRow(at, at + 0x1000) for at in pages))


def test_thousands_of_rows_are_refused(boot: Boot) -> None:
    """The last of them may take back what the first gave, so to read a part would be to use memory that is not ours."""
    run = boot("la48", guest={"memory": neighbours(3000)})
    assert not run.ok
    assert "panic: the memory map has more than 512 rows: what the rest takes back would be used" in run.output


def test_a_map_that_cannot_be_handed_on_is_not(passes: Boot, boot: Boot) -> None:
    """500 rows that are neighbours are no trouble, but for the copy that the next kernel gets."""
    assert passes("la57", guest={"memory": neighbours(500)}).facts["ram_bytes"] == 0x9_F000 + 23 * MIB + 500 * 0x1000
    run = boot("la57", kexec="", guest={"memory": neighbours(200)})
    assert not run.ok
    assert "kexec: the memory map has too many rows to hand on" in run.output


def test_no_start_information_is_said(boot: Boot) -> None:
    def erase(machine: Machine) -> None:
        machine.memory.write(PhysAddr(machine.registers().rbx), bytes(4))

    run = boot("la57", before=erase)
    assert not run.ok
    assert "fivefold: no start information; expected PVH's structure with a memory map" in run.output


NO_IMAGE = "panic: the image lies where the memory map has no memory"
NOT_THERE = "fivefold: the memory map lists memory that is not there"
CLAIMED = (0, 1 << 32, 1)
"""Four GiB, where the machine has 32 MiB."""


@pytest.mark.parametrize(
    ("rows", "words", "said"),
    [
        ([*PC[:2], (MIB, 15 * MIB, 1), (20 * MIB, 12 * MIB, 1)], "", NO_IMAGE),
        ([*PC, (16 * MIB, 4096, 2)], "", NO_IMAGE),
        ([CLAIMED], "", f"# {NOT_THERE}, at 0x"),
        ([CLAIMED], "kaslr=3", NOT_THERE + ", where kaslr would put the image"),
    ],
    ids=["no image", "image reserved", "too much", "too much, moved"],
)
def test_maps_that_leave_out_the_image_or_list_what_is_not_there(
    boot: Boot, rows: list[tuple[int, int, int]], words: str, said: str
) -> None:
    """One line, where the first died of an exception and the last ran on in a place without memory for ever."""
    run = boot("la57", before=forge(rows), cmdline=words)
    assert run.event == "exit with code 18"
    assert said in run.output


@pytest.mark.parametrize("entry", ["pvh", "long48"])
@pytest.mark.parametrize("filling", [b"x", b" ", b"kaslr=1 "])
def test_a_command_line_without_an_end_is_said(boot: Boot, entry: str, filling: bytes) -> None:
    """Its words were looked for up to the end of what is mapped: for ever, where a read of nothing gives ones."""

    def write(machine: Machine) -> None:
        info = machine.registers().rsi if entry == "long48" else machine.registers().rbx
        machine.memory.write(PhysAddr(32 * MIB - 8192), filling * (8192 // len(filling)))
        machine.memory.write(PhysAddr(info + 24), struct.pack("<Q", 32 * MIB - 8192))

    run = boot("la57", entry=entry, before=write)
    assert run.event == "exit with code 18"
    assert "fivefold: the command line has no end within 4096 bytes" in run.output


def test_modules_are_left_alone(passes: Boot) -> None:
    from fivefold.machine import Module

    kept: dict[str, Any] = {}

    def note(machine: Machine) -> None:
        kept["machine"] = machine
        info = machine.registers().rbx
        at = int.from_bytes(machine.memory.read(PhysAddr(info + 16), 8), "little")
        kept["at"] = int.from_bytes(machine.memory.read(PhysAddr(at), 8), "little")
        assert machine.memory.read(PhysAddr(kept["at"]), 5000) == b"module".ljust(5000, b"!")

    run = passes("la57", before=note, guest={"modules": (Module(b"module".ljust(5000, b"!"), "one"),)})
    assert run.ok

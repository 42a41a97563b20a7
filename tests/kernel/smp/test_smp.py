"""Where the trampoline of secondary CPUs goes: free memory by the map, never the loader's, never wrapped around."""

from __future__ import annotations

import pytest

from fivefold.metal.program import Program
from fivefold.metal.run import interpreter

PAGE = 0x1000
LIMIT = 0x9F000

PLACES = [
    ("a PC", [(0x0, 0x9FC00)], [], 0x9D000),
    ("below the limit", [(0x0, 0x10_0000)], [], 0x9D000),
    ("loader at the top", [(0x0, 0x9FC00)], [(0x9E000, 0x1000)], 0x9C000),
    ("loader in between", [(0x0, 0x9FC00)], [(0x9C800, 0x10)], 0x9D000),
    ("one page is too small, rs_14", [(0x5000, 0x1000)], [], 0),
    ("two pages", [(0x5000, 0x2000)], [], 0x5000),
    ("two ranges that touch", [(0x5000, 0x1000), (0x6000, 0x1000)], [], 0x5000),
    ("never page 0", [(0x0, 0x2000)], [], 0),
    ("the least", [(0x0, 0x3000)], [], 0x1000),
    ("what firmware keeps, rs_05", [(0x0, 0x80000)], [(0x7E000, 0x2000)], 0x7C000),
    ("nothing below 1 MiB, rs_15", [(0x10_0000, 0x10_0000)], [], 0),
    ("all is taken", [(0x0, 0x9F000)], [(0x0, 0x9F000)], 0),
]


@pytest.mark.parametrize(("memory", "reserved", "place"), [row[1:] for row in PLACES], ids=[row[0] for row in PLACES])
def test_place(memory: list[tuple[int, int]], reserved: list[tuple[int, int]], place: int) -> None:
    modules = ("fivefold.kernel.smp.smp", "fivefold.kernel.paging.memblock")
    roots = (
        "fivefold.kernel.smp.smp.choose_place",
        "fivefold.kernel.paging.memblock.add",
        "fivefold.kernel.paging.memblock.reserve",
    )
    kernel = interpreter.load(Program(modules, roots=roots))
    for row in memory:
        kernel.call("memblock.add", *row)
    for row in reserved:
        kernel.call("memblock.reserve", *row)
    kernel.call("smp.choose_place")
    assert kernel.get("smp.place") == place

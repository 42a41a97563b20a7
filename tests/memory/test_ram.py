"""Memory in this process: what is inside, what is a hole, and that nothing is half written."""

from __future__ import annotations

import pytest

from fivefold.errors import MemoryReadError
from fivefold.memory import Ram
from fivefold.memory.base import Extent
from fivefold.units import PhysAddr

EXTENTS = [Extent(0x5000, 0x6000), Extent(0x1000, 0x3000), Extent(0x3000, 0x4000)]

INSIDE = [(0x1000, 1), (0x1000, 0x2000), (0x2FFF, 1), (0x3000, 0x1000), (0x3FFF, 1), (0x5000, 0x1000), (0x5001, 0xFFF)]
OUTSIDE = [
    (0, 1),
    (0xFFF, 1),
    (0xFFF, 2),
    (0x1000, 0x2001),  # two banks, one behind the other, are no buffer
    (0x2FFF, 2),
    (0x3000, 0x1001),
    (0x4000, 1),
    (0x4FFF, 2),
    (0x5FFF, 2),
    (0x6000, 1),
]


@pytest.mark.parametrize(("pa", "size"), INSIDE)
def test_inside(pa: int, size: int) -> None:
    ram = Ram(EXTENTS, "three")
    data = bytes(range(1, 252)) * (size // 251 + 1)
    ram.write(PhysAddr(pa), data[:size])
    assert ram.read(PhysAddr(pa), size) == data[:size]
    whole = {start + at: byte for start, bank in ram.banks() for at, byte in enumerate(bank)}
    assert {at for at, byte in whole.items() if byte} == set(range(pa, pa + size))


@pytest.mark.parametrize(("pa", "size"), OUTSIDE)
def test_outside(pa: int, size: int) -> None:
    ram = Ram(EXTENTS, "three")
    with pytest.raises(MemoryReadError, match="three has no memory") as caught:
        ram.read(PhysAddr(pa), size)
    assert (caught.value.pa, caught.value.size) == (pa, size)
    with pytest.raises(MemoryReadError):
        ram.write(PhysAddr(pa), b"x" * size)
    assert not any(any(bank) for _, bank in ram.banks())


def test_banks_are_the_extents_in_order() -> None:
    ram = Ram(EXTENTS)
    assert ram.name == "ram"
    assert ram.extents == sorted(EXTENTS)
    assert [(start, len(bank)) for start, bank in ram.banks()] == [(0x1000, 0x2000), (0x3000, 0x1000), (0x5000, 0x1000)]
    ram.banks()[0][1][5] = 7
    assert ram.read(PhysAddr(0x1005), 1) == b"\x07"


def test_one_bank_begins_where_it_is_told() -> None:
    assert Ram.of_size(0x2000).extents == [(0, 0x2000)]
    assert Ram.of_size(0x2000, 0x7000, "high").extents == [(0x7000, 0x9000)]


@pytest.mark.parametrize("second", [Extent(0x2FFF, 0x5000), Extent(0x1000, 0x1001), Extent(0, 0x1001)])
def test_extents_are_apart(second: Extent) -> None:
    with pytest.raises(ValueError, match=r"^extents overlap at 0x000000000000(2fff|1000)$"):
        Ram([Extent(0x1000, 0x3000), second])

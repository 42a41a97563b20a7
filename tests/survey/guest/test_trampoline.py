"""The tables that Linux starts CPUs with, by each of their signs."""

from __future__ import annotations

import struct

import pytest

from fivefold.arch import LA48, AddressSpace, Flag
from fivefold.memory import Ram
from fivefold.survey.guest.root_labels import is_trampoline
from fivefold.units import PhysAddr

ROOT = 0x9_8000
USUAL = int(Flag.P | Flag.RW)


def trampoline(root: int = ROOT, last: int = 511, flags: int = USUAL, leaf: int = 0, present: int = 1) -> AddressSpace:
    """Tables from *root* on that map the first 2 MiB to *leaf*, and a last entry at index *last*."""
    ram = Ram.of_size(4 << 20, 0x1000)

    def put(at: int, value: int) -> None:
        ram.write(PhysAddr(at), struct.pack("<Q", value))

    put(root, root + 0x1000 | flags)
    put(root + 0x1000, root + 0x2000 | flags)
    put(root + 0x2000, leaf | flags | Flag.BIT7)
    put(root + 8 * last, 0x20_0000 | USUAL & ~1 | present)
    return AddressSpace(ram, PhysAddr(root), LA48)


@pytest.mark.parametrize(
    ("tables", "is_one"),
    [
        (trampoline(), True),
        (trampoline(root=0xF_D000), True),
        (trampoline(root=0x10_0000), False),
        (trampoline(last=510), False),
        (trampoline(last=1), False),
        (trampoline(present=0), False),
        (trampoline(leaf=0x20_0000), False),
        (trampoline(flags=USUAL | Flag.US), False),
        (trampoline(flags=0), False),
    ],
)
def test_signs_of_the_trampoline(tables: AddressSpace, is_one: bool) -> None:
    assert is_trampoline(tables) == is_one


def test_tables_that_are_not_there() -> None:
    assert not is_trampoline(AddressSpace(Ram.of_size(0x1000, 0x1000), PhysAddr(ROOT), LA48))

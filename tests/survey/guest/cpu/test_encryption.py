"""The encryption bit where nothing says that there is one: a hint from the tables, and from nothing less."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from fivefold.errors import NotKnownError
from fivefold.memory import Ram, Source
from fivefold.survey.guest.cpu.encryption import suspected_bit
from fivefold.survey.guest.identify import GivenPaging, choose_root
from fivefold.units import PhysAddr

ROOT, NEXT = 0x10_1000, 0x10_2000
Sourced = Callable[..., Source]


def root_with(*entries: int) -> Ram:
    """4 MiB from 1 MiB on, with *entries* in the table at its root, which begin at index 3."""
    ram = Ram.of_size(4 << 20, start=0x10_0000, name="toy")
    ram.write(PhysAddr(ROOT + 24), b"".join(entry.to_bytes(8, "little") for entry in entries))
    return ram


@pytest.mark.parametrize("bit", [32, 47, 51])
def test_a_bit_that_all_entries_have_and_no_memory(bit: int) -> None:
    ram = root_with(NEXT | 1 << bit | 0x67, 0, NEXT + 0x1000 | 1 << bit | 1 << 63 | 1)
    assert suspected_bit(ram, ROOT) == bit
    assert suspected_bit(ram, ROOT | 1 << bit) == bit


@pytest.mark.parametrize(
    ("entries", "root"),
    [
        ((), ROOT),
        ((NEXT | 1,), ROOT),
        ((NEXT | 1,), ROOT | 1 << 51),
        ((NEXT | 1 << 31 | 1,), ROOT),
        ((NEXT | 1 << 51,), ROOT),
        ((NEXT | 1 << 51 | 1, NEXT | 1), ROOT),
        ((NEXT | 1 << 51 | 1, NEXT | 1 << 47 | 1), ROOT),
        ((NEXT | 1 << 51 | 1, 1 << 51 | 1), ROOT),
        ((NEXT | 1 << 51 | 1 << 47 | 1,), ROOT),
        ((NEXT | 1 << 51 | 1,), ROOT | 1 << 47),
        ((NEXT | 1 << 51 | 1,), 0x9000),
        ((NEXT | 1 << 51 | 1,), ROOT | 1 << 31),
        ((NEXT | 1 << 52 | 1,), ROOT),
    ],
)
def test_no_such_bit(entries: tuple[int, ...], root: int) -> None:
    assert suspected_bit(root_with(*entries), root) is None


def test_the_refusal_names_the_option(sourced: Sourced) -> None:
    ram = root_with(NEXT | 1 << 51 | 1)
    with pytest.raises(NotKnownError, match=r"or --c-bit 51: without bit 51, CR3 and every entry lead to memory$"):
        choose_root(sourced(ram), GivenPaging(cr3=ROOT | 1 << 51))
    assert choose_root(sourced(ram), GivenPaging(cr3=ROOT | 1 << 51, c_bit=51)).value == ROOT

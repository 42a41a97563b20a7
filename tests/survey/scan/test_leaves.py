"""Every leaf, as QEMU's monitor prints them, against what it printed."""

from __future__ import annotations

import io
import lzma
from collections.abc import Callable
from pathlib import Path

import pytest

from fivefold.arch import LA48, LA57, AddressSpace, Level
from fivefold.memory import Ram
from fivefold.report.text.tlb import letters, write_leaves
from fivefold.survey.scan.leaves import Leaves
from fivefold.survey.scan.scan import leaves_of
from fivefold.survey.space import Space
from fivefold.units import MIB, PhysAddr

ALL = range(1 << 64)


def lines_of(space: AddressSpace, window: range = ALL) -> list[str]:
    out = io.StringIO()
    write_leaves(Leaves(space).tables(window), out)
    return out.getvalue().splitlines()


@pytest.mark.parametrize("guest", ["debian-la48-nokaslr-6G-pc", "debian-la57-kaslr-pti", "plain-la57-kaslr"])
def test_info_tlb_of_the_captures(guest: str, captures: Path, look: Callable[..., Space]) -> None:
    """The monitor ends its lines with a carriage return as well."""
    text = lzma.decompress((captures / f"{guest}.info-tlb.txt.xz").read_bytes()).decode()
    found = lines_of(look(guest).tables)
    assert found == text.split("\r\n")[:-1]
    assert Leaves(look(guest).tables).count() == len(found)


def test_counting_needs_no_unfolding(look: Callable[..., Space]) -> None:
    space = look("kasan-la48-kaslr")
    leaves = Leaves(space.tables)
    assert leaves.count() == leaves_of(space.overview) > 1 << 30
    assert leaves.count_in(ALL, 1000) > 1000
    assert leaves.count_in(range(0xFFFF_8880_0000_0000, 0xFFFF_8880_0000_3000), 1000) == 3


def test_every_page_size_and_letter(built: Callable[..., Ram]) -> None:
    pages = [
        (0x1000, 0x5000 | 0x1FF, Level.PT),
        (0x20_0000, 0x8000_0000_0060_1000 | 0x3, Level.PD),
        (0x4000_0000, 0x4000_0000 | 0x165, Level.PDPT),
        (0xFFFF_FFFF_FFFF_F000, 0xF_FFFF_FFFF_F000 | 0x21, Level.PT),
    ]
    ram = built(LA48, pages)
    assert lines_of(AddressSpace(ram, PhysAddr(0x10_0000), LA48)) == [
        "0000000000001000: 0000000000005000 -G-DACTUW",
        "0000000000200000: 0000000000600000 X-P-----W",
        "0000000040000000: 0000000040000000 -GPDA--U-",
        "fffffffffffff000: 0003fffffffff000 ----A----",
    ]


def test_a_window_of_addresses(built: Callable[..., Ram]) -> None:
    pages = [(0x1000 * n, 0x5000 | 1, Level.PT) for n in range(1, 5)] + [(2 * MIB, 0x20_0000 | 1, Level.PD)]
    space = AddressSpace(built(LA57, pages), PhysAddr(0x10_0000), LA57)
    starts = [
        [line[:16] for line in lines_of(space, window)] for window in (range(0x2800, 0x4000), range(0x4FFF, 1 << 64))
    ]
    assert starts == [["0000000000002000", "0000000000003000"], ["0000000000004000", "0000000000200000"]]
    assert Leaves(space).count_in(range(0x2800, 0x4000), 9) == 2


def test_large_leaves_beside_tables_stay_in_order(built: Callable[..., Ram]) -> None:
    pages = [(n * 2 * MIB, n * 2 * MIB | 1, Level.PD if n % 2 else Level.PT) for n in range(6)]
    space = AddressSpace(built(LA48, pages), PhysAddr(0x10_0000), LA48)
    assert [int(line[:16], 16) for line in lines_of(space)] == [n * 2 * MIB for n in range(6)]


def test_a_missing_table_is_told(built: Callable[..., Ram]) -> None:
    ram = built(LA48, [(0x1000, 0x5000 | 1, Level.PT)])
    ram.write(PhysAddr(0x10_0000 + 8 * 5), (0x70_0000_0000 | 3).to_bytes(8, "little"))
    leaves = Leaves(AddressSpace(ram, PhysAddr(0x10_0000), LA48))
    assert leaves.count() == 1
    assert leaves.missing == [0x70_0000_0000]


def test_letters() -> None:
    assert letters(0) == "---------"
    assert letters((1 << 63) | 0x1FF) == "XGPDACTUW"

"""RAM as QEMU's monitor tells it."""

from __future__ import annotations

import pytest

from fivefold.errors import FormatError
from fivefold.memory.live import mtree
from fivefold.memory.live.mtree import RamRange, ram_ranges

# Cut from QEMU 7.2, q35 with 3 GiB; the first view is that of system management mode.
Q35 = """
FlatView #0
 AS "cpu-smm-0", root: memory
 Root memory region: memory
  0000000000000000-000000007fffffff (prio 0, ram): pc.ram

FlatView #2
 AS "memory", root: system
 AS "cpu-memory-0", root: system
 Root memory region: system
  0000000000000000-000000000009ffff (prio 0, ram): pc.ram KVM
  00000000000a0000-00000000000bffff (prio 1, i/o): vga-lowmem
  00000000000c0000-00000000000c2fff (prio 0, ram): pc.ram @00000000000c0000
  00000000000c3000-00000000000effff (prio 0, rom): pc.ram @00000000000c3000 KVM
  00000000000f0000-000000007fffffff (prio 0, ram): pc.ram @00000000000f0000
  00000000b0000000-00000000bfffffff (prio 0, i/o): pcie-mmcfg-mmio
  00000000fd000000-00000000fdffffff (prio 1, ram): vga.vram
  00000000fffc0000-00000000ffffffff (prio 0, rom): pc.bios
  0000000100000000-000000013fffffff (prio 0, ram): pc.ram @0000000080000000

FlatView #3
 AS "I/O", root: io
 Root memory region: io
  0000000000000000-0000000000000007 (prio 0, i/o): dma-chan
"""


@pytest.mark.parametrize("text", [Q35, Q35.replace("\n", "\r\n")])
def test_the_systems_view(text: str) -> None:
    assert ram_ranges(text) == [
        RamRange(0, 0xA0000, "pc.ram", 0),
        RamRange(0xC0000, 0x80000000, "pc.ram", 0xC0000),
        RamRange(0xFD000000, 0xFE000000, "vga.vram", 0),
        RamRange(0xFFFC0000, 1 << 32, "pc.bios", 0),
        RamRange(1 << 32, 0x140000000, "pc.ram", 0x80000000),
    ]


@pytest.mark.parametrize("text", ["", "unknown command: 'info mtree'", Q35.replace('AS "memory"', 'AS "other"')])
def test_no_view_of_the_system(text: str) -> None:
    with pytest.raises(FormatError) as error:
        ram_ranges(text)
    assert str(error.value) == "'info mtree -f' shows no RAM in the system's memory; expected lines with 'ram'"


def test_neighbours_that_do_not_run_on_stay_apart() -> None:
    moved = Q35.replace("@00000000000f0000", "@00000000000e0000")
    assert ram_ranges(moved)[1:3] == [
        RamRange(0xC0000, 0xF0000, "pc.ram", 0xC0000),
        RamRange(0xF0000, 0x80000000, "pc.ram", 0xE0000),
    ]


def test_lines_out_of_order() -> None:
    swapped = Q35.replace("00000000fffc0000-", "00000000000c1000-")
    with pytest.raises(FormatError, match=r"^'info mtree -f' is not ascending at 0xc1000$"):
        ram_ranges(swapped)


@pytest.mark.parametrize(
    ("line", "found"),
    [
        (
            "  0000000000001000-0000000000002fff (prio 0, nv-ram): nv dimm 0 @0000000000005000 HVF",
            ("nv dimm 0", 0x5000),
        ),
        ("0000000000001000-0000000000002fff (prio -1, rom): a @b KVM", ("a @b", 0)),
        ("  0000000000001000-0000000000002fff (prio 10, ram): (x) HVF", ("(x)", 0)),
        ("  0000000000001000-0000000000002fff (prio 0, ramd): x", None),
        ("  0000000000001000-0000000000002fff (prio 0, romd): x", None),
        ("  0000000000001000-0000000000002fff (prio 0, i/o): x", None),
        ("  000000000001000-0000000000002fff (prio 0, ram): x", None),
    ],
)
def test_lines(line: str, found: tuple[str, int] | None) -> None:
    text = f'FlatView #17\n AS "memory", root: system\n{line}\n'
    if found is None:
        with pytest.raises(FormatError):
            ram_ranges(text)
    else:
        assert ram_ranges(text) == [(0x1000, 0x3000, *found)]


def test_a_view_of_the_system_without_ram_is_passed_by() -> None:
    empty = 'FlatView #0\n AS "memory", root: system\n'
    assert ram_ranges(empty + Q35) == ram_ranges(Q35)


def test_neighbours_of_other_regions_and_with_a_gap_stay_apart() -> None:
    row = "  {:016x}-{:016x} (prio 0, ram): {} @{:016x}\n"
    rows = [(0x1000, 0x1FFF, "a", 0), (0x2000, 0x2FFF, "b", 0x1000), (0x3001, 0x3FFF, "b", 0x2000)]
    text = 'FlatView #1\n AS "memory", root: system\n' + "".join(row.format(*each) for each in rows)
    assert ram_ranges(text) == [(low, high + 1, name, at) for low, high, name, at in rows]


def test_the_number_of_ranges_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mtree, "MAX_SPANS", 5)
    assert len(ram_ranges(Q35)) == 5
    monkeypatch.setattr(mtree, "MAX_SPANS", 4)
    with pytest.raises(FormatError, match=r"^'info mtree -f' shows more than 4 ranges of RAM$"):
        ram_ranges(Q35)

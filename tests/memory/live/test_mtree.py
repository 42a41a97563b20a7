"""RAM as QEMU's monitor tells it."""

from __future__ import annotations

import pytest

from fivefold.errors import FormatError
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

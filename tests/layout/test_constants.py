"""Widths by release and mode."""

from __future__ import annotations

import pytest

from fivefold.layout import linux_constants
from fivefold.units import GIB, TIB

# release, levels, pgdir_shift, ptrs_per_p4d, virtual mask, physical mask, physmem bits, vmalloc TiB,
# vmemmap TiB, KASLR step in GiB, task_size_max
VECTORS = """
4.14 4 39   1 47 46 46    32  1   1 00007ffffffff000
4.14 5 48 512 56 52 52 16384 64 512 00fffffffffff000
4.15 5 48 512 56 52 52 12800 64 512 00fffffffffff000
4.16 4 39   1 47 46 46    32  1   1 00007ffffffff000
4.17 4 39   1 47 52 46    32  1   1 00007ffffffff000
5.1  5 48 512 56 52 52 12800 64 512 00fffffffffff000
5.2  5 48 512 56 52 52 12800 64   1 00fffffffffff000
7.1  4 39   1 47 52 46    32  1   1 00007ffffffff000
"""


@pytest.mark.parametrize("line", VECTORS.strip().splitlines())
def test_constants(line: str) -> None:
    release, levels, *numbers, task_size_max = line.split()
    c = linux_constants(release, int(levels))
    got = [
        c.pgdir_shift,
        c.ptrs_per_p4d,
        c.virtual_mask_shift,
        c.physical_mask_shift,
        c.max_physmem_bits,
        c.vmalloc_size // TIB,
        c.vmemmap_size // TIB,
        c.kaslr_step // GIB,
    ]

    assert got == [int(number) for number in numbers]
    assert f"{c.task_size_max:016x}" == task_size_max
    assert c.maxmem == 1 << c.max_physmem_bits

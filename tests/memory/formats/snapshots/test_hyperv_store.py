"""Blocks of a Hyper-V snapshot, and the runs of memory that lie in them."""

from __future__ import annotations

import random

import pytest

from fivefold.errors import FormatError
from fivefold.memory.files import FileBytes
from fivefold.memory.formats.snapshots.hyperv import _CACHED, _Store
from fivefold.memory.formats.snapshots.xpress import BLOCK

DATA = random.Random(5).randbytes(3 * BLOCK)


def store(**runs: tuple[int, int, int]) -> _Store:
    """Three blocks of the file one after the other; numbers of blocks are those of their places."""
    blocks = {number: (number * BLOCK, BLOCK) for number in range(3)}
    return _Store(FileBytes(DATA, "toy.vmrs"), blocks, dict(enumerate(runs.values())))


@pytest.mark.parametrize(
    ("pa", "size", "parts"),
    [
        (0, 0x2000, [(BLOCK - 0x1000, 0x2000)]),
        (0x2800, 0x1000, [(BLOCK + 0x1800, 0x800), (7, 0x800)]),
        (0x3000, 8, [(7, 8)]),
        (0x2FFF, 1, [(BLOCK + 0x1FFF, 1)]),
        (0x3FFF, 1, [(0x1006, 1)]),
        (0x9000_0000, 2 * BLOCK, [(BLOCK // 2, 2 * BLOCK)]),
    ],
)
def test_memory_across_blocks_and_runs(pa: int, size: int, parts: list[tuple[int, int]]) -> None:
    runs = store(low=(0, 0x3000, BLOCK - 0x1000), next=(0x3000, 0x1000, 7), high=(0x9000_0000, 2 * BLOCK, BLOCK // 2))
    assert runs.fetch(pa, size) == b"".join(DATA[at : at + length] for at, length in parts)


def test_a_block_is_unpacked_once_and_few_are_kept() -> None:
    read: list[int] = []

    class Counted(FileBytes):
        def read_at(self, at: int, size: int) -> bytes:
            read.append(at)
            return bytes([at & 0xFF]) * size

    blocks = {number: (number, BLOCK) for number in range(_CACHED + 1)}
    runs = _Store(Counted(b"", "toy.vmrs"), blocks, {})
    assert [runs.block(number)[0] for number in range(_CACHED)] == list(range(_CACHED))
    assert runs.block(0)[0] == 0 and read == list(range(_CACHED))
    runs.block(_CACHED)  # in the place of the first
    runs.block(1)
    assert len(read) == _CACHED + 1
    runs.block(0)
    assert read[_CACHED + 1 :] == [0]


def test_a_block_that_is_packed_wrongly_is_named() -> None:
    runs = _Store(FileBytes(bytes(64), "toy.vmrs"), {3: (0, 64)}, {})
    with pytest.raises(FormatError, match=r"^toy.vmrs: RamBlock3"):
        runs.block(3)

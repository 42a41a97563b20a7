"""Places in a flattened file: a run of bytes is given where it lies only if one record holds all of it."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from fivefold.memory.files import FileBytes
from fivefold.memory.formats.kdump_flat import FlatBytes

RECORDS = ((0, b"0123456789abcdef"), (16, b"ghijklmnopqrstuv"), (40, b"wxyzWXYZ"))
HEADER = (b"makedumpfile".ljust(16, b"\0") + struct.pack(">qq", 1, 1)).ljust(4096, b"\0")


@pytest.fixture
def flat(tmp_path: Path) -> FlatBytes:
    records = b"".join(struct.pack(">qq", offset, len(data)) + data for offset, data in RECORDS)
    (tmp_path / "flat").write_bytes(HEADER + records + struct.pack(">qq", -1, -1))
    return FlatBytes(FileBytes.open(str(tmp_path / "flat")))


@pytest.mark.parametrize(
    ("offset", "size", "held"),
    [
        (0, 8, b"01234567"),
        (0, 16, b"0123456789abcdef"),
        (8, 8, b"89abcdef"),
        (9, 8, None),
        (16, 16, b"ghijklmnopqrstuv"),
        (16, 17, None),
        (36, 4, None),
        (36, 8, None),
        (40, 8, b"wxyzWXYZ"),
        (41, 8, None),
        (48, 1, None),
        (-1, 1, None),
    ],
)
def test_places(flat: FlatBytes, offset: int, size: int, held: bytes | None) -> None:
    view, (place,) = flat.places(np.array([offset]), np.array([size]))
    assert (None if place < 0 else bytes(view[place : place + size])) == held
    view.release()


def test_bytes_that_no_record_wrote_are_zeros(flat: FlatBytes) -> None:
    assert flat.read_at(12, 32) == b"cdefghijklmnopqrstuv" + bytes(8) + b"wxyz"

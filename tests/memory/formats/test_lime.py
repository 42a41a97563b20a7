"""LiME files, made field by field."""

from __future__ import annotations

import struct

import pytest

from fivefold.errors import FormatError
from fivefold.memory import open_source
from fivefold.units import PhysAddr


def test_ranges(make, saved) -> None:
    with open_source(saved(make.lime([(0x100000, b"\x33" * 4096), (0x1000, b"\x44" * 8192)]))) as source:
        assert source.extents == [(0x1000, 0x3000), (0x100000, 0x101000)]
        assert source.memory.read(PhysAddr(0x100FFF), 1) == b"\x33"
        assert source.format == "LiME"


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ((0x4C694D45, 2, 0x5000, 0x5FFF), "LiME header at 0x1020 has version 2, expected 1"),
        ((0x4C694D46, 1, 0x5000, 0x5FFF), "no LiME header at 0x1020, expected 'EMiL'"),
        ((0x4C694D45, 1, 0x5000, 0x4FFF), "LiME range at 0x1020 ends at 0x4fff, before its start 0x5000"),
        (
            (0x4C694D45, 1, 0, (1 << 64) - 1),
            "LiME range 0x0-0xffffffffffffffff at 0x1020 needs 18446744073709551616 bytes, 4096 are left: "
            "truncated or forged; copy or take it again",
        ),
        ((0x4C694D45, 1, 0x1800, 0x27FF), "ranges overlap in physical memory, expected each byte once"),
    ],
)
def test_forged(make, saved, header: tuple[int, ...], message: str) -> None:
    path = saved(make.lime([(0x1000, bytes(4096))]) + struct.pack("<IIQQ8x", *header) + bytes(4096))
    with pytest.raises(FormatError) as error:
        open_source(path)
    assert str(error.value) == f"{path}: {message}"


def test_truncated(make, saved) -> None:
    with pytest.raises(
        FormatError, match=r"needs 4096 bytes, 4095 are left: truncated or forged; copy or take it again$"
    ):
        open_source(saved(make.lime([(0x1000, bytes(4096))])[:-1]))

"""Raw images and their maps."""

from __future__ import annotations

import pytest

from fivefold.errors import FormatError, MemoryReadError
from fivefold.memory import open_source, parse_ram_map
from fivefold.units import PhysAddr

IMAGE = b"".join(bytes([number]) * 4096 for number in range(1, 9))


def test_whole_file_without_a_map(saved) -> None:
    with open_source(saved(IMAGE)) as source:
        assert source.extents == [(0, 0x8000)]
        assert source.memory.read(PhysAddr(0x1FFF), 2) == b"\x02\x03"
        assert source.notes == ("no header was recognised: taken as raw memory from physical 0, without holes",)
        assert (source.format, source.cpus, source.vmcoreinfo) == ("raw image", (), {})


def test_map_with_a_hole_and_an_offset(saved) -> None:
    with open_source(saved(IMAGE), ram_map="4G-0x100002000=0x6000, 0x1000-8K") as source:
        assert source.extents == [(0x1000, 0x2000), (1 << 32, (1 << 32) + 0x2000)]
        assert source.memory.read(PhysAddr((1 << 32) + 0xFFF), 2) == b"\x07\x08"
        with pytest.raises(MemoryReadError):
            source.memory.read(PhysAddr(0x2000), 1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "'' is not a range; expected START-END or START-END=OFFSET, such as 4G-6G=2G"),
        ("1M", "'1M' is not a range; expected START-END or START-END=OFFSET, such as 4G-6G=2G"),
        (
            "1M-x",
            "'x' is not an address; expected hexadecimal such as ffff888000000000, or decimal with K, M, G, T or P",
        ),
        ("1M-1M", "range '1M-1M' is empty or too large; expected START below END, END up to 2^64"),
        ("2M-1M", "range '2M-1M' is empty or too large; expected START below END, END up to 2^64"),
        ("0-99999P", "'99999P' does not fit in 64 bits"),
        ("0-2M,1M-3M", "RAM map ranges overlap at 0x100000"),
    ],
)
def test_maps_are_refused(saved, text: str, message: str) -> None:
    with pytest.raises(ValueError) as error:
        parse_ram_map(text)
    assert str(error.value) == message
    with pytest.raises(ValueError):
        open_source(saved(IMAGE), ram_map=text)


def test_map_past_the_file(saved) -> None:
    path = saved(IMAGE)
    with pytest.raises(FormatError) as error:
        open_source(path, ram_map="0x1000-0x9000=0x1000")
    assert str(error.value) == f"{path}: RAM map puts 0x1000-0x9000 at file offset 0x1000, the file ends at 0x8000"

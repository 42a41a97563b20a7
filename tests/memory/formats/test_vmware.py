"""VMware's snapshots, made tag by tag."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from fivefold.errors import FormatError
from fivefold.memory import open_source
from fivefold.units import PhysAddr

MAGIC = b"\xd2\xbe\xd2\xbe"


def tag(name: str, data: bytes, *indices: int, long: int = 0) -> bytes:
    """*long* is the size that stands for one that comes in front of the data: 62 or 63."""
    size = long or len(data)
    out = bytes([len(indices) << 6 | size, len(name)]) + name.encode()
    out += b"".join(struct.pack("<I", one) for one in indices)
    return out + (struct.pack("<QQH", len(data), len(data), 0) if long else b"") + data


def snapshot(groups: dict[str, bytes], magic: bytes = MAGIC) -> bytes:
    at, table, body = 12 + 80 * len(groups), b"", b""
    for name, tags in groups.items():
        table += struct.pack("<64sQQ", name.encode(), at + len(body), len(tags) + 2)
        body += tags + b"\0\0"
    return struct.pack("<4sII", magic, 8, len(groups)) + table + body


def regions(*rows: tuple[int, int, int]) -> bytes:
    out = tag("note", b"n" * 5000, long=63) + tag("regionsCount", struct.pack("<I", len(rows)))
    for number, row in enumerate(rows):
        for name, value in zip(("regionPPN", "regionPageNum", "regionSize"), row, strict=True):
            out += tag(name, struct.pack("<I", value), number)
    return out


CPU = b"".join(
    tag("CR64", struct.pack("<Q", value), cpu, number)
    for cpu, cr3 in ((0, 0x5000), (1, 0x6000))
    for number, value in ((0, 0x80050033), (3, cr3), (4, 0x1020))
) + tag("rip", struct.pack("<Q", 0xFFFFFFFF81000000), 0)
MEMORY = b"".join(bytes([n]) * 4096 for n in range(6))
GOOD = snapshot({"Checkpoint": tag("x", b"1"), "cpu": CPU, "memory": regions((0, 0, 4), (0x100000, 4, 2))})


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "guest.vmem").write_bytes(MEMORY)
    (tmp_path / "guest.vmss").write_bytes(GOOD)
    return tmp_path


@pytest.mark.parametrize("name", ["guest.vmem", "guest.vmss"])
def test_both_names(files: Path, name: str) -> None:
    with open_source(files / name) as source:
        assert source.format == "VMware snapshot, vmss and vmem"
        assert source.extents == [(0, 0x4000), (0x100000000, 0x100002000)]
        assert source.memory.read(PhysAddr(0x100001000), 2) == b"\5\5"
        assert [(cpu.cr0, cpu.cr3, cpu.cr4) for cpu in source.cpus] == [
            (0x80050033, 0x5000, 0x1020),
            (0x80050033, 0x6000, 0x1020),
        ]
        assert source.cpus[0].rip == 0xFFFFFFFF81000000


@pytest.mark.parametrize("long", [62, 63])
@pytest.mark.parametrize("magic", [b"\xd0\xbe\xd2\xbe", MAGIC])
def test_data_whose_size_comes_in_front(files: Path, long: int, magic: bytes) -> None:
    """Old snapshots have sizes of 4 bytes, which the first byte says."""
    data = bytes(range(256)) * 17
    first = tag("before", data, long=long)
    if magic[0] & 0xF == 0:
        first = first.replace(
            struct.pack("<QQH", len(data), len(data), 0), struct.pack("<IIH", len(data), len(data), 0)
        )
        memory = regions((0, 0, 4)).partition(tag("regionsCount", struct.pack("<I", 1)))
    else:
        memory = ("", "", regions((0, 0, 4)))
    tags = first + (memory[1] + memory[2] if memory[1] else memory[2])
    (files / "guest.vmss").write_bytes(snapshot({"memory": tags, "cpu": CPU}, magic))
    with open_source(files / "guest.vmss") as source:
        assert source.extents == [(0, 0x4000)]
        assert source.cpus[1].cr3 == 0x6000


def test_alone(files: Path) -> None:
    (files / "guest.vmss").rename(files / "other.vmss")
    with open_source(files / "guest.vmem") as source:
        assert source.format == "raw image" and source.extents == [(0, 0x6000)]
    with pytest.raises(FormatError, match=r"its memory is in .*other\.vmem: cannot open"):
        open_source(files / "other.vmss")


def test_cut(files: Path) -> None:
    note = GOOD.index(b"n" * 5000)
    for size in range(4, len(GOOD) - 2):
        if note + 8 < size < note + 4992 and size % 499:
            continue  # all alike
        (files / "guest.vmss").write_bytes(GOOD[:size])
        with pytest.raises(FormatError):
            open_source(files / "guest.vmss")


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (struct.pack("<4sII", MAGIC, 8, 1 << 31), "2147483648 groups"),
        (snapshot({"memory": tag("regionsCount", struct.pack("<I", 1 << 31))}), "regions of memory"),
        (snapshot({"memory": regions((0, 5, 2))}), "truncated or forged"),
        (snapshot({"memory": tag("regionsCount", struct.pack("<I", 1))}), "region 0"),
    ],
)
def test_forged(files: Path, data: bytes, says: str) -> None:
    (files / "guest.vmss").write_bytes(data)
    with pytest.raises(FormatError, match=says):
        open_source(files / "guest.vmss")

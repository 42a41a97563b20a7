"""VMware's snapshots, made tag by tag."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from fivefold.errors import FormatError
from fivefold.memory import open_source
from fivefold.memory.formats import vmware
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
@pytest.mark.parametrize("magic", [b"\xd0\xbe\xd2\xbe", b"\xd1\xba\xd1\xba", MAGIC, b"\xd3\xbe\xd3\xbe"])
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


def read(files: Path, **groups: bytes) -> list[tuple[int, int]]:
    """The extents of a snapshot with these groups."""
    (files / "guest.vmss").write_bytes(snapshot(groups))
    with open_source(files / "guest.vmss") as source:
        return [tuple(one) for one in source.extents]


@pytest.mark.parametrize(
    ("row", "extents"),
    [
        ((0, 0, 6), [(0, 0x6000)]),
        ((5, 5, 1), [(0x5000, 0x6000)]),
        ((5, 0, 0), []),
        (((1 << 32) - 1, 0, 1), [(0xFFFFFFFF000, 0x100000000000)]),
        ((0, 5, 2), None),
        ((0, 0, 7), None),
    ],
)
def test_regions(files: Path, row: tuple[int, int, int], extents: list[tuple[int, int]] | None) -> None:
    if extents is not None:
        assert read(files, memory=regions(row)) == extents
        return
    with pytest.raises(FormatError) as error:
        read(files, memory=regions((0, 0, 1), row))
    assert str(error.value) == (
        f"{files}/guest.vmem: region 1 of {files}/guest.vmss is {row[2] * 4096} bytes at file offset "
        f"{row[1] * 4096:#x}; the file ends at 0x6000: truncated or forged; copy or take it again"
    )


def long_regions(page: int) -> bytes:
    """A region of one page whose numbers have eight bytes."""
    rows = zip(("regionPPN", "regionPageNum", "regionSize"), (page, 0, 1), strict=True)
    return tag("regionsCount", b"\1") + b"".join(tag(name, struct.pack("<Q", value), 0) for name, value in rows)


def test_regions_up_to_52_bits(files: Path) -> None:
    assert read(files, memory=long_regions((1 << 40) - 1)) == [((1 << 52) - 0x1000, 1 << 52)]
    with pytest.raises(FormatError, match="region 0 of"):
        read(files, memory=long_regions(1 << 40))


@pytest.mark.parametrize("missing", ["regionPPN", "regionPageNum", "regionSize"])
def test_a_region_that_lacks_a_number(files: Path, missing: str) -> None:
    for wrong in (b"regionXXX"[: len(missing)].ljust(len(missing), b"x"), None):
        whole = regions((0, 0, 1))
        if wrong is not None:
            whole = whole.replace(missing.encode(), wrong)
        else:  # of nine bytes it is no number
            at = whole.index(missing.encode()) - 2
            one = tag(missing, struct.pack("<I", 1 if missing == "regionSize" else 0), 0)
            assert whole[at : at + len(one)] == one
            whole = whole[:at] + tag(missing, bytes(9), 0) + whole[at + len(one) :]
        with pytest.raises(FormatError, match="region 0 of"):
            read(files, memory=whole)


def test_a_snapshot_without_a_map(files: Path) -> None:
    for groups in ({"cpu": CPU}, {"cpu": CPU, "memory": tag("x", b"1")}, {"cpu": CPU, "memory": regions()}):
        (files / "guest.vmss").write_bytes(snapshot(groups))
        with open_source(files / "guest.vmss") as source:
            assert source.extents == [(0, 0x6000)]
            assert source.notes == ("the snapshot has no map: memory begins at 0",)
            assert source.format == "VMware snapshot, vmss and vmem"
            assert [cpu.cr3 for cpu in source.cpus] == [0x5000, 0x6000]
    assert read(files, memory=regions((0, 0, 1))) == [(0, 0x1000)]


def test_every_register(files: Path) -> None:
    tags = b"".join(tag("CR64", struct.pack("<Q", 100 + number), 0, number) for number in range(5))
    tags += tag("EFER", struct.pack("<Q", 0xD01), 0) + tag("rip", struct.pack("<Q", 7), 0)
    tags += tag("CR64", struct.pack("<Q", 203), 1, 3) + tag("CR64", struct.pack("<Q", 303), 3, 3)
    (files / "guest.vmss").write_bytes(snapshot({"cpu": tags, "memory": regions((0, 0, 6))}))
    with open_source(files / "guest.vmss") as source:
        first, second = source.cpus
        assert (first.cr0, first.cr2, first.cr3, first.cr4, first.efer, first.rip) == (100, 102, 103, 104, 0xD01, 7)
        assert (second.cr0, second.cr3, second.efer, second.general) == (None, 203, None, {})
        assert first.source == "the VMware snapshot"
        assert source.notes == ()


def test_bounds(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tags = 2 + 3 * 2
    for name, most, says in (
        ("MOST_GROUPS", 3, "3 groups in a VMware snapshot; expected at most 2"),
        ("MAX_SPANS", 2, "2 regions of memory, expected at most 1"),
        ("MOST_TAGS", tags, f"more than {tags - 1} tags in a group"),
    ):
        monkeypatch.setattr(vmware, name, most)
        open_source(files / "guest.vmss").close()
        monkeypatch.setattr(vmware, name, most - 1)
        with pytest.raises(FormatError) as error:
            open_source(files / "guest.vmss")
        assert str(error.value) == f"{files}/guest.vmss: {says}"
        monkeypatch.undo()
    monkeypatch.setattr(vmware, "MAX_CPUS", 1)
    with open_source(files / "guest.vmss") as source:
        assert len(source.cpus) == 1


@pytest.mark.parametrize("size", [4096, 4097])
def test_long_data_up_to_a_page_is_kept(files: Path, size: int) -> None:
    """What is longer is passed over; and its place may be the very end of the file."""
    (files / "long").write_bytes(snapshot({"memory": tag("x", b"y" * size, long=63) + tag("z", b"1")}))
    with vmware.FileBytes.open(files / "long") as file:
        found = vmware._tags(file, vmware._groups(file)["memory"])
        assert found == {("x", ()): b"y" * size if size <= 4096 else b"", ("z", ()): b"1"}
        at = file.read_at(0, file.size).index(struct.pack("<QQ", size, size))
        assert vmware._long(file, at) == (at + 18, size)
        end = file.size
    grown = (
        (files / "long").read_bytes().replace(struct.pack("<QQ", size, size), struct.pack("<QQ", end - at - 18, size))
    )
    (files / "long").write_bytes(grown)
    with vmware.FileBytes.open(files / "long") as file:
        assert vmware._long(file, at) == (at + 18, end - at - 18)
    (files / "long").write_bytes(grown[:-1])
    with (
        vmware.FileBytes.open(files / "long") as file,
        pytest.raises(
            FormatError, match=rf"long: {end - at - 18} bytes at {at + 18:#x}, the file ends at {end - 1:#x}"
        ),
    ):
        vmware._long(file, at)


@pytest.mark.parametrize("ending", [".vmss", ".vmsn"])
@pytest.mark.parametrize("magic", [b"\xd0\xbe\xd2\xbe", b"\xd1\xba\xd1\xba", MAGIC, b"\xd3\xbe\xd3\xbe", b"text"])
def test_what_lies_beside_memory(files: Path, ending: str, magic: bytes) -> None:
    (files / "guest.vmss").unlink()
    (files / f"guest{ending}").write_bytes(
        snapshot({"memory": long_regions(1)}, magic)[: 3 if magic == b"text" else None]
    )
    with open_source(files / "guest.vmem") as source:
        assert source.format == ("raw image" if magic == b"text" else f"VMware snapshot, {ending[1:]} and vmem")
    if magic == b"text" and ending == ".vmss":  # which does not hide the other
        (files / "guest.vmsn").write_bytes(GOOD)
        with open_source(files / "guest.vmem") as source:
            assert source.format == "VMware snapshot, vmsn and vmem"
    (files / "guest.raw").write_bytes(MEMORY)
    with open_source(files / "guest.raw") as source:
        assert source.format == "raw image"

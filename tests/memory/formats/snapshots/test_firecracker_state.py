"""A microVM's state, whose form nobody wrote down: which lists of regions and which registers are taken for such."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from fivefold.errors import FormatError
from fivefold.memory.files import FileBytes
from fivefold.memory.formats.snapshots import firecracker
from fivefold.memory.formats.snapshots.firecracker import _lists, _memory_of, _regions, is_state, read_firecracker
from fivefold.memory.formats.snapshots.kvm_registers import cpu_of_names, places_of_sregs
from fivefold.units import PAGE, PhysAddr

CONTROLS = {"cr0": 0x8000_0001, "cr2": 0, "cr3": 0x1000, "cr4": 0x20, "cr8": 0, "efer": 0x500, "apic": 0xFEE0_0000}


def sregs(padding: tuple[int, int, int] = (0, 0, 0), **changed: int) -> bytes:
    """The special registers of a CPU in long mode with as few bits as there can be, but for *changed*."""
    raw = bytearray(224)
    for at, value in zip((23, 47, 71), padding, strict=True):
        raw[at] = value
    return bytes(raw) + struct.pack("<7Q", *(CONTROLS | changed).values()) + bytes(32)


def regs(flags: int = 2) -> bytes:
    return struct.pack("<18Q", *range(100, 117), flags)


@pytest.mark.parametrize(
    ("change", "is_one"),
    [
        ({}, True),
        ({"cr0": 0xFFFF_FFFF}, True),
        ({"cr0": 0x8000_0000}, False),
        ({"cr0": 1}, False),
        ({"cr0": 0x1_8000_0001}, False),
        ({"cr4": 0}, False),
        ({"cr4": 0xFFFF_FFFF}, True),
        ({"cr4": 0x1_0000_0020}, False),
        ({"efer": 0x100}, False),
        ({"efer": 0x400}, False),
        ({"efer": 0xFFFF_FFFF}, True),
        ({"efer": 0x1_0000_0500}, False),
        ({"cr8": 15}, True),
        ({"cr8": 16}, False),
        ({"cr3": (1 << 63) - 1}, True),
        ({"cr3": 1 << 63}, False),
        ({"apic": 0xFEE0_0FFF}, True),
        ({"apic": 0xFEE0_1000}, False),
        ({"apic": 0x1_FEE0_0000}, False),
        ({"padding": (1, 0, 0)}, False),
        ({"padding": (0, 1, 0)}, False),
        ({"padding": (0, 0, 1)}, False),
    ],
)
def test_what_is_taken_for_special_registers(change: dict[str, object], is_one: bool) -> None:
    special = sregs(**change)  # type: ignore[arg-type]
    assert len(special) == 312
    assert list(places_of_sregs(special)) == ([0] if is_one else [])
    assert list(places_of_sregs(b"abc" + special + b"abc" + special)) == ([3, 318] if is_one else [])
    assert list(places_of_sregs(special[1:])) == list(places_of_sregs(special[:-1])) == []


@pytest.mark.parametrize("missing", ["cr0", "cr2", "cr3", "cr4", "efer"])
def test_registers_by_name(missing: str) -> None:
    whole = {name: number for number, name in enumerate(("cr0", "cr2", "cr3", "cr4", "efer"))}
    cpu = cpu_of_names(whole, {"rax": 1, "r15": 2, "rip": 3, "rflags": 4, "cr3": 5, "rbx": -1, "rcx": "6"}, "toy")
    assert cpu is not None
    assert cpu.general == {"rax": 1, "r15": 2, "rip": 3, "rflags": 4}
    assert (cpu.cr0, cpu.cr2, cpu.cr3, cpu.cr4, cpu.efer, cpu.source) == (0, 1, 2, 3, 4, "toy")
    for general, found in ((list(regs()), 100), (list(regs())[1:], None), (None, None), ("rax", None)):
        cpu = cpu_of_names(whole, general, "toy")
        assert cpu is not None and cpu.general.get("rax") == found
    assert cpu_of_names({**whole, missing: -1}, {}, "toy") is None
    del whole[missing]
    assert cpu_of_names(whole, {}, "toy") is None


def regions(*rows: tuple[int, int], stride: int = 24, count: int | None = None) -> bytes:
    out = struct.pack("<Q", len(rows) if count is None else count)
    for start, size in rows:
        out += struct.pack("<QQ", start, size).ljust(stride, b"\xff")
    return out


LOW, HIGH = (0, 0x3000), (1 << 32, 0x1000)


@pytest.mark.parametrize(
    ("rows", "is_list"),
    [
        ([LOW, HIGH], True),
        ([LOW, (0x3000, 0x1000)], True),
        ([LOW, (0x2000, 0x1000)], False),
        ([(0x1000, 0x1000), HIGH], False),
        ([(0, 0), HIGH], False),
        ([LOW, (1 << 32, 0)], False),
        ([LOW, (1 << 32, 0x800)], False),
        ([LOW, ((1 << 32) + 0x800, 0x1000)], False),
        ([LOW, ((1 << 52) - 0x1000, 0x1000)], True),
        ([LOW, ((1 << 52) - 0x1000, 0x2000)], False),
        ([(0, 1 << 52)], True),
    ],
)
def test_lists_of_regions(rows: list[tuple[int, int]], is_list: bool) -> None:
    for stride in (16, 24):
        raw = regions(*rows, stride=stride)
        assert _regions(raw, 8, len(rows), stride) == (rows if is_list else None)
        assert _regions(raw[: len(raw) - stride + 15], 8, len(rows), stride) is None
        assert _regions(raw[: len(raw) - stride + 16], 8, len(rows), stride) == (rows if is_list else None)
        assert (rows in list(_lists(b"abc" + raw))) is is_list


def with_flags(*rows: tuple[int, int, int]) -> bytes:
    """Regions that end with a kind and a list of so many flags."""
    out = struct.pack("<Q", len(rows))
    for start, size, flags in rows:
        out += struct.pack("<QQIQ", start, size, 7, flags) + b"\1" * min(flags, 100)
    return out


def test_regions_with_flags() -> None:
    raw = with_flags((*LOW, 0), (*HIGH, 5), (2 << 32, 0x1000, 1))
    wanted = [LOW, HIGH, (2 << 32, 0x1000)]
    assert _regions(raw, 8, 3, None) == wanted
    assert wanted in list(_lists(b"\1" + raw))
    assert _regions(raw[:-1], 8, 3, None) == wanted
    assert _regions(raw[:-2], 8, 3, None) is None
    assert _regions(with_flags((*LOW, 1 << 20)), 8, 1, None) == [LOW]
    assert _regions(with_flags((*LOW, (1 << 20) + 1)), 8, 1, None) is None


def test_how_many_lists_are_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = regions(LOW) * 5
    assert list(_lists(raw)) == [[LOW], [LOW]] * 5
    monkeypatch.setattr(firecracker, "MOST_PLACES", 3)
    assert list(_lists(raw)) == [[LOW], [LOW]] * 3
    monkeypatch.undo()
    many = [(number << 20, PAGE) for number in range(64)]
    assert many in list(_lists(regions(*many)))
    assert [*many, (64 << 20, PAGE)] not in list(_lists(regions(*many, (64 << 20, PAGE))))


def state(*cpus: bytes) -> bytes:
    return struct.pack("<Q", 0x0710_1984_8664_0003) + regions(LOW, HIGH) + b"".join(cpus)


def snapshot(folder: Path, raw: bytes, **files: int) -> FileBytes:
    (folder / "vmstate").write_bytes(raw)
    for name, size in (files or {"mem": 0x4000}).items():
        (folder / name).write_bytes(b"".join(bytes([at]) * PAGE for at in range(size // PAGE)))
    return FileBytes.open(folder / "vmstate")


def test_memory_beside_the_state(tmp_path: Path) -> None:
    source = read_firecracker(snapshot(tmp_path, state(), mem=0x4000, other=0x2000, third=0x5000))
    assert source.extents == [(0, 0x3000), (1 << 32, (1 << 32) + 0x1000)]
    assert source.memory.read(PhysAddr(0x2000), 2) == b"\2\2"
    assert source.memory.read(PhysAddr(1 << 32), 2) == b"\3\3"
    assert source.notes == ("memory is in mem, by its size; registers are told by their form",)
    assert source.cpus == ()


def test_the_longest_list_counts(tmp_path: Path) -> None:
    for name, size in (("a", 0x3000), ("b", 0x4000)):
        (tmp_path / name).write_bytes(bytes(size))
    (tmp_path / "folder").mkdir()
    lists = [[LOW], [LOW, HIGH], [(0, 0x8000)]]
    assert _memory_of(tmp_path / "vmstate", lists) == (tmp_path / "b", [LOW, HIGH])
    assert _memory_of(tmp_path / "b", lists) == (tmp_path / "a", [LOW])
    with pytest.raises(FormatError) as error:
        _memory_of(tmp_path / "vmstate", [[(0, size)] for size in (0x9000, 0x6000, 0x7000, 0x8000, 0x6000)])
    assert str(error.value) == (
        f"{tmp_path}/vmstate holds registers; expected the memory beside it, in a file of 24576, 28672, 32768 bytes"
    )
    for name in ("c", "d", "e"):
        (tmp_path / name).write_bytes(bytes(0x4000))
    with pytest.raises(FormatError, match=r"vmstate: b, c, d are all as long as the memory; expected it alone"):
        _memory_of(tmp_path / "vmstate", lists)


def test_how_many_files_are_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(4):
        (tmp_path / f"{number}").write_bytes(bytes(PAGE * (number + 1)))
    monkeypatch.setattr(firecracker, "MOST_BESIDE", 4)
    assert _memory_of(tmp_path / "x", [[(0, 4 * PAGE)]])[0].name == "3"
    monkeypatch.setattr(firecracker, "MOST_BESIDE", 3)
    with pytest.raises(FormatError):
        _memory_of(tmp_path / "x", [[(0, 4 * PAGE)]])


@pytest.mark.parametrize(
    ("flags", "is_general"),
    [(2, True), (0x3F7FD7, True), (0, False), (1, False), (0xA, False), (0x8002, False), (0x400002, False)],
)
def test_registers_of_cpus(tmp_path: Path, flags: int, is_general: bool) -> None:
    """General registers lie in front of the special ones, or eight bytes before; CPUs come in their order."""
    general = regs(flags)
    between = struct.pack("<Q", 312)
    raw = state(b"abc", general, sregs(cr3=0x1000), b"abc", general, between, sregs(cr3=0x2000), sregs(cr3=0x3000))
    cpus = read_firecracker(snapshot(tmp_path, raw)).cpus
    assert [cpu.cr3 for cpu in cpus] == [0x1000, 0x2000, 0x3000]
    assert [cpu.rip for cpu in cpus] == ([116, 116, None] if is_general else [None] * 3)
    assert [cpu.general.get("rax") for cpu in cpus] == ([100, 100, None] if is_general else [None] * 3)
    assert cpus[0].source == "Firecracker's state"


def test_registers_at_the_beginning() -> None:
    assert [cpu.rip for cpu in firecracker._cpus(regs() + sregs())] == [116]
    assert [cpu.rip for cpu in firecracker._cpus(regs()[1:] + sregs())] == [None]
    assert [cpu.rip for cpu in firecracker._cpus(regs() + bytes(7) + sregs())] == [None]


def test_bounds_of_a_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(firecracker, "MAX_CPUS", 2)
    assert len(firecracker._cpus(sregs() * 3)) == 2
    file = snapshot(tmp_path, state())
    monkeypatch.setattr(firecracker, "MOST_STATE", file.size)
    assert read_firecracker(FileBytes.open(tmp_path / "vmstate")).cpus == ()
    monkeypatch.setattr(firecracker, "MOST_STATE", file.size - 1)
    with pytest.raises(FormatError) as error:
        read_firecracker(FileBytes.open(tmp_path / "vmstate"))
    assert str(error.value).endswith(
        f"vmstate has {len(state())} bytes; expected at most {len(state()) - 1} of a microVM's state"
    )


@pytest.mark.parametrize(
    ("head", "is_one"),
    [
        (0x0710_1984_8664_0000, True),
        (0x0710_1984_8664_FFFF, True),
        (0x0710_1984_8665_0000, False),
        (0x0711_1984_8664_0000, False),
        (0x0710_1984_AAAA_0000, False),
    ],
)
def test_how_a_state_begins(head: int, is_one: bool) -> None:
    raw = struct.pack("<Q", head)
    assert is_state(raw) is is_state(raw + b"x") is is_one
    assert not is_state(raw[:7]) and not is_state(b"")

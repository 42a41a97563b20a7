"""CPUs of a migration stream by the description at its end: every way in which the two may not fit."""

from __future__ import annotations

import json
import struct
from typing import Any

import pytest

from fivefold.errors import FormatError
from fivefold.memory.files import FileBytes
from fivefold.memory.formats.snapshots import qemu_devices
from fivefold.memory.formats.snapshots.qemu_devices import _size, cpus_of
from fivefold.memory.registers import CpuState, Segment

Field = tuple[str, int, int, bytes]


def segments(first: int, count: int) -> bytes:
    """Selectors, bases, limits and flags that say which they are."""
    return b"".join(struct.pack(">IQII", n, 0x1000 * n, 0x100 + n, 0x10000 * n) for n in range(first, first + count))


FIELDS: list[Field] = [
    ("env.regs", 8, 16, struct.pack(">16Q", *range(100, 116))),
    ("env.eip", 8, 1, struct.pack(">Q", 77)),
    ("env.eflags", 8, 1, struct.pack(">Q", 0x46)),
    ("env.segs", 20, 6, segments(1, 6)),
    *((f"env.{name}", 20, 1, segments(at, 1)) for at, name in ((7, "ldt"), (8, "tr"), (9, "gdt"), (10, "idt"))),
    *((f"env.cr[{n}]", 8, 1, struct.pack(">Q", 0x1000 + n)) for n in (0, 2, 3, 4)),
    ("env.cr[3]", 8, 1, struct.pack(">Q", 99)),
    ("env.efer", 8, 1, struct.pack(">Q", 0xD01)),
]


def name(text: bytes) -> bytes:
    return bytes([len(text)]) + text


def device(fields: list[Field], number: int = 0, **changed: Any) -> dict[str, Any]:
    told = [{"name": one, "size": size} | ({"array_len": n} if n > 1 else {}) for one, size, n, _ in fields]
    return {"name": "cpu", "instance_id": number, "vmsd_name": "cpu", "version": 12, "fields": told} | changed


def section(fields: list[Field], number: int = 0, tail: bytes = b"", foot: int | None = None) -> bytes:
    head = b"\x04" + struct.pack(">I", 40 + number) + name(b"cpu") + struct.pack(">II", number, 12)
    body = b"".join(raw for *_, raw in fields) + tail
    return head + body + b"\x7e" + struct.pack(">I", 40 + number if foot is None else foot)


def told(*devices: Any, **changed: Any) -> bytes:
    text = json.dumps({"page_size": 4096, "devices": list(devices)} | changed).encode()
    return b"\0\x06" + struct.pack(">I", len(text)) + text


def found(data: bytes, at: int = 0) -> tuple[CpuState, ...]:
    return cpus_of(FileBytes(data, "toy"), at)


def test_every_register() -> None:
    (cpu,) = found(section(FIELDS) + told(device(FIELDS)))
    order = ["rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", *(f"r{n}" for n in range(8, 16))]
    assert cpu.general == {one: 100 + at for at, one in enumerate(order)} | {"rip": 77, "rflags": 0x46}
    assert (cpu.cr0, cpu.cr2, cpu.cr3, cpu.cr4, cpu.efer) == (0x1000, 0x1002, 0x1003, 0x1004, 0xD01)
    names = ["es", "cs", "ss", "ds", "fs", "gs", "ldt", "tr", "gdt", "idt"]
    assert cpu.segments == {one: Segment(n, 0x1000 * n, 0x100 + n, 0x10000 * n) for n, one in enumerate(names, 1)}
    assert cpu.source == "the QEMU stream"


@pytest.mark.parametrize("gone", range(len(FIELDS)))
def test_without_a_field(gone: int) -> None:
    """What is not described is not known, and all else is where it is."""
    fields = FIELDS[:gone] + FIELDS[gone + 1 :]
    (cpu,) = found(section(fields) + told(device(fields)))
    (whole,) = found(section(FIELDS) + told(device(FIELDS)))
    assert len(cpu.general) == {0: 2, 1: 17, 2: 17}.get(gone, 18)
    assert len(cpu.segments) == {3: 4}.get(gone, 9 if 4 <= gone <= 7 else 10)
    numbers = {one: getattr(cpu, one) for one in ("cr0", "cr2", "cr3", "cr4", "efer")}
    wanted = {one: getattr(whole, one) for one in numbers}
    lost = {8: "cr0", 9: "cr2", 11: "cr4", 13: "efer"}.get(gone)
    assert numbers == wanted | ({lost: None} if lost else {}) | ({"cr3": 99} if gone == 10 else {})


def test_what_is_not_whole() -> None:
    """Seven bytes of registers are one less, nineteen of a segment none; of two of one name the first counts."""
    fields: list[Field] = [
        ("env.regs", 1, 23, struct.pack(">2Q", 1, 2) + b"\xff" * 7),
        ("env.segs", 39, 1, segments(1, 2)[:-1]),
        ("env.gdt", 19, 1, bytes(19)),
        ("env.idt", 20, 2, segments(7, 2)),
        ("env.efer", 0, 1, b""),
    ]
    (cpu,) = found(section(fields) + told(device(fields)))
    assert cpu.general == {"rax": 1, "rcx": 2}
    assert cpu.segments == {"es": Segment(1, 0x1000, 0x101, 0x10000), "idt": Segment(7, 0x7000, 0x107, 0x70000)}
    assert cpu.efer is None


def test_several_cpus_among_other_devices() -> None:
    one = [("env.eip", 8, 1, struct.pack(">Q", 5))]
    data = (
        b"\x04"
        + section(FIELDS, 1)
        + b"timer"
        + section(one, 0)
        + told({"name": "x"}, device(one), 7, device(FIELDS, 1))
    )
    assert [cpu.rip for cpu in found(b"before" + data, 6)] == [5, 77]
    assert found(data + b"tail") == found(data)
    with pytest.raises(FormatError, match=r"^toy: CPU 1 is not where the stream's description of it says$"):
        found(data, 30)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        section(FIELDS),
        section(FIELDS) + b"\0\x06\0\0\0\x02[]",
        section(FIELDS) + told(devices=7),
        section(FIELDS) + told(devices=None),
        section(FIELDS) + told(7, "cpu", {"vmsd_name": "cpu"}, {"vmsd_name": "cpu", "fields": 7}),
        section(FIELDS) + told(device(FIELDS, vmsd_name="cpu_common")),
        section(FIELDS) + told(device(FIELDS))[:-1],
        section(FIELDS) + told(device(FIELDS))[:8] + b"[" * 5000,
    ],
)
def test_streams_without_a_description_of_cpus(text: bytes) -> None:
    assert found(text) == ()


def test_the_last_description_that_is_one_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    good = section(FIELDS) + told(device(FIELDS))
    bad = b"\0\x06\0\0\0\x05{bad}"
    assert len(found(told() + good + bad * 3 + b'\0\x06\0\0\0\x06{"a":')) == 1
    monkeypatch.setattr(qemu_devices, "MOST_TRIED", 4)
    assert len(found(good + bad * 3)) == 1
    assert found(good + bad * 4) == ()


SMALL: list[Field] = [("env.eip", 8, 1, struct.pack(">Q", 5))]


@pytest.mark.parametrize(
    "data",
    [
        section(SMALL, tail=b"x"),
        section(SMALL)[:-5],
        section(SMALL, foot=41),
        section(SMALL).replace(b"\x7e", b"\x7d"),
        b"\x01" + section(SMALL)[1:],
        section(SMALL)[1:],
        section(SMALL, 1),
        section(SMALL).replace(b"\3cpu", b"\3cpv"),
        section(SMALL).replace(struct.pack(">I", 12), struct.pack(">I", 11)),
    ],
)
def test_sections_that_do_not_fit(data: bytes) -> None:
    with pytest.raises(FormatError, match="CPU 0 is not where the stream's description of it says"):
        found(data + told(device(SMALL)))
    # One that only looks like it, in front of the real one, changes nothing.
    assert found(data + section(SMALL) + told(device(SMALL)))[0].rip == 5


@pytest.mark.parametrize(
    "changed",
    [
        {"name": 7},
        {"name": "x" * 256},
        {"name": "\ud800"},
        {"instance_id": "0"},
        {"instance_id": 1 << 32},
        {"version": None},
        {"fields": [{"name": "env.eip", "size": 8}, {"size": -1}]},
        {"fields": [{"name": "env.eip", "size": "8"}]},
        {"fields": [{"name": "env.eip", "size": 8, "array_len": (1 << 24) + 1}]},
        {"fields": [{"name": "env.eip", "size": 8, "array_len": -1}]},
        {"fields": [{"name": "env.eip", "size": 8, "array_len": None}]},
        {"fields": [None]},
        {"subsections": None},
        {"subsections": {}},
        {"subsections": [{}]},
        {"subsections": [{"vmsd_name": 7}]},
        {"subsections": [{"vmsd_name": "x", "fields": [3]}]},
        {"subsections": [{"vmsd_name": "x", "subsections": [3]}]},
    ],
    ids=str,
)
def test_descriptions_that_do_not_fit(changed: dict[str, Any]) -> None:
    with pytest.raises(FormatError, match="CPU 0 is not where the stream's description of it says"):
        found(section(SMALL) + told(device(SMALL) | changed))


def test_sizes_of_parts() -> None:
    """A subsection has a byte in front, its name with a length, and a version; parts may have parts."""
    assert _size({}) == _size({"fields": []}) == 0
    assert _size({"fields": [{"size": 3, "array_len": 5}, {"size": 2}, {"size": 7, "array_len": 0}]}) == 17
    assert _size({"fields": [{"size": 1, "array_len": 1 << 24}]}) == 1 << 24
    inner = {"vmsd_name": "four", "fields": [{"size": 9}], "subsections": [{"vmsd_name": ""}]}
    assert _size({"fields": [{"size": 1}], "subsections": [inner, {"vmsd_name": "x"}]}) == 1 + 10 + 9 + 6 + 7
    deep: dict[str, Any] = {"vmsd_name": "x"}
    for _ in range(5000):
        deep = {"vmsd_name": "x", "subsections": [deep]}
    with pytest.raises(RecursionError):
        _size(deep)
    assert qemu_devices._body(section(SMALL), device(SMALL, subsections=[deep])) is None


def test_bounds_of_a_description(monkeypatch: pytest.MonkeyPatch) -> None:
    sections = section(SMALL) + section(SMALL, 1)
    data = sections + told(device(SMALL), device(SMALL, 1))
    monkeypatch.setattr(qemu_devices, "MAX_CPUS", 2)
    assert len(found(data)) == 2
    monkeypatch.setattr(qemu_devices, "MAX_CPUS", 1)
    with pytest.raises(FormatError, match=r"^toy: more than 1 CPUs in the stream's description$"):
        found(data)
    monkeypatch.undo()
    text = len(data) - len(sections)
    assert len(sections) < text
    for most, count in ((text, 2), (text - 1, 0)):
        monkeypatch.setattr(qemu_devices, "MOST_DESCRIBED", most)
        assert len(found(data)) == count
    many = section(FIELDS) * 9 + told(device(SMALL)) + section(SMALL)
    for most in (len(many), len(section(FIELDS)) * 9):
        monkeypatch.setattr(qemu_devices, "MOST_DESCRIBED", most)
        with pytest.raises(FormatError):  # looked at, and not found
            found(many)
    monkeypatch.setattr(qemu_devices, "MOST_DESCRIBED", len(section(FIELDS)) * 9 - 1)
    assert found(many) == ()

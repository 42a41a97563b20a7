"""Where Cloud Hypervisor's state says that memory lies: however deep it says so, and what no memory can be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fivefold.errors import FormatError
from fivefold.memory import open_source
from fivefold.memory.formats.snapshots import cloud_hypervisor
from fivefold.units import PhysAddr

LOW, HIGH = {"gpa": 0x1000, "length": 0x2000}, {"gpa": 1 << 32, "length": 0x1000}
EXTENTS = [(0x1000, 0x3000), (1 << 32, (1 << 32) + 0x1000)]
MEMORY = b"\x01" * 0x1000 + b"\x02" * 0x1000 + b"\x03" * 0x1000
TABLE = {"memory_ranges": {"data": [LOW, HIGH]}}


def as_bytes(value: Any) -> list[int]:
    return list(json.dumps(value).encode())


def nested(times: int) -> Any:
    """The table as text in text in text."""
    value: Any = TABLE
    for _ in range(times):
        value = {"state": json.dumps(value)}
    return value


READ: dict[str, Any] = {
    "data": TABLE,
    "regions": {"memory_ranges": {"regions": [LOW, HIGH]}},
    "a list": {"memory_ranges": [LOW, HIGH]},
    "in objects": {"a": {"b": {"c": TABLE}}},
    "in lists": {"a": [1, None, [[TABLE]]]},
    "in a text": {"a": json.dumps(TABLE)},
    "in a list of texts": ["x", "[", json.dumps([TABLE])],
    "in bytes": {"a": as_bytes(TABLE)},
    "in bytes of a list": {"a": as_bytes([TABLE])},
    "in bytes in bytes": {"a": as_bytes({"b": as_bytes(TABLE)})},
    "behind a table that is empty": [{"memory_ranges": []}, TABLE],
    "behind a table of other things": [{"memory_ranges": [LOW, {"gpa": 0}]}, {"memory_ranges": 7}, TABLE],
    "the first of two": [TABLE, {"memory_ranges": [{"gpa": 0, "length": 0x1000}]}],
    "the first of two in an object": {"a": TABLE, "b": {"memory_ranges": [{"gpa": 0, "length": 0x1000}]}},
    "behind bytes that are none": [[0x7B, 300], [0x7B, "x"], [0x7B, -1], [0x7B, 0x7B], [5, 6], TABLE],
    "in texts in texts": nested(4),
    "with more beside": {"memory_ranges": {"data": [{**LOW, "file_offset": 9}, {**HIGH, "name": "x"}]}},
}


@pytest.fixture
def snapshot(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "memory-ranges").write_bytes(MEMORY)
    return tmp_path


@pytest.mark.parametrize("name", READ)
def test_read(snapshot: Path, name: str) -> None:
    (snapshot / "state.json").write_text(json.dumps(READ[name]))
    with open_source(snapshot) as source:
        assert source.extents == EXTENTS
        assert source.memory.read(PhysAddr(0x1FFF), 2) == b"\x01\x02"
        assert source.memory.read(PhysAddr(1 << 32), 0x1000) == MEMORY[0x2000:]


@pytest.mark.parametrize(
    ("name", "is_one"),
    [("", True), ("state.json", True), ("memory-ranges", True), ("config.json", False), ("none", False)],
)
def test_which_files_of_a_folder_are_the_snapshot(snapshot: Path, name: str, is_one: bool) -> None:
    assert not cloud_hypervisor.is_snapshot(snapshot / name)
    (snapshot / "state.json").write_text(json.dumps(TABLE))
    assert cloud_hypervisor.is_snapshot(snapshot / name) is is_one
    (snapshot / "memory-ranges").unlink()
    assert not cloud_hypervisor.is_snapshot(snapshot / name)


def test_ranges_lie_in_the_file_in_their_order(snapshot: Path) -> None:
    (snapshot / "state.json").write_text(json.dumps({"memory_ranges": [HIGH, LOW]}))
    with open_source(snapshot) as source:
        assert source.extents == EXTENTS
        assert source.memory.read(PhysAddr(1 << 32), 1) == b"\x01"
        assert source.memory.read(PhysAddr(0x1FFF), 2) == b"\x02\x03"


TOP = 1 << 52
REFUSED: dict[str, tuple[Any, str]] = {
    "below zero": ([{"gpa": -1, "length": 0x1000}], "no table of memory"),
    "no length": ([{"gpa": 0, "length": 0}], "no table of memory"),
    "a text": ([{"gpa": "0", "length": 0x1000}], "no table of memory"),
    "a fraction": ([{"gpa": 0, "length": 4096.5}], "no table of memory"),
    "no range": ([[0, 0x1000]], "no table of memory"),
    "a byte too long": (
        [{"gpa": 0x1000, "length": 0x3001}],
        "range at 0x1000 needs bytes up to 0x3001, the file ends at 0x3000",
    ),
    "a byte too long at last": (
        [LOW, {"gpa": 1 << 32, "length": 0x1001}],
        "needs bytes up to 0x3001, the file ends at 0x3000",
    ),
    "beyond 52 bits": ([{"gpa": TOP - 0xFFF, "length": 0x1000}], "range at 0xffffffffff001 needs"),
    "overlap": ([LOW, {"gpa": 0x2FFF, "length": 0x1000}], "ranges overlap in physical memory"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(snapshot: Path, name: str) -> None:
    ranges, says = REFUSED[name]
    (snapshot / "state.json").write_text(json.dumps({"memory_ranges": ranges}))
    with pytest.raises(FormatError, match=says):
        open_source(snapshot)


def test_the_last_page_of_52_bits(snapshot: Path) -> None:
    (snapshot / "state.json").write_text(json.dumps({"memory_ranges": [{"gpa": TOP - 0x1000, "length": 0x1000}]}))
    with open_source(snapshot) as source:
        assert source.extents == [(TOP - 0x1000, TOP)]


def test_texts_are_not_unwrapped_without_end(snapshot: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cloud_hypervisor, "_DEEPEST", 3)
    (snapshot / "state.json").write_text(json.dumps(nested(3)))
    open_source(snapshot).close()
    (snapshot / "state.json").write_text(json.dumps(nested(4)))
    with pytest.raises(FormatError, match="no table of memory"):
        open_source(snapshot)


def test_bounds(snapshot: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (snapshot / "state.json").write_text(json.dumps(TABLE))
    monkeypatch.setattr(cloud_hypervisor, "MAX_SPANS", 2)
    open_source(snapshot).close()
    monkeypatch.setattr(cloud_hypervisor, "MAX_SPANS", 1)
    with pytest.raises(FormatError, match="more than 1 ranges of memory"):
        open_source(snapshot)


def test_the_number_of_cpus(snapshot: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    special = {name: number for number, name in enumerate(("cr0", "cr2", "cr3", "cr4", "efer"))}
    cpus = [{"sregs": special}, {"sregs": 7}, {"sregs": {"cr0": 1}}, {"sregs": special}, {"sregs": special}]
    (snapshot / "state.json").write_text(json.dumps([TABLE, *cpus]))
    for most in (5, 3, 2):
        monkeypatch.setattr(cloud_hypervisor, "MAX_CPUS", most)
        with open_source(snapshot) as source:
            assert [cpu.cr3 for cpu in source.cpus] == [2] * min(most, 3)


@pytest.mark.parametrize(("most", "is_found"), [(4, False), (5, True)])
def test_so_many_parts_are_looked_at(
    snapshot: Path, monkeypatch: pytest.MonkeyPatch, most: int, is_found: bool
) -> None:
    (snapshot / "state.json").write_text(json.dumps([{}, {}, {}, TABLE]))
    monkeypatch.setattr(cloud_hypervisor, "MOST_NODES", most)
    if is_found:
        open_source(snapshot).close()
    else:
        with pytest.raises(FormatError, match="no table of memory"):
            open_source(snapshot)

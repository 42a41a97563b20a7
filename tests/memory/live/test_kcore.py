"""The running kernel's memory: a core like /proc/kcore, made small. `tests/live` has a guest's real one."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest

from fivefold.errors import CannotOpenError, FormatError
from fivefold.memory import open_source
from fivefold.memory.live.kcore import open_kcore
from fivefold.units import PhysAddr

DIRECT, IMAGE, VMALLOC = 0xFFFF_8880_0000_0000, 0xFFFF_FFFF_8000_0000, 0xFFFF_C900_0000_0000
NOWHERE = (1 << 64) - 1


def kcore(segments: list[tuple[int, int, int]], data: bytes, notes: bytes = b"", machine: int = 62) -> bytes:
    """A core of (virtual address, physical address, size), by physical address in *data*; NOWHERE shows nothing."""
    count = len(segments) + 1
    at = 64 + 56 * count
    rows = struct.pack("<IIQQQQQQ", 4, 0, at, 0, 0, len(notes), 0, 0)
    for va, pa, size in segments:
        offset = at + len(notes) + (pa & 0xFFFF if pa != NOWHERE else 1 << 60)
        rows += struct.pack("<IIQQQQQQ", 1, 7, offset, va, pa, size, size, 4096)
    head = struct.pack("<16sHHIQQQIHHHHHH", b"\x7fELF\2\1\1", 4, machine, 1, 0, 64, 0, 0, 64, 56, count, 0, 0, 0)
    return head + rows + notes + data


DATA = b"".join(bytes([n]) * 4096 for n in range(8))
INFO = b"OSRELEASE=6.1.0\n"
NOTES = struct.pack("<III", 11, len(INFO), 0) + b"VMCOREINFO\0\0" + INFO + bytes(-len(INFO) % 4)
SEGMENTS = [(VMALLOC, NOWHERE, 1 << 45), (IMAGE + 0x2000, 0x2000, 0x1000), (DIRECT + 0x1000, 0x1000, 0x4000)]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "kcore").write_bytes(kcore(SEGMENTS, DATA, NOTES))
    return tmp_path / "kcore"


def test_memory(place: Path) -> None:
    with open_kcore(str(place)) as source:
        assert source.extents == [(0x1000, 0x5000)]
        assert source.memory.read(PhysAddr(0x1FFF), 0x1002) == b"\1" + b"\2" * 0x1000 + b"\3"
        assert source.vmcoreinfo == {"OSRELEASE": "6.1.0"}
        assert source.live and source.torn and source.cpus == ()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.pread(source.memory._fetch.__self__.fd, 1, 0)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"\x7fELF", "ends at 0x4"),
        (kcore(SEGMENTS, DATA, machine=183), "no core of an x86-64 kernel"),
        (kcore(SEGMENTS, DATA)[:100], "ends at 0x64"),
        (kcore([(DIRECT + 0x1000, 0, 0x1000), (IMAGE, 0, 0x1000)], DATA), "does not say where memory lies"),
    ],
)
def test_refused(place: Path, data: bytes, says: str) -> None:
    place.write_bytes(data)
    with pytest.raises(FormatError, match=says):
        open_kcore(str(place))


def test_pages_that_are_gone(place: Path) -> None:
    place.write_bytes(kcore(SEGMENTS, DATA, NOTES)[:-0x4000])
    with open_kcore(str(place)) as source, pytest.raises(FormatError, match="expected 4096 bytes more"):
        source.memory.read(PhysAddr(0x4000), 4096)


def test_without_the_right(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both names of it lead here, and end in one line."""

    def refuse(*_: object) -> int:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "open", refuse)
    for spec in ("kcore:", "/proc/kcore", "file:/proc/kcore", Path("/proc/kcore")):
        with pytest.raises(CannotOpenError, match=r"cannot open /proc/kcore: Operation not permitted"):
            open_source(spec)

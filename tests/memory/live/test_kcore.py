"""The running kernel's memory: a core like /proc/kcore, made small. `tests/live` has a guest's real one."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest

from fivefold.errors import CannotOpenError, FormatError, MachineError
from fivefold.memory import open_source
from fivefold.memory.live import kcore as module
from fivefold.memory.live.kcore import open_kcore
from fivefold.units import PhysAddr

DIRECT, IMAGE, VMALLOC = 0xFFFF_8880_0000_0000, 0xFFFF_FFFF_8000_0000, 0xFFFF_C900_0000_0000
NOWHERE = (1 << 64) - 1
LAST = (1 << 52) - 0x1000


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
        (kcore(SEGMENTS, DATA)[:100], "ends at 0x64; expected 188 bytes more"),
        *[
            (kcore(SEGMENTS, DATA)[:at] + bytes([value]) + kcore(SEGMENTS, DATA)[at + 1 :], "no core of an x86-64 kern")
            for at, value in ((0, 0x7E), (4, 1), (5, 2), (16, 3), (16, 5), (19, 1), (54, 55), (54, 57))
        ],
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


def test_a_refusal_leaves_nothing_open(place: Path) -> None:
    place.write_bytes(b"\x7fELF")
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(FormatError):
        open_kcore(str(place))
    assert len(list(Path("/proc/self/fd").iterdir())) == before


@pytest.mark.parametrize(
    ("segments", "extents"),
    [
        ([(DIRECT, 0, 0x1000)], [(0, 0x1000)]),
        ([(DIRECT + 0x1000, 0x1000, 0x1000)], [(0x1000, 0x2000)]),
        ([(DIRECT, 0, 0x1000), (DIRECT + 0x2000, 0x2000, 1)], [(0, 0x1000), (0x2000, 0x2001)]),
        ([(DIRECT, 0x1000, 0), (DIRECT, 0x2000, 0x1000)], [(0x2000, 0x3000)]),
        ([(DIRECT, 0x1000, 0x1000), (DIRECT, LAST, 0x1000)], [(0x1000, 0x2000), (LAST, 1 << 52)]),
        ([(DIRECT, 0x1000, 0x1000), (DIRECT, LAST + 1, 0x1000)], [(0x1000, 0x2000)]),
        ([(VMALLOC, NOWHERE, 0), (DIRECT, 0x1000, 0x1000), (VMALLOC, NOWHERE, 1)], [(0x1000, 0x2000)]),
        ([], []),
    ],
)  # fmt: skip
def test_which_segments_are_memory(
    place: Path, segments: list[tuple[int, int, int]], extents: list[tuple[int, int]]
) -> None:
    place.write_bytes(kcore(segments, DATA))
    with open_kcore(str(place)) as source:
        assert source.extents == extents
        assert source.format == "the running kernel's memory"
        assert source.notes == (
            "the kernel runs while it is read; it shows no registers: the root is its own (VMCOREINFO)",
        )


def test_the_place_in_the_direct_map_counts(place: Path) -> None:
    """A page that is in both is read there, whichever segment comes first."""
    for order in (1, -1):
        content = bytearray(kcore([(IMAGE, 0x2000, 0x1000), (DIRECT, 0x1000, 0x3000)][::order], DATA))
        row = 64 + 56 * (1 if order == 1 else 2)
        struct.pack_into("<Q", content, row + 8, len(content))  # the image lies elsewhere in the file
        place.write_bytes(bytes(content) + b"i" * 0x1000)
        with open_kcore(str(place)) as source:
            assert source.memory.read(PhysAddr(0x2000), 0x1000) == b"\2" * 0x1000


def test_notes_of_any_size(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for most, found in ((len(NOTES), {"OSRELEASE": "6.1.0"}), (len(NOTES) - 1, {})):
        monkeypatch.setattr(module, "MAX_NOTE_BYTES", most)
        with open_kcore(str(place)) as source:
            assert source.vmcoreinfo == found


def test_pieces_and_errors_of_the_file(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is read may come in pieces; what the kernel refuses is told with the place."""
    real = os.pread
    with open_kcore(str(place)) as source:
        monkeypatch.setattr(os, "pread", lambda fd, size, at: real(fd, min(size, 7), at))
        assert source.memory.read(PhysAddr(0x1FF0), 0x20) == b"\1" * 16 + b"\2" * 16
        for number, kind, told in (
            (14, FormatError, "{}: nothing can be read at {:#x}"),
            (5, FormatError, "{}: nothing can be read at {:#x}"),
            (1, MachineError, "cannot read {} at {:#x}: Operation not permitted"),
        ):

            def refuse(*_: object, number: int = number) -> bytes:
                raise OSError(number, os.strerror(number))

            monkeypatch.setattr(os, "pread", refuse)
            at = 64 + 56 * 4 + len(NOTES) + 0x1008
            with pytest.raises(kind) as error:
                source.memory._fetch(0x1008, 8)  # type: ignore[attr-defined]
            assert str(error.value) == told.format(place, at)
        monkeypatch.setattr(os, "pread", real)


def test_a_read_across_segments_that_touch(place: Path) -> None:
    """Three, each at its own place of the file."""
    content = bytearray(kcore([(DIRECT, 0x1000, 0x1000), (DIRECT, 0x2000, 0x800), (DIRECT, 0x2800, 0x1800)], DATA))
    base = len(content)
    for number, at in enumerate((0x2800, 0x1800, 0)):
        struct.pack_into("<Q", content, 64 + 56 * (number + 1) + 8, base + at)
    tail = bytes(at % 251 for at in range(0x4000))
    place.write_bytes(bytes(content) + tail)
    truth = tail[0x2800:0x3800] + tail[0x1800:0x2000] + tail[:0x1800]
    with open_kcore(str(place)) as source:
        for start, size in ((0x1000, 0x3000), (0x1FFF, 2), (0x1FFF, 0x802), (0x2000, 0x800), (0x27FF, 1), (0x2800, 8)):
            assert source.memory.read(PhysAddr(start), size) == truth[start - 0x1000 :][:size]
        with pytest.raises(MachineError, match="at most 8192 are allowed"):
            open_kcore(str(place), max_copy=0x2000).memory.banks()

"""Files as bytes: what is no file, and files that change under us."""

from __future__ import annotations

import mmap
import os
import socket
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fivefold.errors import FormatError, MachineError
from fivefold.memory import SourceOptions, files, open_file
from fivefold.memory.files import SMALL, FileBytes
from fivefold.units import PhysAddr

Opened = Callable[[], set[str]]


def test_not_there(tmp_path: Path) -> None:
    path = tmp_path / "absent"
    with pytest.raises(MachineError) as error:
        FileBytes.open(path)
    assert str(error.value) == f"cannot open {path}: No such file or directory"


def test_no_file_with_bytes(tmp_path: Path) -> None:
    empty, fifo = tmp_path / "empty", tmp_path / "fifo"
    empty.touch()
    os.mkfifo(fifo)
    for path, what in (
        (empty, "is empty"),
        (fifo, "is a pipe, which is not seekable"),
        (tmp_path, "is a directory"),
        (Path("/dev/zero"), "is a device"),
    ):
        with pytest.raises(FormatError) as error:
            FileBytes.open(path)
        assert str(error.value) == (
            f"{path} {what}; expected a file that holds memory, or "
            "qmp:SOCKET, libvirt:DOMAIN, pid:NUMBER, gdb:HOST:PORT"
        )


def test_what_is_written_of_a_sparse_file(tmp_path: Path) -> None:
    """Wherever the file system cuts: all bytes that are not zero are in it, and a terabyte of nothing is not."""
    path, places = tmp_path / "sparse", (0x12345, 1 << 30, (1 << 40) - 1)
    with path.open("wb") as out:
        out.truncate(1 << 40)
        for place in places:
            out.seek(place)
            out.write(b"x")
    with open_file(str(path), SourceOptions(ram_map="4K-1T=0,1T-1025G=1023G")) as source:
        written = source.memory.written()
        assert source.memory.extents == [(0x1000, 1025 << 30)]
        assert sum(run.end - run.start for run in written) < 1 << 28
        for place in (0x12345 + 0x1000, (1 << 30) + 0x1000, (1025 << 30) - 1):
            assert any(run.start <= place < run.end for run in written)
            assert source.memory.read(PhysAddr(place), 1) == b"x"


def test_runs_that_are_told_apart_are_counted_for_the_whole_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many pieces may lie at one place of a file: the more runs it has, the less each of them may cost."""
    monkeypatch.setattr("fivefold.memory.file_memory.MAX_RUNS", 3)
    path = tmp_path / "sparse"
    with path.open("wb") as out:
        for place in range(4):
            out.seek(place << 30)
            out.write(b"x")
        out.truncate(4 << 30)
    with open_file(str(path), SourceOptions(ram_map="0-4G=0,8G-12G=0,16G-20G=0")) as source:
        runs = source.memory.written()
        assert len(runs) <= 3 + 3
        for place in range(0, 12, 4):
            assert all(any(run.start <= at << 30 < run.end for run in runs) for at in range(2 * place, 2 * place + 4))


def test_all_of_a_small_file_counts_as_written(tmp_path: Path) -> None:
    path = tmp_path / "small"
    path.write_bytes(bytes(0x3000))
    with open_file(str(path)) as source:
        assert source.memory.written() == source.extents


def test_past_the_end(tmp_path: Path) -> None:
    path = tmp_path / "short"
    path.write_bytes(b"12345678")
    with FileBytes.open(path) as file:
        assert file.read_at(2, 6) == b"345678"
        with pytest.raises(
            FormatError,
            match=r"short ends at 0x8; expected 7 bytes at 0x2: truncated or forged; copy or take it again$",
        ):
            file.read_at(2, 7)


def test_mapped_file_cut_while_in_use(tmp_path: Path) -> None:
    """Touching a page that is gone would kill the process; the size is looked at first."""
    path = tmp_path / "large"
    with path.open("wb") as out:
        out.truncate(SMALL + 4096)
    source = open_file(str(path))
    assert source.memory.read(PhysAddr(SMALL), 2) == b"\0\0"
    os.truncate(path, 4096)
    for refused in (lambda: source.memory.read(PhysAddr(SMALL), 2), source.close):
        with pytest.raises(FormatError, match=rf"large was cut from {SMALL + 4096} to 4096 bytes while in use$"):
            refused()


@pytest.mark.parametrize("size", [1, SMALL, SMALL + 1])
def test_small_files_are_read_and_large_ones_mapped(opened: Opened, tmp_path: Path, size: int) -> None:
    """What is read may be cut later; what is mapped keeps its file open until it is closed."""
    path = tmp_path / "file"
    with path.open("wb") as out:
        out.truncate(size)
        out.seek(max(size - 3, 0))
        out.write(b"end"[-size:])
    file = FileBytes.open(path)
    assert file.size == size
    assert file.read_at(max(size - 3, 0), min(size, 3)) == b"end"[-size:]
    assert file.on_disk == (size if size <= SMALL else path.stat().st_blocks * 512)
    assert isinstance(file._data, mmap.mmap) is (size > SMALL)
    assert bool(opened()) is (size > SMALL)
    file.close()
    assert opened() == set()
    assert (file.size, file.on_disk > 0) == (0, True)
    file.close()
    with pytest.raises(FormatError, match=r"file ends at 0x0; expected 1 bytes at 0x0"):
        file.read_at(0, 1)


def test_a_file_on_disk_is_never_larger_than_it_is(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with path.open("wb") as out:
        out.write(b"x" * (SMALL + 5))
    with FileBytes.open(path) as file:
        assert file.on_disk == SMALL + 5 < path.stat().st_blocks * 512


@pytest.mark.parametrize(("offset", "size"), [(-1, 2), (0, -1), (4, -4), (0, 9), (8, 1), (9, 0), (1 << 64, 1)])
def test_what_a_file_does_not_have(tmp_path: Path, offset: int, size: int) -> None:
    (tmp_path / "file").write_bytes(b"12345678")
    with FileBytes.open(tmp_path / "file") as file:
        assert (file.read_at(8, 0), file.read_at(0, 8), file.read_at(7, 1)) == (b"", b"12345678", b"8")
        with pytest.raises(FormatError, match=r"file ends at 0x8; expected "):
            file.read_at(offset, size)


def test_places_of_many(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345678")
    with FileBytes.open(tmp_path / "file") as file:
        offsets, sizes = np.array([-1, 0, 0, 0, 7, 8, 8, 9, 1 << 62]), np.array([1, 8, 9, 0, 1, 0, 1, 0, 1])
        view, places = file.places(offsets, sizes)
        assert bytes(view) == b"12345678"
        assert places.tolist() == [-1, 0, -1, 0, 7, 8, -1, -1, -1]
        view.release()


def test_what_can_be_no_file(opened: Opened, tmp_path: Path) -> None:
    """A socket, and a file that the system refuses to map; nothing stays open."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        with pytest.raises(MachineError, match=r"cannot open .*/socket: No such device or address$"):
            FileBytes.open(tmp_path / "socket")
    for fd, kind in ((os.pipe()[0], "a pipe, which is not seekable"), (os.open("/dev/null", 0), "a device")):
        with pytest.raises(FormatError, match=f"^it is {kind}; expected a file that holds memory, or qmp:SOCKET"):
            FileBytes.from_fd(fd, "it")
    assert len(opened()) == 1  # the end of the pipe into which nobody writes


def test_a_file_that_cannot_be_read(opened: Opened, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * 100)

    def fail(*_: object, **__: object) -> bytes:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "read", fail)
    with pytest.raises(MachineError) as error:
        FileBytes.open(path)
    monkeypatch.undo()
    assert str(error.value) == f"cannot read {path}: Input/output error"
    assert opened() == set()


def test_a_file_that_comes_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(bytes(range(100)))
    real = os.read
    monkeypatch.setattr(os, "read", lambda fd, size: real(fd, min(size, 7)))
    with FileBytes.open(tmp_path / "file") as file:
        assert file.read_at(0, 100) == bytes(range(100))


SEEK = {os.SEEK_DATA: {0: 10, 5: 10, 20: 30, 25: 30}, os.SEEK_HOLE: {10: 20, 30: 40, 12: 20, 35: 40}}


@pytest.mark.parametrize(
    ("start", "end", "most", "runs"),
    [
        (0, 100, 9, [(10, 20), (30, 40)]),
        (0, 35, 9, [(10, 20), (30, 35)]),
        (0, 31, 9, [(10, 20), (30, 31)]),
        (0, 30, 9, [(10, 20)]),
        (0, 10, 9, []),
        (5, 15, 9, [(10, 15)]),
        (0, 100, 1, [(10, 20), (20, 100)]),
        (0, 20, 1, [(10, 20)]),
        (0, 100, 0, [(0, 100)]),
    ],
)
def test_runs_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start: int, end: int, most: int, runs: list[tuple[int, int]]
) -> None:
    """Of a file with bytes at 10 to 20 and 30 to 40, as a system tells it; a run begins where it is asked for."""
    with (tmp_path / "file").open("wb") as out:
        out.truncate(SMALL + 1)

    def seek(fd: int, at: int, how: int) -> int:
        if at >= 40:
            raise OSError(6, "No such device or address")
        return SEEK[how][at]

    with FileBytes.open(tmp_path / "file") as file:
        monkeypatch.setattr(files.os, "lseek", seek)
        assert list(file.written(start, end, most)) == runs
        for number, told in ((6, []), (22, [(0, 9)])):

            def refuse(*_: object, number: int = number) -> int:
                raise OSError(number, "no")

            monkeypatch.setattr(files.os, "lseek", refuse)
            assert list(file.written(0, 9)) == told
        monkeypatch.undo()

"""Files as bytes: what is no file, and files that change under us."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fivefold.errors import FormatError, MachineError
from fivefold.memory import SourceOptions, open_file
from fivefold.memory.files import SMALL, FileBytes
from fivefold.units import PhysAddr


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

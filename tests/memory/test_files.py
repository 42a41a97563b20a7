"""Files as bytes: what is no file, and files that change under us."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fivefold.errors import FormatError, MachineError
from fivefold.memory import open_file
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
    for path, what in ((empty, "is empty"), (fifo, "is not a regular file"), (tmp_path, "is not a regular file")):
        with pytest.raises(FormatError) as error:
            FileBytes.open(path)
        assert str(error.value) == f"{path} {what}"


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
    with open_file(str(path)) as source:
        assert source.memory.read(PhysAddr(SMALL), 2) == b"\0\0"
        os.truncate(path, 4096)
        with pytest.raises(FormatError, match=rf"large was cut from {SMALL + 4096} to 4096 bytes while in use$"):
            source.memory.read(PhysAddr(SMALL), 2)

"""Files that are given by name: opening one waits for nobody."""

from __future__ import annotations

import gzip
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fivefold import FormatError
from fivefold.boot.files import read_file, read_serial
from fivefold.explain import explain
from fivefold.matrix.kernels.kernel_file import open_kernel
from fivefold.opening import open_to_read
from fivefold.survey.audit.policy import load_policy
from fivefold.symbols import read_symbols

LOG = b"""check_exception old: 0xffffffff new 0xe
     0: v=0e e=0002 i=0 cpl=0 IP=0010:00000000001002a0 CR2=0000000000401000
"""

PACKED = gzip.compress(LOG)


def written(pipe: Path, *parts: bytes) -> threading.Thread:
    """A writer that has opened *pipe* when this returns; it writes once there is somebody to read."""
    held = os.open(pipe, os.O_RDWR)

    def write() -> None:
        for part in parts:
            os.write(held, part)
        os.close(held)

    thread = threading.Timer(0.05, write)
    thread.start()
    return thread


@pytest.fixture
def pipe(tmp_path: Path) -> Path:
    os.mkfifo(tmp_path / "pipe")
    return tmp_path / "pipe"


READERS: list[Callable[[Path], Any]] = [
    lambda path: open_to_read(path).close(),
    lambda path: explain(str(path)),
    lambda path: explain(str(path), symbols=str(path)),
    lambda path: load_policy(path),
    lambda path: read_symbols(path),
    lambda path: read_serial(path),
    lambda path: read_file(path, 100),
    lambda path: open_kernel(str(path)),
]


@pytest.mark.parametrize("read", READERS)
def test_a_pipe_that_nobody_writes_to(pipe: Path, read: Callable[[Path], Any]) -> None:
    with pytest.raises(FormatError, match=r"pipe is a pipe that no process writes to; expected a file, or start its"):
        read(pipe)


@pytest.mark.parametrize("parts", [(LOG,), (LOG[:1], LOG[1:]), (PACKED[:1], PACKED[1:])])
def test_a_log_through_a_pipe(pipe: Path, parts: tuple[bytes, ...]) -> None:
    """Also one that is packed, and one whose writer is late."""
    thread = written(pipe, *parts)
    assert explain(str(pipe)).exceptions[0].raised.rip == 0x1002A0
    thread.join()


def test_all_bytes_come_out_where_some_wait(pipe: Path) -> None:
    held = os.open(pipe, os.O_RDWR)
    os.write(held, b"abcdef")
    with open_to_read(pipe) as file:
        os.close(held)
        assert file.peek(6)[:1] == b"a"
        assert file.read() == b"abcdef"


def test_what_else_there_is(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    with open_to_read(tmp_path / "file") as file:
        assert file.read() == b"abc"
        assert os.get_blocking(file.fileno())
    with pytest.raises(IsADirectoryError):
        open_to_read(tmp_path)
    with pytest.raises(FileNotFoundError):
        open_to_read(tmp_path / "nothing")

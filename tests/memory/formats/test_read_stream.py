"""What comes through standard input: a file is read in place, a pipe is copied, with the bounds of a packed file."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fivefold.errors import FormatError
from fivefold.memory.formats.compressed import STEP, read_stream

NOISE = random.Random(5).randbytes(3 * STEP + 17)


@contextmanager
def piped(data: bytes, step: int = 50_000) -> Iterator[int]:
    """A pipe into which *data* is written, *step* bytes at a time."""
    out, into = os.pipe()

    def write() -> None:
        with os.fdopen(into, "wb", buffering=0) as file:
            for at in range(0, len(data), step):
                try:
                    file.write(data[at : at + step])
                except BrokenPipeError:
                    return

    writer = threading.Thread(target=write)
    writer.start()
    try:
        yield out
    finally:
        os.close(out)
        writer.join()


@pytest.mark.parametrize(
    "data",
    [
        b"x",
        NOISE[: STEP - 1],
        NOISE[:STEP],
        NOISE[: STEP + 1],
        NOISE,
        NOISE[:9] + bytes(3 * STEP),
        bytes(2 * STEP) + b"x",
    ],
    ids=["a byte", "almost a step", "a step", "one more", "steps", "zeros behind", "zeros in front"],
)
def test_a_pipe_is_read_to_its_end(data: bytes) -> None:
    with piped(data) as fd, read_stream(fd, "standard input") as file:
        assert file.name == "standard input"
        assert file.size == len(data)
        assert file.read_at(0, len(data)) == data


def test_a_pipe_without_anything() -> None:
    with (
        piped(b"") as fd,
        pytest.raises(FormatError, match=r"^standard input is empty; expected a file that holds memory$"),
    ):
        read_stream(fd, "standard input")


@pytest.mark.parametrize("more", [0, 1])
def test_a_pipe_has_a_bound(more: int) -> None:
    with piped(NOISE) as fd:
        if more:
            with pytest.raises(FormatError, match="to more than 3145744 bytes; allow more with --max-unpacked"):
                read_stream(fd, "standard input", max_bytes=len(NOISE) - more)
        else:
            read_stream(fd, "standard input", max_bytes=len(NOISE)).close()


def test_a_file_is_read_from_where_it_stands(tmp_path: Path) -> None:
    """It is not copied, so that no bound of a copy holds for it."""
    (tmp_path / "dump").write_bytes(NOISE)
    with (tmp_path / "dump").open("rb") as opened:
        opened.seek(7)
        file = read_stream(opened.fileno(), "standard input", max_bytes=1)
    with file:
        assert (file.name, file.size) == ("standard input", len(NOISE) - 7)
        assert file.read_at(0, file.size) == NOISE[7:]

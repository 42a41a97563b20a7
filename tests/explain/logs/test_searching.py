"""Marks in long files: each once, also across the parts that are mapped, with libc's search and without."""

from __future__ import annotations

import mmap
from pathlib import Path

import pytest

from fivefold.explain.logs.text import searching

PART = mmap.ALLOCATIONGRANULARITY
MARK = b"riple fault"


@pytest.fixture(params=["libc", "python"])
def small_parts(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(searching, "SEGMENT", PART)
    if request.param == "python":
        monkeypatch.setattr(searching, "_memmem", lambda: None)


def found(path: Path, size: int | None = None) -> list[tuple[int, bytes]]:
    with path.open("rb") as file:
        return list(searching.places(file.fileno(), size or path.stat().st_size, MARK, 64))


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("at", [0, 1, PART - 12, PART - 11, PART - 1, PART, PART + 1, 2 * PART - 5, 3 * PART - 11])
def test_a_mark_is_found_once_wherever_it_lies(at: int, tmp_path: Path) -> None:
    path = tmp_path / "log"
    text = bytearray(b"." * 3 * PART)
    text[at : at + len(MARK)] = MARK
    path.write_bytes(text)
    assert found(path) == [(at, bytes(text[max(0, at - 64) : at + 64]))]


@pytest.mark.usefixtures("small_parts")
def test_marks_that_follow_each_other_and_one_that_is_cut(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(MARK * 3 + b"\n" + MARK[:-1])
    assert [at for at, _ in found(path)] == [0, 11, 22]
    assert [at for at, _ in found(path, size=32)] == [0, 11]


@pytest.mark.usefixtures("small_parts")
def test_a_mark_is_at_the_last_byte_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"-" * (PART - len(MARK)) + MARK)
    assert [at for at, _ in found(path)] == [PART - len(MARK)]


def test_libc_has_the_search_here() -> None:
    assert searching._memmem() is not None

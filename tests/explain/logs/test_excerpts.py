"""Which parts of a long log are read: by logs of numbered lines, marks anywhere in them, and small bounds."""

from __future__ import annotations

import io
import random
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from fivefold.explain.logs.text import excerpts as module
from fivefold.explain.logs.text.excerpts import Excerpt, excerpts

SIZES = {"WHOLE": 600, "CHUNK": 300, "BEFORE": 100, "AFTER": 120, "HEAD": 80}
LINE = 11
MARKS = {
    "kernel": ("Oops: ", "unable to handle", "general protection fault"),
    "process": ("segfault at ", "] traps: "),
    "escalation": ("check_exception old: 0xe",),
    "last": ("check_exception old: 0xffffffff", "RAX=", " cpl=0 IP="),
}
FATAL = ("Triple fault", "old: 0x8 new", "exception with no resolution")


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, size in SIZES.items():
        monkeypatch.setattr(module, name, size)


def log(seed: int, with_fatal: bool) -> bytes:
    """Lines that are all different, some of them marks; behind a fatal one there are more."""
    draw = random.Random(seed)
    lines = [f"line {number:05}" for number in range(draw.randrange(100, 400))]
    for marks in MARKS.values():
        for _ in range(draw.randrange(3)):
            lines[draw.randrange(len(lines))] += f" {draw.choice(marks)}"
    if with_fatal:
        lines[draw.randrange(len(lines))] += f" {draw.choice(FATAL)}"
    return "\n".join(lines).encode()


def wanted(data: bytes) -> Iterator[range]:
    """What must be among the excerpts: around the first mark of each kind before the fatal one, or the last one."""
    yield range(min(SIZES["HEAD"], len(data)))
    fatal = min((at for mark in FATAL if (at := data.find(mark.encode())) >= 0), default=None)
    end = len(data) if fatal is None else min(len(data), fatal + SIZES["AFTER"])
    part = data[:fatal]
    found = [] if fatal is None else [fatal]
    for kind, marks in MARKS.items():
        places = [at for mark in marks for at in _all(part, mark.encode())]
        if kind == "last":
            places += _all(part, b"check_exception old:")
        if places:
            found.append(max(places) if kind == "last" else min(places))
    for at in found:
        yield range(max(0, at - SIZES["BEFORE"] + LINE), min(end, at + SIZES["AFTER"]))


def _all(data: bytes, mark: bytes) -> list[int]:
    return [at for at in range(len(data)) if data.startswith(mark, at)]


def places(data: bytes, parts: list[Excerpt]) -> list[range]:
    """Where the excerpts lie, each of which is in *data* once."""
    assert all(data.count(part.data) == 1 for part in parts)
    return [range(at := data.find(part.data), at + len(part.data)) for part in parts]


@pytest.mark.parametrize("seed", range(60))
def test_what_is_around_each_mark_is_read_and_little_else(seed: int) -> None:
    data = log(seed, with_fatal=seed % 2 == 0)
    parts = list(excerpts(io.BytesIO(data)))
    found = places(data, parts)
    assert [part.is_start for part in parts] == [place.start == 0 for place in found]
    assert all(one.stop < other.start for one, other in pairwise(found)), "parts that touch are one"
    needed = list(wanted(data))
    for need in needed:
        assert any(place.start <= need.start and need.stop <= place.stop for place in found), need
    longest = SIZES["BEFORE"] + SIZES["AFTER"] + 6 * LINE
    assert sum(map(len, found)) <= SIZES["HEAD"] + longest * len(needed)
    for place in found:
        assert place.start == 0 or data[place.start - 1 : place.start] == b"\n"
        assert any(place.start <= need.start <= place.stop for need in needed)
        last = max(need.stop for need in needed if place.start <= need.start <= place.stop)
        assert place.stop == last


@pytest.mark.parametrize("size", [0, 1, 599, 600])
def test_a_short_log_is_read_whole(size: int) -> None:
    data = (b"Triple fault\n" * 99)[:size]
    assert list(excerpts(io.BytesIO(data))) == [Excerpt(data, True)]


def test_a_log_that_is_one_byte_longer_is_not() -> None:
    data = b"\n".join(b"%07d" % number for number in range(76))[:601]
    assert list(excerpts(io.BytesIO(data))) == [Excerpt(data[:80], True)]


@pytest.mark.parametrize("mark", FATAL)
@pytest.mark.parametrize("at", [700, 1000, 1777, 1990])
def test_a_file_is_searched_for_what_is_fatal_alone(tmp_path: Path, mark: str, at: int) -> None:
    data = b"".join(b"line %05d\n" % number for number in range(182))[:1995]
    data = data[:at] + mark.encode() + data[at + len(mark) :]
    (tmp_path / "log").write_bytes(data)
    with (tmp_path / "log").open("rb") as file:
        head, part = excerpts(file)
    assert head == Excerpt(data[:80], True)
    at += mark == "Triple fault"  # also found without its first letter
    begin = data.index(b"\n", at - 100) + 1
    assert part == Excerpt(data[begin : at + 120], False)


def test_progress_is_told_up_to_the_end(tmp_path: Path) -> None:
    told: list[tuple[int, int | None]] = []
    data = b"".join(b"line %05d\n" % number for number in range(182))
    list(excerpts(io.BytesIO(data), progress=lambda done, size: told.append((done, size))))
    assert told == [(601, None), (901, None), (1201, None), (1501, None), (1801, None), (2002, None), (2002, 2002)]
    (tmp_path / "log").write_bytes(data)
    told.clear()
    with (tmp_path / "log").open("rb") as file:
        list(excerpts(file, progress=lambda done, size: told.append((done, size))))
    assert told[0] == (601, 2002) and told[-1] == (2002, 2002)

"""Entries of the cache are native code: nothing is taken, or written, where somebody else has a hand in it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from fivefold.metal import cache

KEY = "what it was made from"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache with one entry."""
    place = tmp_path / "cache"
    monkeypatch.setenv("FIVEFOLD_CACHE", str(place))
    cache.store(KEY, b"code")
    assert cache.lookup(KEY) == b"code"
    return place


def entry(place: Path) -> Path:
    (found,) = place.iterdir()
    return found


def link_directory(place: Path) -> None:
    place.rename(place.with_name("elsewhere"))
    place.symlink_to("elsewhere")


def link_entry(place: Path) -> None:
    found = entry(place)
    found.rename(place.with_name("elsewhere"))
    found.symlink_to(place.with_name("elsewhere"))


def make_pipe(place: Path) -> None:
    found = entry(place)
    found.unlink()
    os.mkfifo(found)


NOT_OURS: dict[str, Callable[[Path], None]] = {
    "the entry's group can write": lambda place: entry(place).chmod(0o620),
    "anybody can write the entry": lambda place: entry(place).chmod(0o602),
    "the directory's group can write": lambda place: place.chmod(0o720),
    "anybody can write to the directory": lambda place: place.chmod(0o702),
    "the entry is a link": link_entry,
    "the directory is a link": link_directory,
    "the entry is a pipe": make_pipe,
}


@pytest.mark.parametrize("what", NOT_OURS)
def test_what_others_can_write_is_not_taken(place: Path, what: str) -> None:
    NOT_OURS[what](place)
    assert cache.lookup(KEY) is None


@pytest.mark.parametrize("what", ["entry", "directory"])
def test_what_another_user_owns_is_not_taken(place: Path, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.fstat
    kind = {"entry": 0o100000, "directory": 0o040000}[what]

    def fstat(descriptor: int) -> os.stat_result:
        found = real(descriptor)
        fields = list(found)
        fields[4] += found.st_mode & 0o170000 == kind
        return os.stat_result(fields)

    monkeypatch.setattr(cache.os, "fstat", fstat)
    assert cache.lookup(KEY) is None


def test_an_entry_under_another_name_is_not_taken(place: Path) -> None:
    """As one that was put there, or mixed up by a backup: it is whole, but it is something else."""
    cache.store("other", b"other code")
    shutil.copy(place / cache._file_name(KEY), place / cache._file_name("other"))
    assert cache.lookup("other") is None
    assert cache.lookup(KEY) == b"code"


def test_nothing_is_written_into_a_directory_of_others(place: Path) -> None:
    place.chmod(0o777)
    cache.store("other", b"other code")
    assert len(list(place.iterdir())) == 1


def test_nothing_is_written_through_a_link(place: Path) -> None:
    victim = place.with_name("victim")
    victim.write_text("precious")
    found = entry(place)
    found.unlink()
    found.symlink_to(victim)
    cache.store(KEY, b"code")
    assert victim.read_text() == "precious"
    assert cache.lookup(KEY) == b"code"


def test_a_draft_is_a_new_file_of_ours_alone(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    victim = place.with_name("victim")
    victim.write_text("precious")
    monkeypatch.setattr(cache.secrets, "token_hex", lambda _: "guessed")
    draft = place / f".{cache._file_name('other')}.guessed"
    draft.symlink_to(victim)
    cache.store("other", b"other code")
    assert victim.read_text() == "precious"
    draft.unlink()

    before = os.umask(0)
    try:
        cache.store("other", b"other code")
    finally:
        os.umask(before)
    assert [found.stat().st_mode & 0o777 for found in place.iterdir()] == [0o600, 0o600]


def test_no_draft_is_left_when_the_disk_is_full(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache.os, "rename", full)
    cache.store("other", b"other code")
    assert [found.name for found in place.iterdir()] == [cache._file_name(KEY)]

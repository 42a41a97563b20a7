"""The names of what is kept: an edit anywhere below a folder of sources gives another name."""

from __future__ import annotations

import shutil
from importlib import resources
from pathlib import Path

import pytest

from fivefold.boot.image.build import image_key
from fivefold.metal import build

PACKAGE = Path(str(resources.files("fivefold")))


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """A copy of the package with a room in `kernel/` and in `metal/` that has a file of its own."""
    place = tmp_path / "fivefold"
    shutil.copytree(PACKAGE, place, ignore=shutil.ignore_patterns("__pycache__"))
    for folder in ("kernel", "boot"):
        room = place / folder / "room"
        room.mkdir()
        (room / "one.py").write_text("x = 1\n")
        (room / "code.S").write_text("nop\n")
    return place


@pytest.mark.parametrize("file", ["kernel/room/one.py", "kernel/room/code.S", "boot/room/one.py", "units.py"])
def test_an_edit_below_a_folder_of_the_image_gives_another_image(copied: Path, file: str) -> None:
    before = image_key(copied)
    (copied / file).write_text((copied / file).read_text() + "\n")

    assert image_key(copied) != before


def test_a_file_that_moves_to_another_room_gives_another_image(copied: Path) -> None:
    before = image_key(copied)
    (copied / "kernel" / "other").mkdir()
    (copied / "kernel" / "room" / "one.py").rename(copied / "kernel" / "other" / "one.py")

    assert image_key(copied) != before


def test_what_is_no_source_gives_the_same_image(copied: Path) -> None:
    before = image_key(copied)
    (copied / "kernel" / "room" / "__pycache__").mkdir()
    (copied / "kernel" / "room" / "__pycache__" / "one.cpython-311.pyc").write_bytes(b"x")

    assert image_key(copied) == before


def test_the_compiler_is_all_that_lies_below_its_folder(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "__file__", str(copied / "metal" / "build.py"))
    room = copied / "metal" / "room"
    room.mkdir()
    (room / "pass.py").write_text("")

    assert room / "pass.py" in build._compiler()

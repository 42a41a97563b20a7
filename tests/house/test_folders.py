"""No folder has more files side by side than a reader takes in."""

from __future__ import annotations

from collections import Counter
from importlib import resources
from pathlib import Path

import pytest

PACKAGE = Path(str(resources.files("fivefold")))
TESTS = Path(__file__).parents[1]
MOST = 18
ONE_FILE_A_COMMAND = {"cli"}
"""Folders whose files are all of one kind, so that their number says nothing."""


def crowded(root: Path, suffixes: tuple[str, ...]) -> dict[str, int]:
    files = (path for path in root.rglob("*") if path.suffix in suffixes and path.name != "__init__.py")
    folders = Counter(path.parent.relative_to(root).as_posix() for path in files)
    return {folder: count for folder, count in folders.items() if count > MOST and folder not in ONE_FILE_A_COMMAND}


@pytest.mark.parametrize(("root", "suffixes"), [(PACKAGE, (".py", ".S")), (TESTS, (".py",))], ids=["src", "tests"])
def test_no_folder_is_crowded(root: Path, suffixes: tuple[str, ...]) -> None:
    assert not crowded(root, suffixes)


def test_a_crowded_folder_is_noticed(tmp_path: Path) -> None:
    for number in range(MOST + 1):
        (tmp_path / f"file{number}.py").touch()

    assert crowded(tmp_path, (".py",)) == {".": MOST + 1}

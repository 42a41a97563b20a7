"""A wheel that is built from these sources, and an installation of it without extras."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
import zipfile
from collections.abc import Callable
from importlib.metadata import distribution
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple, NoReturn

import pytest

ROOT = Path(__file__).parents[2]


def lacking(what: str) -> NoReturn:
    """Skip by name, or fail where all of it is to be there."""
    if os.environ.get("FIVEFOLD_REQUIRE_WHEEL"):
        pytest.fail(f"required here: {what}", pytrace=False)
    pytest.skip(what)


def build(source: Path, target: str, place: Path) -> Path:
    """The wheel or sdist that hatchling makes of *source*."""
    if find_spec("hatchling") is None:
        lacking("hatchling is not installed: pip install '.[test]'")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", target, "-d", str(place)],
        cwd=source,
        check=True,
        env=os.environ | {"SOURCE_DATE_EPOCH": "1700000000", "PYTHONHASHSEED": "random"},
        stdout=subprocess.DEVNULL,
    )
    (made,) = place.iterdir()
    return made


@pytest.fixture(scope="session")
def built() -> Callable[[Path, str, Path], Path]:
    return build


@pytest.fixture(scope="session")
def lacks() -> Callable[[str], NoReturn]:
    return lacking


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(ROOT, "wheel", tmp_path_factory.mktemp("wheel"))


class Plain(NamedTuple):
    """An installation: its Python, and the folder of its packages."""

    python: Path
    site: Path

    @property
    def program(self) -> list[str]:
        """What starts the command."""
        return [str(self.python), "-m", "fivefold"]


@pytest.fixture(scope="session")
def plain(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Plain:
    """What `pip install` of the wheel gives: the same packages, linked from here, and no other."""
    place = tmp_path_factory.mktemp("plain")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(place)], check=True)
    (site,) = place.glob("lib/python*/site-packages")
    with zipfile.ZipFile(wheel) as packed:
        packed.extractall(site)
    for name in runpy.run_path(str(Path(__file__).with_name("packages.py")))["plain_packages"]():
        _link(name, site)
    return Plain(place / "bin" / "python", site)


def _link(name: str, site: Path) -> None:
    found = distribution(name)
    for top in {file.parts[0] for file in found.files or () if file.parts[0] != ".."}:
        if top != "__pycache__":
            (site / top).symlink_to(str(found.locate_file(top)))

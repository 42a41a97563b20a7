"""Vectors in text: a test that takes `NAME_vector` runs once for each line of vectors/NAME.txt."""

from __future__ import annotations

from pathlib import Path

import pytest

VECTORS = Path(__file__).parent / "vectors"


def rows(name: str) -> list[list[str]]:
    """The lines of a vector file as their columns, which ``|`` separates."""
    text = (VECTORS / f"{name}.txt").read_text(encoding="utf-8")
    lines = (line.partition("#")[0].strip() for line in text.splitlines())
    found = [[column.strip() for column in line.split("|")] for line in lines if line]
    assert found, f"{name}.txt has no vectors"
    return found


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    for fixture in metafunc.fixturenames:
        if fixture.endswith("_vector"):
            found = rows(fixture.removesuffix("_vector"))
            metafunc.parametrize(fixture, found, ids=[" ".join(row)[:60] for row in found])

"""Tables that lead back to themselves are walked once and said to be so."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

TABLE = 0x67
LOOP = [
    "2 entries lead to a table above, the first behind 0x0000000040000000",
    "tables are met at two levels, 3 times, the first behind 0x0000000040000000",
]
"""A table that leads to itself stands at two levels, and so does what it leads to."""


@pytest.fixture
def looped(tmp_path: Path) -> Path:
    """Four levels from 0x1000; entry 1 of the PDPT leads to the PDPT itself."""
    image = bytearray(0x10000)
    for at, value in (
        (0x1000, 0x2000 | TABLE),
        (0x2000, 0x3000 | TABLE),
        (0x2008, 0x2000 | TABLE),
        (0x3000, 0x4000 | TABLE),
        (0x4000, 0x5000 | TABLE),
    ):
        image[at : at + 8] = value.to_bytes(8, "little")
    path = tmp_path / "looped.raw"
    path.write_bytes(image)
    return path


def test_a_loop_is_a_finding(fivefold: Callable[..., Any], looped: Path) -> None:
    done = fivefold("dump", looped, "--cr3", "0x1000", "--levels", "4", "--json")
    findings = json.loads(done.out)["findings"]

    assert done.status == 1
    assert findings[0]["what"] == "cycle"
    assert findings[0]["start"] == "0x0000000040000000"
    assert done.err == "".join(f"fivefold: {sentence}\n" for sentence in LOOP)


def test_stats_tell_a_loop(fivefold: Callable[..., Any], looped: Path) -> None:
    """In text, or in JSON and on stderr, and by the status, as dump does."""
    text = fivefold("stats", looped, "--cr3", "0x1000", "--levels", "4")
    done = fivefold("stats", looped, "--cr3", "0x1000", "--levels", "4", "--json")
    told = json.loads(done.out)

    assert (text.status, text.err) == (1, "")
    assert (done.status, done.err) == (1, "".join(f"fivefold: {sentence}\n" for sentence in LOOP))
    assert text.out.splitlines()[-2:] == [f"!! {sentence}" for sentence in LOOP]
    assert (told["cycles"], told["tables_at_two_levels"], told["findings"]) == (2, 3, LOOP)


def _with(path: Path, at: int, value: int) -> Path:
    image = bytearray(path.read_bytes())
    image[at : at + 8] = value.to_bytes(8, "little")
    path.write_bytes(image)
    return path


def test_stats_tell_what_is_wrong_by_level(fivefold: Callable[..., Any], looped: Path) -> None:
    path = _with(_with(_with(looped, 0x2008, 0), 0x1008, 0x2080 | TABLE), 0x3008, 0x99_F000 | TABLE)
    done = fivefold("stats", path, "--cr3", "0x1000", "--levels", "4")
    assert done.status == 1
    assert done.out.splitlines()[-2:] == [
        "!! PML4 tables: 1 malformed entries",
        "!! PT tables: 1 not in memory",
    ]


@pytest.mark.parametrize("form", ["text", "json", "csv", "ptdump", "info-tlb"])
@pytest.mark.parametrize("more", [[], ["--range", "0-4G"]])
def test_a_table_that_is_not_in_memory(fivefold: Callable[..., Any], looped: Path, form: str, more: list[str]) -> None:
    """Every format tells it by the status and on stderr."""
    path = _with(_with(looped, 0x2008, 0), 0x3008, 0x99_F000 | TABLE)
    done = fivefold("dump", path, "--cr3", "0x1000", "--levels", "4", "--format", form, *more)
    if form == "ptdump" and more:
        assert done.status == 2
        return
    assert done.status == 1
    assert "not in memory" in done.err.splitlines()[-1] and "99f000" in done.err.splitlines()[-1]


def test_stats_tell_a_table_at_two_levels(fivefold: Callable[..., Any], looped: Path) -> None:
    """The PT of one place is the PD of another."""
    done = fivefold("stats", _with(looped, 0x2008, 0x4000 | TABLE), "--cr3", "0x1000", "--levels", "4")
    assert done.status == 1
    assert done.out.endswith("!! tables are met at two levels, once, the first behind 0x0000000040000000\n")


def test_a_tree_without_one_has_no_finding(fivefold: Callable[..., Any], looped: Path) -> None:
    image = bytearray(looped.read_bytes())
    image[0x2008:0x2010] = bytes(8)
    looped.write_bytes(image)
    done = fivefold("dump", looped, "--cr3", "0x1000", "--levels", "4", "--json")

    assert done.status == 0
    assert json.loads(done.out)["findings"] == []

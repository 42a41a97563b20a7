"""Tables that lead back to themselves are walked once and said to be so."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

TABLE = 0x67


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
    assert "entries lead to a table above them, the first behind 0x0000000040000000" in done.err


def test_a_tree_without_one_has_no_finding(fivefold: Callable[..., Any], looped: Path) -> None:
    image = bytearray(looped.read_bytes())
    image[0x2008:0x2010] = bytes(8)
    looped.write_bytes(image)
    done = fivefold("dump", looped, "--cr3", "0x1000", "--levels", "4", "--json")

    assert done.status == 0
    assert json.loads(done.out)["findings"] == []

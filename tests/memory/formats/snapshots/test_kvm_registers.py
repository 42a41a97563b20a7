"""Numbers of a machine's state in JSON: what fits into a register is one."""

from __future__ import annotations

from typing import Any

import pytest

from fivefold.memory.formats.snapshots.kvm_registers import _is_word, _named_segments, bytes_of


@pytest.mark.parametrize(
    ("value", "is_word"),
    [
        (0, True),
        (1, True),
        ((1 << 64) - 1, True),
        (1 << 64, False),
        (-1, False),
        (True, False),
        ("1", False),
        (1.0, False),
    ],
)
def test_words(value: Any, is_word: bool) -> None:
    assert _is_word(value) == is_word


def test_segments_that_are_whole() -> None:
    special = {
        "cs": {"base": 1, "limit": 2, "selector": 3},
        "ds": {"base": 4, "limit": 5},
        "es": {"base": 6},
        "fs": {"base": 7, "limit": 8, "selector": "wrong"},
        "gdt": {"base": 9, "limit": 10},
        "idt": [11, 12],
    }
    found = {name: (one.selector, one.base, one.limit) for name, one in _named_segments(special)}
    assert found == {"cs": (3, 1, 2), "ds": (0, 4, 5), "fs": (0, 7, 8), "gdt": (0, 9, 10)}


def test_bytes() -> None:
    assert bytes_of([0, 255]) == b"\x00\xff"
    assert bytes_of([256]) == bytes_of([-1]) == bytes_of(["x"]) == bytes_of([]) == b""

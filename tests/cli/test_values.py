"""Values that options take, and the one line for each that makes no sense."""

from __future__ import annotations

import pytest
import typer

from fivefold.cli import values
from fivefold.units import GIB, MIB


@pytest.mark.parametrize(
    ("text", "start", "end"),
    [
        ("0x1000-0x2000", 0x1000, 0x2000),
        ("1M-2G", MIB, 2 * GIB),
        ("16m+4K", 16 * MIB, 16 * MIB + 4096),
        ("ffff800000000000-", 0xFFFF_8000_0000_0000, 1 << 64),
        ("0xffff_8000_0000_0000-ffff_8000_0000_1000", 0xFFFF_8000_0000_0000, 0xFFFF_8000_0000_1000),
    ],
)
def test_a_window(text: str, start: int, end: int) -> None:
    assert values.window(text) == range(start, end)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("5-5", "expected the start before the end"),
        ("0-17P", None),
        ("0-16384P", None),
        ("0-16385P", "expected the start before the end"),
        ("0x10+0", "expected the start before the end"),
        ("4X-5X", "'4X' is not a number; expected one such as 0xffff888000000000"),
        ("-", "'' is not a number"),
        ("0x1000", "is not a range; expected START-END, START+SIZE or START-, the end exclusive"),
        ("-5", "'' is not a number"),
    ],
)
def test_windows_that_are_none(text: str, message: str | None) -> None:
    if message is None:
        assert values.window(text).start == 0
        return
    with pytest.raises(typer.BadParameter) as caught:
        values.window(text)
    assert message in str(caught.value)


@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "86401", "soon", ""])
def test_no_time_to_wait(text: str) -> None:
    with pytest.raises(typer.BadParameter) as caught:
        values.seconds(text)
    assert str(caught.value) == f"{text!r} is no time to wait; expected seconds, more than 0 and up to 86400"
    assert values.seconds("0.5") == 0.5

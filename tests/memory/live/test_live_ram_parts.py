"""Live RAM that is no file: what is copied, and what is said where that is forbidden."""

from __future__ import annotations

from fivefold.memory.live.live_ram import _copied


def test_nothing_private_asks_for_nothing() -> None:
    assert _copied(999999999, []) == ([], ())

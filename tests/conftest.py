"""What every test may count on.

Tests marked `qemu` need QEMU. Without it they are skipped by name, saying what to install;
with FIVEFOLD_REQUIRE_QEMU set, as in CI, they fail instead.
"""

from __future__ import annotations

import os

import pytest

from fivefold.machine import available


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("qemu") is None:
        return
    reason = available("qemu")
    if reason is not None:
        if os.environ.get("FIVEFOLD_REQUIRE_QEMU"):
            pytest.fail(f"QEMU is required here: {reason}", pytrace=False)
        pytest.skip(reason)

"""The way back from a system call: SYSRET to what is canonical in the mode that is on, IRET to the rest."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from fivefold.arch import LA48, PagingMode

Guards = Callable[..., None]
KERNEL = "fivefold.kernel"


def prepared(code: Any, mode: PagingMode, package: str = KERNEL) -> Any:
    return code(mode, "syscall.way_back", package=package, extents=[(0x1000, 0x2000)])


def test_way_back(code: Any, mode: PagingMode, returns_vector: list[str]) -> None:
    rip, *ways = returns_vector
    helpers = prepared(code, mode)
    fast = int(ways[mode is not LA48])
    assert helpers.call("syscall.way_back", int(rip, 16)) == fast
    assert (helpers.get("syscall.fast_returns"), helpers.get("syscall.safe_returns")) == (fast, 1 - fast)
    assert fast == mode.is_canonical(int(rip, 16)), "as `arch` says"


@pytest.mark.parametrize("rip", [0x0000_8000_0000_0000, 0xFFFF_7FFF_FFFF_FFFF, 0x00FF_FFFF_FFFF_F000])
def test_rfc_b25_and_rs_37_the_width_is_that_of_the_mode(code: Any, guards: Guards, rip: int) -> None:
    """Fixed at 57 bits, four levels let SYSRET fault in ring 0 with the user's stack pointer."""

    def check(package: str) -> None:
        assert prepared(code, LA48, package).call("syscall.way_back", rip) == 0

    guards(
        check,
        "syscall.py",
        ("    if is_canonical(VirtAddr(rip)):\n", "    if rip >> 56 == 0 or rip >> 56 == 255:\n"),
    )


class Frame:
    """A system call's registers, as the entry leaves them."""

    def __init__(self, helpers: Any, number: int, argument: int, rip: int) -> None:
        self.helpers = helpers
        self.at = helpers.window + 0x1000
        helpers.ram.write(0x1000, bytes(0x1000))
        for offset, value in ((112, number), (64, argument), (136, rip)):
            helpers.ram.write(0x1000 + offset, value.to_bytes(8, "little"))

    def word(self, offset: int) -> int:
        return int.from_bytes(self.helpers.ram.read(0x1000 + offset, 8), "little")


def test_calls(code: Any, mode: PagingMode) -> None:
    """One adds 1, another changes where it returns to; one that does not exist is survived."""
    symbols = dict.fromkeys(("enter_user_end", "kernel_rsp"), 0x1000)
    helpers = code(mode, "syscall.syscall", extents=[(0x1000, 0x2000)], symbols=symbols)
    for number, argument, rip, way in ((1, 41, 0x1_0000, 1), (2, mode.gap.start, 0x1_0000, 0), (77, 5, 0x1_0000, 1)):
        frame = Frame(helpers, number, argument, rip)
        assert helpers.call("syscall.syscall", frame.at) == way
        assert frame.word(112) == argument + 1
        assert frame.word(136) == (argument if number == 2 else rip)
    assert helpers.get("syscall.calls") == 3

"""Where a run ends: every start against every end, as native code, with memory behind the table that leads on."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from fivefold.metal.program import Program
from fivefold.metal.run import host
from fivefold.metal.run.instance import Instance

ROOTS = tuple(f"fivefold.kernel.scan.scan_runs.{name}" for name in ("absent_end", "same_end", "following_end"))
LEAF = 0x5000_0063
MASK = 0x000F_FFFF_FFFF_F063
STEP = 4096
EDGES = (0, 1, 2, 3, 5, 7, 8, 9, 15, 16, 17, 31, 200, 300, *range(480, 512))


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "prefetching"])
def code(request: pytest.FixtureRequest) -> Instance:
    bindings = {"fivefold.kernel.scan.scan_runs.prefetching": int(request.param)}
    return host.load(Program(("fivefold.kernel.scan.scan_runs",), roots=ROOTS, bindings=bindings))


@pytest.fixture
def table(code: Instance) -> Iterator[tuple[np.ndarray, int]]:
    """512 entries, with as many before and behind that a loop must not take for its own; and their address."""
    memory = bytearray(3 * 4096)
    words = np.frombuffer(memory, "<u8")
    address = code.map(memory)
    yield words, address + 4096
    code.unmap(address)


@pytest.mark.parametrize("near", [False, True])
def test_absent_entries_end_at_the_first_that_is_present(code: Instance, table: tuple, near: bool) -> None:
    words, at = table
    words[:] = LEAF
    words[1024:1027] = 0
    for start in EDGES:
        for end in range(start + 1, 513):
            words[512 + start : 512 + end] = 0
            assert code.call("scan_runs.absent_end", at, start, at, near) == end, (start, end)
            words[512 + start : 512 + end] = LEAF


@pytest.mark.parametrize("step", [0, STEP])
def test_runs_end_at_the_first_entry_that_does_not_follow_on(code: Instance, table: tuple, step: int) -> None:
    words, at = table
    for start in EDGES:
        words[:] = LEAF + (np.arange(3 * 512, dtype=np.uint64) - np.uint64(512 + start)) * np.uint64(step)
        for end in range(start + 1, 513):
            words[512 + end] ^= np.uint64(2)
            assert code.call("scan_runs.following_end", at, start, LEAF, step, MASK, at) == end, (start, end)
            words[512 + end] ^= np.uint64(2)


def test_bits_outside_the_mask_break_nothing(code: Instance, table: tuple) -> None:
    words, at = table
    words[:] = LEAF | np.random.default_rng(3).integers(0, 2, 3 * 512, np.uint64) << np.uint64(58)
    assert all(code.call("scan_runs.same_end", at, start, LEAF, MASK, at) == 512 for start in range(512))

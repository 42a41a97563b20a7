"""CPUs that say odd things, and entries that do not match them."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from fivefold.boot import Run
from fivefold.machine import CpuidOverride

Boot = Callable[..., Run]
ALL = 0xFFFF_FFFF
LA57 = 1 << 16
LEAF_7_WITHOUT = CpuidOverride(7, 0, 0, 0, 0, 0)
ALIASED = CpuidOverride(7, None, ALL, ALL, ALL, ALL)


def max_leaf(leaf: int) -> CpuidOverride:
    return CpuidOverride(0, None, leaf, 0x756E_6547, 0x6C65_746E, 0x4965_6E69)


OLD = "CPUID's maximum leaf is below 7, so the CPU lacks LA57"
CASES = [
    ("maximum leaf 6, leaf 7 aliased", (max_leaf(6), ALIASED), "la48", OLD),
    ("maximum leaf 1, leaf 7 aliased", (max_leaf(1), ALIASED), "la48", OLD),
    ("leaf 7 without LA57", (LEAF_7_WITHOUT,), "la48", "the CPU lacks LA57"),
    ("LA57 in subleaf 1 only", (LEAF_7_WITHOUT, CpuidOverride(7, 1, 0, 0, LA57, 0)), "la48", "the CPU lacks LA57"),
    ("leaf 7 is the last", (max_leaf(7),), "la57", "the CPU has LA57"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "cpuid", "mode", "reason"), CASES, ids=[case[0] for case in CASES])
def test_edge_cases(passes: Boot, name: str, cpuid: tuple[CpuidOverride, ...], mode: str, reason: str) -> None:
    """Decided by 32-bit code, and by 64-bit code."""
    entries = ("pvh", "long48") if name in ("maximum leaf 6, leaf 7 aliased", "LA57 in subleaf 1 only") else ("pvh",)
    for entry in entries:
        run = passes("la57", entry=entry, guest={"cpuid": cpuid})
        assert (run.mode, run.reason) == (mode, reason)


def test_la57_in_cpuid_while_firmware_started_in_four_levels(passes: Boot) -> None:
    run = passes("la57", entry="long48")
    assert (run.facts["entered_levels"], run.mode, run.reason) == (4, "la57", "the CPU has LA57")


def test_rs_34_no5lvl_leaves_five_levels(passes: Boot) -> None:
    run = passes("la57", entry="long57", cmdline="no5lvl")
    assert (run.mode, run.reason) == ("la48", "no5lvl on the command line")


def test_a_cpu_without_nx_is_refused(boot: Boot) -> None:
    """Bit 63 of an entry is reserved there, and no page could be writable and not executable."""
    leaf = CpuidOverride(0x8000_0001, None, 0, 0, 0x121, 0x2410_0800 & ~(1 << 20))
    run = boot("la57", guest={"cpuid": (leaf,)})
    assert not run.ok
    assert "fivefold: the CPU has no NX: nothing could be writable and not executable" in run.output

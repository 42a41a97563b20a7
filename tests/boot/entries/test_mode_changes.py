"""`mode_changes`: what a boot does to CR0, CR3, CR4 and EFER follows the CPU's rules, and is what the machine did."""

from __future__ import annotations

from itertools import pairwise

import pytest

from fivefold.boot import BootOptions, Image
from fivefold.boot.mode_changes import ModeState, mode_changes
from fivefold.units import MIB

LA57 = 1 << 12
PG, LMA = 1 << 31, 1 << 10
BOOTS = pytest.mark.parametrize(
    ("cpu", "entry", "cmdline", "before", "after"),
    [
        ("la57", "pvh", "", 0, 5),
        ("la48", "pvh", "", 0, 4),
        ("la57", "long48", "", 4, 5),
        ("la57", "long57", "no5lvl", 5, 4),
    ],
)


def levels(state: ModeState) -> int:
    return 0 if not state.cr0 & PG else 5 if state.cr4 & LA57 else 4


@BOOTS
def test_states_of_a_boot(image: Image, cpu: str, entry: str, cmdline: str, before: int, after: int) -> None:
    states = mode_changes(cpu, BootOptions(entry=entry, cmdline=cmdline, memory=32 * MIB), image)  # type: ignore[arg-type]
    assert (levels(states[0]), levels(states[-1])) == (before, after)
    for old, new in pairwise(states):
        keys = [(one.cr0, one.cr3, one.cr4, one.efer, one.code_bits) for one in (old, new)]
        assert keys[0] != keys[1]
        # Intel SDM volume 3, "Enabling and Disabling 4-Level and 5-Level Paging": only with paging off.
        assert not (old.efer & LMA and (old.cr4 ^ new.cr4) & LA57)
        assert (new.cr0 & PG == 0) == (new.efer & LMA == 0)
    assert [one.root for one in states if one.root][-1] == "startup.early_top"
    assert states[-1].label == f"la{'57' if after == 5 else '48'}_start_kernel: write_cr4"
    if before:
        assert {one.label for one in states if levels(one) == 0} == {"trampoline_start"}

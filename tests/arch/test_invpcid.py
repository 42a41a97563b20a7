from __future__ import annotations

from dataclasses import replace

import pytest

from fivefold.arch import LA48, LA57, ControlState, Cpu, Cr4, invpcid_refusal

FOUR = ControlState.long(LA48, 0x1000)
WITH_PCIDS = replace(FOUR, cr4=FOUR.cr4 | Cr4.PCIDE)


@pytest.mark.parametrize(
    ("state", "kind", "first", "va", "refusal"),
    [
        (FOUR, 0, 0, 0x7FFF_FFFF_F000, None),
        (FOUR, 0, 1, 0x7FFF_FFFF_F000, "a PCID with CR4.PCIDE=0"),
        (WITH_PCIDS, 0, 1, 0x7FFF_FFFF_F000, None),
        (FOUR, 1, 0xFFF, 0, "a PCID with CR4.PCIDE=0"),
        (FOUR, 2, 0xFFF, 1 << 63, None),
        (WITH_PCIDS, 3, 0x1000, 0, "reserved bits of the descriptor"),
        (WITH_PCIDS, 4, 0, 0, "a type above 3"),
        # By the width that the CPU supports, with four levels too.
        (FOUR, 0, 0, 0x00FF_FFFF_FFFF_F000, None),
        (ControlState.long(LA57, 0x1000), 0, 0, 0x0100_0000_0000_0000, "an address that is not canonical"),
    ],
)
def test_what_invpcid_takes(state: ControlState, kind: int, first: int, va: int, refusal: str | None) -> None:
    assert invpcid_refusal(state, kind, first, va, Cpu()) == refusal


def test_a_cpu_without_five_levels_knows_48_bits() -> None:
    refusal = invpcid_refusal(FOUR, 0, 0, 0x00FF_FFFF_FFFF_F000, Cpu(la57=False))
    assert refusal == "an address that is not canonical"

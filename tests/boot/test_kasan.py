"""Boots with the shadow, and with random bases and the shadow together, which Linux cannot have."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from fivefold.boot import Run

Boot = Callable[..., Run]
PARTS = {"kaslr", "kasan", "scan", "sync", "user", "free", "syscall", "ident_map", "kexec", "hibernate", "fold"}
"""What must have checks of its own in such a run; other parts need an option of their own."""


@pytest.mark.parametrize("cpu", ["la57", "la48"])
def test_kaslr_and_kasan_and_a_check_for_every_part(passes: Boot, cpu: str) -> None:
    run = passes(cpu, cmdline="kaslr=7 kasan")
    assert run.mode == cpu
    names = {check.name for check in run.checks}
    missing = {part for part in PARTS if not any(name.startswith(part) for name in names)}
    assert not missing
    outside = {check.name for check in run.checks if check.by == "outside"}
    assert {"kasan_shadow", "kaslr_bases", "scan_agrees", "sync_kernel_half", "free_tables", "fold_depth"} <= outside
    shadow = run.areas["kasan_shadow"]
    assert (shadow.start, shadow.end) == (
        0xFFDF_FC00_0000_0000 if cpu == "la57" else 0xFFFF_EC00_0000_0000,
        0xFFFF_FC00_0000_0000,
    )
    assert run.areas["vmemmap"].end <= shadow.start >> (48 if cpu == "la57" else 39) << (48 if cpu == "la57" else 39)


def test_the_shadow_alone_with_the_proposals_map(passes: Boot) -> None:
    names = {check.name for check in passes("la57", cmdline="kasan", layout="proposal").checks}
    assert {"kasan_early_shadow_is_zero", "kasan_one_zero_page", "kasan_guard_above"} <= names
    assert not any(name.startswith("kaslr") for name in names)

"""Boots with the shadow, and with random bases and the shadow together, which Linux cannot have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from fivefold.boot import Run
from fivefold.machine import MapRow
from fivefold.units import GIB, MIB

Boot = Callable[..., Run]
PARTS = {"kaslr", "kasan", "scan", "sync", "user", "free", "syscall", "ident_map", "kexec", "hibernate", "fold"}
"""What must have checks of its own in such a run; other parts need an option of their own."""


@pytest.mark.parametrize("engine", ["unicorn", pytest.param("qemu", marks=pytest.mark.qemu)])
@pytest.mark.parametrize("cpu", ["la57", "la48"])
def test_kaslr_and_kasan_and_a_check_for_every_part(passes: Boot, cpu: str, engine: str) -> None:
    run = passes(cpu, cmdline="kaslr=7 kasan", engine=engine)
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


LOW = (MapRow(0, 0x9_FC00), MapRow(MIB, 32 * MIB))
HOLES = (
    MapRow(0, 0x9_FC00),
    MapRow(MIB, 5 * MIB + 0x3000),
    MapRow(6 * MIB, 6 * MIB + 0x1000),
    MapRow(7 * MIB, 24 * MIB),
)
"""The one-page range shares a page of the shadow with nobody, and its neighbours end inside theirs."""
ABOVE = (*LOW, MapRow(4 * GIB, 4 * GIB + 16 * MIB))
GIB_PAGE = (*LOW, MapRow(4 * GIB, 5 * GIB))
"""Where no image is put, whose text would have to be mapped apart."""
SEEDS: list[tuple[str, str, dict[str, Any], dict[str, int]]] = [
    ("la57", "", {}, {}),
    ("la57", "no5lvl", {}, {}),
    ("la57", "pages=4k", {}, {"direct_1g": 0, "direct_2m": 0}),
    ("la57", "pages=2m", {}, {"direct_1g": 0}),
    ("la57", "pages=1g", {"memory": GIB_PAGE}, {"direct_1g": 1}),
    ("la57", "", {"memory": HOLES}, {}),
    ("la57", "", {"memory": ABOVE}, {"ram_end": 4 * GIB + 16 * MIB}),
    ("la57", "no5lvl pages=4k", {"memory": HOLES}, {"direct_1g": 0, "direct_2m": 0}),
    ("la57", "no5lvl pages=1g", {"memory": GIB_PAGE}, {"direct_1g": 1}),
    ("la57", "no5lvl", {"memory": ABOVE}, {"ram_end": 4 * GIB + 16 * MIB}),
    ("la57", "pages=4k", {"memory": ABOVE}, {"direct_1g": 0, "direct_2m": 0}),
    ("la57", "", {"poison": 0xFF}, {}),
    ("la48", "", {}, {}),
    ("la48", "pages=4k", {}, {"direct_1g": 0, "direct_2m": 0}),
    ("la48", "pages=2m", {}, {"direct_1g": 0}),
    ("la48", "pages=1g", {}, {"direct_1g": 0}),
    ("la48", "", {"memory": HOLES}, {}),
    ("la48", "", {"memory": ABOVE}, {"ram_end": 4 * GIB + 16 * MIB}),
    ("la48", "pages=4k", {"memory": HOLES}, {"direct_1g": 0, "direct_2m": 0}),
    ("la48", "", {"poison": 0xFF}, {}),
]
"""Twenty seeds, each with something else that the shadow must follow. `la48` has no 1 GiB pages here."""


@pytest.mark.parametrize(
    ("seed", "cpu", "words", "guest", "facts"),
    [(seed, *row) for seed, row in enumerate(SEEDS)],
    ids=[f"{seed} {row[0]} {row[1]} {' '.join(row[2])}" for seed, row in enumerate(SEEDS)],
)
def test_twenty_seeds(
    passes: Boot, seed: int, cpu: str, words: str, guest: dict[str, Any], facts: dict[str, int]
) -> None:
    # The shadow of a whole GiB takes longer to clear than all the rest.
    run = passes(cpu, cmdline=f"kaslr={seed} kasan {words}", guest=guest, timeout=60.0)
    assert run.mode == ("la48" if "no5lvl" in words else cpu)
    assert facts.items() <= run.facts.items()
    names = {check.name for check in run.checks}
    assert {"kaslr_bases", "kaslr_inside_window", "kasan_shadow", "kasan_memory_of_its_own", "scan_agrees"} <= names

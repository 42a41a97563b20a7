"""Boots with random bases and a random place; what the command line cannot mean is refused with a message."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from fivefold.boot import Run
from fivefold.units import GIB

Boot = Callable[..., Run]
CHECKS = {"kaslr_aligned", "kaslr_in_order", "kaslr_inside_window", "kaslr_room_for_memory", "kaslr_bases"}
BASES = ("page_offset_base", "vmalloc_base", "vmemmap_base")


def bases(run: Run) -> tuple[int, ...]:
    return tuple(run.variables[name] for name in BASES)


def test_seeds_move_all_that_can_move(passes: Boot) -> None:
    runs = [passes("la57", cmdline=f"kaslr={seed}") for seed in (1, 2, 1)]
    assert bases(runs[0]) == bases(runs[2]) != bases(runs[1]), "a seed repeats a run exactly"
    assert runs[0].facts["load_address"] == runs[2].facts["load_address"]
    assert len({run.facts["load_address"] for run in runs}) == 2
    for run in runs:
        assert {check.name for check in run.checks} >= CHECKS
        assert not any(base % GIB for base in bases(run))


@pytest.mark.parametrize(
    ("cpu", "options"),
    [
        ("la48", {"cmdline": "kaslr=0xdeadbeefcafef00d"}),
        ("la48", {"cmdline": "kaslr"}),
        ("la57", {"cmdline": "kaslr=3", "layout": "proposal"}),
        ("la57", {"cmdline": "kaslr=18446744073709551615 no5lvl", "entry": "long57"}),
    ],
    ids=["la48", "without a seed", "proposal", "no5lvl from five levels"],
)
def test_random_bases_in_every_mode(passes: Boot, cpu: str, options: dict[str, Any]) -> None:
    run = passes(cpu, **options)
    assert {check.name for check in run.checks} >= CHECKS
    assert "kasan_shadow" not in run.areas


REFUSED = [
    ("kaslr=seven", "panic: kaslr= on the command line needs a number below 2^64"),
    ("kaslr=18446744073709551616", "panic: kaslr= on the command line needs a number below 2^64"),
    ("kaslr=7 nokaslr", "panic: kaslr and nokaslr are both on the command line"),
    ("kaslr=1 kaslr=2", "panic: an option is on the command line twice, with two values"),
    ("hibernate=later", "panic: hibernate= on the command line takes save or resume"),
]


@pytest.mark.parametrize(("cmdline", "message"), REFUSED)
def test_what_a_command_line_cannot_mean(boot: Boot, cmdline: str, message: str) -> None:
    """Another loader may say it; our own command refuses it before that."""
    run = boot("la48", guest={"cmdline": cmdline})
    assert not run.ok
    assert message in run.output

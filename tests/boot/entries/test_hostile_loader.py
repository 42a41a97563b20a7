"""A loader of ours that enters at `entry_64` with its tables, GDT, stack and information where they hurt.

`bench/worlds.py` asks the same of a hundred thousand worlds without a machine; here a few of them boot.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from fivefold.boot import Image, Run
from fivefold.machine import MapRow
from fivefold.units import GIB, MIB

Boot = Callable[..., Run]
LOAD = 32 * MIB
UNKIND = (
    MapRow(50 * MIB + 0x4000, 64 * MIB),
    MapRow(0x9_F000, 0xA_0000, 2),
    MapRow(50 * MIB + 0x3000, 50 * MIB + 0x4000, 2),
    MapRow(0, 0x9_F000),
    MapRow(0x10_0000, 50 * MIB + 0x3000),
    MapRow(4 * GIB, 4 * GIB + 16 * MIB),
)
"""Unsorted; a hole of a page where the image could go; memory above 4 GiB."""
BESIDE = 0x10_0000


def where(image: Image, place: str) -> int:
    """An address for what the loader leaves."""
    end = LOAD + image.size + 0xFFF & ~0xFFF
    return {
        "in the middle": 20 * MIB,
        "just below the image": LOAD - BESIDE,
        "just above the image": end,
        "where kaslr goes": 44 * MIB,
        "at the top": 64 * MIB - BESIDE,
        "above 4 GiB": 4 * GIB + 3 * MIB,
    }[place]


@pytest.mark.parametrize(
    "place",
    [
        "in the middle",
        "just below the image",
        "just above the image",
        "where kaslr goes",
        "at the top",
        "above 4 GiB",
    ],
)
@pytest.mark.parametrize(("entry", "word"), [("long48", ""), ("long57", "no5lvl")], ids=["up", "down"])
def test_nothing_that_the_loader_left_is_stepped_on(
    passes: Boot, image: Image, place: str, entry: str, word: str
) -> None:
    """With a change of mode up, and one down; the image is moved each time."""
    at = where(image, place)
    guest = {"memory": UNKIND, "handover": at, "start_info": at + 0x8_0000}
    run = passes(
        "la57", entry=entry, memory=64 * MIB, load_address=LOAD, cmdline=f"kaslr=3 {word}".strip(), guest=guest
    )
    assert run.facts["load_address"] != LOAD

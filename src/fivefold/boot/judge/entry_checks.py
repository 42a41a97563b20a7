"""Check from outside what an entry with paging on came to: the mode that the loader was in, and the one that stays."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from fivefold.arch import Cr4
from fivefold.boot.result import Check
from fivefold.machine.base import Registers
from fivefold.memory import PhysReader
from fivefold.units import PhysAddr, hex64

ENTERED_LEVELS: Final = {"long48": 4, "long57": 5, "efi": 4, "efi57": 5}
"""Levels of paging that are on when the entry is reached, by its name."""
_BORROWED_SIZE: Final = 2 * 4096


def switch_checks(
    entry: str,
    expected_levels: int,
    words: Mapping[str, int],
    registers: Registers,
    memory: PhysReader,
    pages_used_again: bool = False,
) -> list[Check]:
    """The change of mode: none after a 32-bit entry, so no checks. *words* are the guest's claims.

    *pages_used_again*: other CPUs started through the same low pages, whose content says nothing then.
    """
    entered = ENTERED_LEVELS.get(entry)
    if entered is None:
        return []
    found = 5 if registers.cr4 & Cr4.LA57 else 4
    place = words.get("trampoline", 0)
    changed = entered != expected_levels
    checks = [
        Check.outside(
            "mode_switch_entered",
            "" if words.get("entered_levels", 0) == entered else f"not entered with {entered} levels",
        ),
        Check.outside(
            "mode_switch_ended",
            "" if found == expected_levels else f"{found} levels are on, expected {expected_levels}",
        ),
        Check.outside("mode_switch_place", "" if bool(place) == changed else f"the trampoline was at {hex64(place)}"),
    ]
    if place and not pages_used_again:
        given_back = _is_given_back(words, memory)
        checks.append(Check.outside("mode_switch_given_back", "" if given_back else "the low pages are not as before"))
    return checks


def _is_given_back(words: Mapping[str, int], memory: PhysReader) -> bool:
    """Whether the low pages hold what was saved of them."""
    kept = memory.read(PhysAddr(words["borrowed"]), _BORROWED_SIZE)
    return memory.read(PhysAddr(words["trampoline"]), _BORROWED_SIZE) == kept

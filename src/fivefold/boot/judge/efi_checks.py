"""Check from outside the address space in which the booted kernel calls its firmware."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Final

from fivefold.arch import AddressSpace, PageRun, regions
from fivefold.boot.judge.evidence import Evidence
from fivefold.boot.result import Check
from fivefold.units import PhysAddr

PRIVATE: Final = ("guard_hole", "ldt_remap")
"""Areas that no address space shares with the kernel's own."""


def efi_checks(seen: Evidence, words: Mapping[str, int]) -> Iterator[Check]:
    """The firmware's window holds the firmware, the lower half nothing, the rest is the kernel's, run by run."""
    space = replace(seen.space, root=PhysAddr(words.get("efi_root", 0)))
    if not words.get("efi_root"):
        yield Check.outside("efi_space", "the kernel made none")
        return
    window = seen.area("efi_runtime")
    mapped = list(regions(space, range(window.start, window.end), contiguous=True))
    yield Check.outside("efi_window", _window(seen, mapped))
    if words.get("efi_attributes"):
        both = [run for run in mapped if run.rights.write and run.rights.execute]
        yield Check.outside("efi_window_write_or_execute", f"{both[0]} and {len(both) - 1} more" if both else "")
    lower = list(regions(space, range(space.mode.gap.start)))
    yield Check.outside("efi_lower_half_empty", str(lower[0]) if lower else "")
    yield Check.outside("efi_shares_kernel", _differs(seen, space, window.start, window.end))


def _window(seen: Evidence, mapped: list[PageRun]) -> str:
    """Something executable, all of it for the kernel only, none of it memory that the kernel hands out."""
    if not any(run.rights.execute for run in mapped):
        return "nothing in the window can be executed"
    for run in mapped:
        if run.rights.user or any(run.phys < ram.end and ram.start < run.phys + run.size for ram in seen.ram):
            return str(run)
    return ""


def _differs(seen: Evidence, space: AddressSpace, start: int, end: int) -> str:
    """The first run outside the window and the private areas that one of the two has and the other has not."""
    apart = [range(area.start, area.end) for area in seen.areas if area.name in PRIVATE]
    for part in (range(space.mode.gap.stop, start), range(end, 1 << 64)):
        ours, theirs = (
            [run for run in regions(one, part) if not any(run.start in area for area in apart)]
            for one in (seen.space, space)
        )
        for one in ours:
            if one not in theirs:
                return f"{one} is the kernel's alone"
        if len(ours) != len(theirs):
            return f"{len(theirs)} runs, the kernel has {len(ours)}"
    return ""

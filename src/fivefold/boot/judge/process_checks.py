"""Checks from outside of the address space that the booted kernel leaves alive beside its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Final

from fivefold.arch import ENTRIES, AddressSpace, distinct_tables, regions
from fivefold.boot.judge.evidence import Evidence
from fivefold.boot.result import Check
from fivefold.units import PAGE, PhysAddr, hex64

WINDOW_END: Final = (1 << 47) - PAGE
"""What a process is given without asking (Linux Documentation, x86_64 5-level paging, "User-space and large virtual
address space")."""


def process_checks(seen: Evidence, words: Mapping[str, int]) -> Iterator[Check]:
    """The kept space: its lower half, its kernel half, its tables; and which ways led back from system calls."""
    space = replace(seen.space, root=PhysAddr(words.get("user_root", 0)))
    yield Check.outside("user_space", _lower_half(space))
    yield Check.outside("sync_kernel_half", _kernel_half(seen, space))
    yield Check.outside("free_tables", _own_tables(seen, space, words.get("user_tables", 0)))
    if words.get("syscall_stays"):
        return  # the guest has said so
    fast, safe = words.get("fast_returns", 0), words.get("safe_returns", 0)
    yield Check.outside("syscall_ways_back", "" if fast and safe == 1 else f"{fast} fast and {safe} safe returns")


def _lower_half(space: AddressSpace) -> str:
    """What a process has is its own, inside the window, and not writable and executable; the rest is not its own."""
    half = space.mode.gap.start
    mine = list(regions(space, range(half)))
    if not mine:
        return "nothing is mapped"
    for run in mine:
        if not run.rights.user or (run.rights.write and run.rights.execute) or run.end > WINDOW_END:
            return str(run)
    return next((str(run) for run in regions(space, range(half, 1 << 64)) if run.rights.user), "")


def _kernel_half(seen: Evidence, space: AddressSpace) -> str:
    """Each top entry of the kernel's half leads to the same table in both, but for the LDT's and the guard hole."""
    size = 1 << seen.space.mode.top.shift
    private = {
        (area.start + offset) // size % ENTRIES
        for area in seen.areas
        if area.name in ("guard_hole", "ldt_remap")
        for offset in range(0, area.size, size)
    }
    for slot in range(ENTRIES // 2, ENTRIES):
        ours, theirs = (
            int.from_bytes(seen.memory.read(PhysAddr(root + 8 * slot), 8), "little")
            for root in (seen.space.root, space.root)
        )
        same = seen.cpu.frame_mask(PAGE) & (ours ^ theirs) == 0
        if slot in private:
            if theirs:
                return f"slot {slot} of the process' table is {hex64(theirs)}, expected nothing"
        elif not same:
            return f"slot {slot} of the process' table is {hex64(theirs)}, the kernel's is {hex64(ours)}"
    return ""


def _own_tables(seen: Evidence, space: AddressSpace, said: int) -> str:
    """The tables that only this space leads to are those that the ledger says."""
    ours, theirs = (
        {frame for level in distinct_tables(one).values() for frame in level} for one in (seen.space, space)
    )
    own = len(theirs - ours)
    return "" if own == said else f"{own} tables of its own, the ledger says {said}"

"""What a change of paging mode for each process would cost: instructions, and what the TLB and the walker lose.

    python bench/mode_switch.py

The proposal's discussion asked for it. Instructions are counted on the embedded engine, from the first of the
trampoline to the first after it. The walker's work is counted on real tables: what must be read again for a
working set, when nothing is cached (a change of mode drops every translation, global ones too) and when the
kernel's global ones survive (an ordinary change of process).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Final

from fivefold.boot import BootOptions, build_image
from fivefold.boot.guests import make_guest
from fivefold.machine import Machine, start
from fivefold.units import GIB, MIB

KERNEL_PAGES: Final = 64
"""4 KiB pages of the kernel that a system call or two touches: the image is mapped by such."""
USER_PAGES: Final = (16, 256, 4096)
DIRECTIONS: Final = {"to five": ("long48", ""), "to four": ("long57", "no5lvl")}
STRIDE: Final = 40
"""Fewer than the trampoline has, so that it is not missed."""


def trampoline_cost(entry: str, cmdline: str) -> int:
    """Instructions inside the trampoline: from its first to the jump back."""
    options = BootOptions(entry=entry, cmdline=cmdline, memory=64 * MIB)  # type: ignore[arg-type]
    guest = make_guest("la57", options, build_image())
    with start("unicorn", guest) as machine:
        inside = _run_while(machine, lambda rip: rip >= MIB, STRIDE)
    with start("unicorn", guest) as machine:
        machine.run(limit=inside - STRIDE)
        first = _run_while(machine, lambda rip: rip >= MIB, 1)
        return _run_while(machine, lambda rip: rip < MIB, 1) - first


def _run_while(machine: Machine, goes_on: Callable[[int], bool], stride: int) -> int:
    """Run, *stride* instructions at a time, while the next one's address *goes_on*; return the count so far."""
    while goes_on(machine.registers().rip):
        machine.run(limit=stride)
    return machine.instructions or 0


def entries_read(pages: int, levels: int, spread: int) -> int:
    """Table entries that are read for *pages* 4 KiB pages, *spread* bytes apart, with empty caches.

    The walker keeps upper entries while it works through neighbours: each distinct one is read once.
    """
    total = pages
    for level in range(2, levels + 1):
        span = 1 << (12 + 9 * (level - 1))
        total += len({page * spread // span for page in range(pages)})
    return total


def main() -> None:
    """Print both tables as docs/mode_switch.md has them."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    print("| change | instructions in the trampoline | MOV CR3 instead |")
    print("| --- | ---: | ---: |")
    for name, (entry, cmdline) in DIRECTIONS.items():
        print(f"| {name} | {trampoline_cost(entry, cmdline)} | 1 |")
    print()
    print("| user pages | apart | entries read, ordinary change of process | change of mode, to five | to four |")
    print("| ---: | ---: | ---: | ---: | ---: |")
    for pages in USER_PAGES:
        for spread, text in ((4096, "4K"), (2 * MIB, "2M"), (GIB, "1G")):
            kernel = {levels: entries_read(KERNEL_PAGES, levels, 4096) for levels in (4, 5)}
            user = {levels: entries_read(pages, levels, spread) for levels in (4, 5)}
            print(f"| {pages} | {text} | {user[4]} | {user[5] + kernel[5]} | {user[4] + kernel[4]} |")


if __name__ == "__main__":
    main()

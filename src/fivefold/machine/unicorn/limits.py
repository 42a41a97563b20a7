"""What a guest may need that Unicorn has not got. Free of any engine: it is asked before one is chosen."""

from __future__ import annotations

from fivefold.machine.base import EFI_ENTRIES, EntryPoint


def unicorn_lacks(entry: EntryPoint, cpus: int) -> str | None:
    """Why Unicorn cannot run a guest with *entry* on *cpus* CPUs, None if it can; QEMU can.

    >>> unicorn_lacks("pvh", 2)
    'unicorn has one CPU, not 2'
    """
    if cpus != 1:
        return f"unicorn has one CPU, not {cpus}"
    if entry in EFI_ENTRIES or entry == "multiboot2":
        return f"unicorn has no firmware for the entry {entry}"
    return None

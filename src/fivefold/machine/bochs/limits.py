"""What a guest may need that Bochs has not got. Free of any engine: it is asked before one is started."""

from __future__ import annotations

from fivefold.machine.base import EntryPoint


def bochs_lacks(entry: EntryPoint, hibernate: bool) -> str | None:
    """Why Bochs cannot run a guest with *entry*, or save and restart one; None if it can.

    >>> bochs_lacks("pvh", False)
    'bochs boots an ISO by GRUB: its entry is multiboot2, not pvh'
    """
    if entry != "multiboot2":
        return f"bochs boots an ISO by GRUB: its entry is multiboot2, not {entry}"
    if hibernate:
        return "bochs shows no memory: what was saved cannot be taken over into a restarted machine"
    return None

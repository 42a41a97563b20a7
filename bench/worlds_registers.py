"""What stands in for the registers that `in_use.py` asks, where its code runs natively beside a world (`worlds.py`)."""

from __future__ import annotations

from fivefold.metal.lang import u64

root: u64 = 0
levels: u64 = 0


def active_root() -> u64:
    """The world's top table."""
    return root


def active_levels() -> u64:
    """The depth of the world's tables."""
    return levels


def bars_user_pages() -> bool:
    """No world has SMEP or SMAP on."""
    return False


def die(text: str) -> None:
    """Note that the boot code stopped the machine."""
    global deaths
    deaths += 1


deaths: u64 = 0

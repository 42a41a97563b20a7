"""How much memory is free on this machine, for bounds on what is copied."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from fivefold.units import GIB

MEMINFO: Final = Path("/proc/meminfo")
GROUP: Final = Path("/sys/fs/cgroup")
UNKNOWN: Final = 8 * GIB
"""What is taken for free where the system does not say."""


def half_of_free() -> int:
    """Half of the memory that programs can have without swapping, in bytes; less where a control group allows less."""
    return min(_available(), _left_to_group()) // 2


def _available() -> int:
    try:
        found = re.search(r"^MemAvailable:\s+(\d+) kB", MEMINFO.read_text(), re.MULTILINE)
    except OSError:
        return UNKNOWN
    return int(found[1]) << 10 if found else UNKNOWN


def _left_to_group() -> int:
    """What the control group that the process sees as its own leaves, however much that is."""
    try:
        limit, used = ((GROUP / name).read_text().strip() for name in ("memory.max", "memory.current"))
        return max(int(limit) - int(used), 0)
    except (OSError, ValueError):  # no such group, or one without a limit
        return 1 << 63

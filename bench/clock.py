"""The clock of the benches that run whole commands."""

from __future__ import annotations

import os
import resource
import time
from typing import Final

VARIABLE: Final = "FIVEFOLD_BENCH_CLOCK"
CLOCKS: Final = ("wall", "processor")


def now() -> float:
    """Seconds by the clock that the environment names: the wall's, or what this process and its finished ones used."""
    if os.environ.get(VARIABLE) != "processor":
        return time.perf_counter()
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(part.ru_utime + part.ru_stime for part in used)

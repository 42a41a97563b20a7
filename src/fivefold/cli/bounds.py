"""How much memory a command may take for itself: a small file can ask for all there is.

Counted is what the process writes to (``RLIMIT_DATA``), not files that it maps. Every allocation beyond fails, wherever
it is made, so the bound covers every part of a command.
"""

from __future__ import annotations

import contextlib
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from fivefold.units import GIB, MIB, format_size

MAX_MEMORY: Final = 1792 * MIB
"""Unless an option changes it: less than 2 GiB with what the process is made of and a file of some size."""

_ROOM: Final = GIB
"""A limit on the address space that leaves less than this beyond ours is met first."""

_given: int | None = None
"""What ``--max-memory`` says."""

_bound: int | None = None
_before: int = 0
"""The last bound that was set, and what the process had written to by then, which does not count."""


def copies() -> int | None:
    """What may be copied or unpacked in bytes, where ``--max-memory`` says so."""
    return _given


@contextlib.contextmanager
def bounded(given: int | None) -> Iterator[None]:
    """Let the process take as much as was *given* with ``--max-memory``, or `MAX_MEMORY`, inside the ``with`` block."""
    global _given
    before, _given = _given, given
    try:
        with limited(MAX_MEMORY if given is None else given):
            yield
    finally:
        _given = before


@contextlib.contextmanager
def limited(size: int) -> Iterator[None]:
    """Let the process take at most *size* more bytes inside the ``with`` block; a lower limit from outside stays."""
    global _bound, _before
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    before = _written()
    ours = soft == resource.RLIM_INFINITY or before + size < soft
    if ours:
        resource.setrlimit(resource.RLIMIT_DATA, (before + size, hard))
        _bound, _before = size, before
    try:
        yield
    finally:
        if ours:
            resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def bound_met() -> str | None:
    """Say which bound is met when memory has run out; None where it is a limit from outside, or there is none left.

    To be asked while the error still holds what was allocated.
    """
    outside, _ = resource.getrlimit(resource.RLIMIT_AS)
    if _bound is None or (outside != resource.RLIM_INFINITY and outside < _before + _bound + _ROOM):
        return None
    if _written() - _before < _bound * 2 // 3:
        return None
    return f"this needs more than {format_size(_bound)} of memory; allow more with --max-memory SIZE"


def _written() -> int:
    """Bytes that count for the limit."""
    pages = Path("/proc/self/statm").read_text().split()[5]
    return int(pages) * resource.getpagesize()

"""Which exception led straight to which, by RIP and RSP, for sources that do not say it."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from fivefold.arch import Escalation, Vector, escalate
from fivefold.explain.logs.trace import RaisedException

_MOVED: Final = frozenset({"rip", "rsp", "rflags", "cpl"})
"""What a delivery changes."""


def link(first: RaisedException, after: RaisedException) -> RaisedException | None:
    """*after* joined to *first*, which was delivered just before it, or None if it came later.

    An interrupt, an ``int n`` or a benign exception is forgotten when another one is raised while it
    is delivered; neither RIP nor RSP has moved then. And an exception was raised at the first
    instruction of a handler if the stack pointer is just below that of the interrupted code: five
    words, or six with an error code, pushed from a multiple of 16 down. Out of ring 3, and with an
    IST, the stack is another one; there a fetch that fails at its own address counts, if no other
    register has changed.
    """
    if first.rsp is None or after.rsp is None:
        return None
    if (after.rip, after.rsp) == (first.rip, first.rsp):
        is_benign = first.software or first.external or escalate(first.vector, Vector.PF) is Escalation.SERIAL
        return replace(after, during=first.vector) if is_benign else None
    if after.rip == first.rip or after.cpl not in (0, None):
        return None
    frame = 48 if first.has_error_code else 40
    top = first.last_rsp if first.last_rsp is not None else first.rsp
    if _registers_changed(first, after):
        return None
    is_next = after.rsp == (top & ~15) - frame or (after.cr2 == after.rip and _nothing_ran(first, after, frame))
    return replace(after, linked=True) if is_next else None


def _registers_changed(first: RaisedException, after: RaisedException) -> bool:
    """Whether a general register differs, in a source that has them for both: then instructions ran in between."""
    if not (first.line and after.line and first.cpu and after.cpu):
        return False
    old, new = first.cpu.general, after.cpu.general
    return any(old[name] != new[name] for name in old.keys() & new.keys() - _MOVED)


def _nothing_ran(first: RaisedException, after: RaisedException, frame: int) -> bool:
    """Whether every general register is as it was, and RSP where an aligned stack has just taken a frame."""
    # An engine remembers the registers at the end only; a log has them for each line.
    if not (first.line and after.line and first.cpu and after.cpu) or (after.rsp or 0) + frame & 15:
        return False
    old, new = (
        {name: value for name, value in cpu.general.items() if name not in _MOVED} for cpu in (first.cpu, after.cpu)
    )
    return len(old) > 8 and old == new

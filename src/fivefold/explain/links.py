"""Which exception led straight to which: told from RIP and RSP, for sources that do not say it."""

from __future__ import annotations

from dataclasses import replace

from fivefold.arch import HAS_ERROR_CODE, Escalation, Vector, escalate
from fivefold.explain.trace import Strike


def link(first: Strike, struck: Strike) -> Strike | None:
    """*struck* joined to *first*, which was delivered just before it, or None if it came later.

    An interrupt, an ``int n`` or a benign exception is forgotten when another one strikes while it
    is delivered; neither RIP nor RSP has moved then. And an exception struck at the first
    instruction of a handler if the stack pointer is just below that of the interrupted code: five
    words, or six with an error code, pushed from a multiple of 16 down. Out of ring 3 the
    stack is another one; there a fetch that fails at its own address right after counts.
    """
    if first.rsp is None or struck.rsp is None:
        return None
    if (struck.rip, struck.rsp) == (first.rip, first.rsp):
        is_benign = first.software or escalate(first.vector, Vector.PF) is Escalation.SERIAL
        return replace(struck, during=first.vector) if is_benign else None
    if struck.rip == first.rip or struck.cpl not in (0, None):
        return None
    frame = 48 if first.vector in HAS_ERROR_CODE and not first.software else 40
    top = first.last_rsp if first.last_rsp is not None else first.rsp
    is_next = struck.rsp == (top & ~15) - frame or (first.cpl == 3 and struck.cr2 == struck.rip)
    return replace(struck, linked=True) if is_next else None

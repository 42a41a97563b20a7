"""Why a run failed: the first cause, by `explain` where there are exceptions, else in the kernel's own words."""

from __future__ import annotations

import io
from typing import Final

from fivefold.errors import FivefoldError
from fivefold.explain import Explanation, explain
from fivefold.matrix.result import RunCause
from fivefold.matrix.run.console import oops_of, panic_of
from fivefold.matrix.run.places import MachinePlaces
from fivefold.memory import Source

_UNKNOWN: Final = "unknown"
_LINES_KEPT: Final = 1 << 20


def explained(log: str | bytes, source: Source | None) -> Explanation | None:
    """What `explain` makes of a log, beside memory if there is some; None where the log has no exception."""
    data = log.encode() if isinstance(log, str) else log
    try:
        found = explain(io.BytesIO(data[-_LINES_KEPT:]), source)
    except (FivefoldError, OSError, ValueError):
        return None
    return found if found.exceptions else None


def cause_of_log(log: str | bytes, places: MachinePlaces) -> RunCause | None:
    """The first cause in a log of exceptions: a rule, a sentence, and the function that was running."""
    found = explained(log, places.source)
    if found is None:
        return None
    rip = found.guilty.raised.rip if found.guilty else None
    symbol = places.name(rip) if rip is not None else None
    where = places.where(rip).removeprefix(", ") if rip is not None else ""
    sentence = (found.headline or found.cause.sentence) + (f" ({where})" if where else "")
    return RunCause(str(found.cause.rule), sentence, symbol)


def cause_of_console(console: bytes, places: MachinePlaces) -> RunCause | None:
    """Of what the kernel printed: its oops explained if there is one, else its panic's own words."""
    oops, panic = oops_of(console), panic_of(console)
    if oops is None and panic is None:
        return None
    if oops is not None:
        start = console.find(oops.encode("ascii", "ignore")[:16])
        cause = cause_of_log(console[max(0, start - 4096) :], places)
        symbol = cause.symbol if cause else None
        after = console[max(0, start) :]
        symbol = symbol or _symbol_in(after) or _caller(after)  # a jump to nowhere has a caller
        if cause is not None and cause.rule != _UNKNOWN:
            return RunCause(cause.rule, cause.sentence, symbol)
        return RunCause("oops", oops, symbol)
    return RunCause("panic", panic or "a panic without words", _caller(console))


def _symbol_in(text: bytes) -> str | None:
    """The function in a line ``RIP: 0010:name+0x…``."""
    at = text.find(b"RIP: 0010:")
    if at < 0:
        return None
    word = text[at + 10 : at + 200].split(b"\n")[0].split(b"+")[0].strip()
    return word.decode("ascii", "replace") if word and not word.startswith((b"0x", b"[")) else None


def _caller(console: bytes) -> str | None:
    """Who called panic(), by the trace behind it."""
    at = console.find(b"Call Trace:")
    for line in console[at:].splitlines() if at >= 0 else ():
        name = line.rpartition(b"] ")[2].strip().split(b"+")[0]
        skipped = (b"dump_stack", b"panic", b"vpanic", b"? ", b"<", b"Call Trace", b"__warn", b"show_")
        if b"+0x" in line and name and not name.startswith(skipped):
            return name.decode("ascii", "replace")
    return None

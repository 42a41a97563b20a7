"""Why a run failed: the first cause, by `explain` where there are exceptions, else in the kernel's own words."""

from __future__ import annotations

import io
from typing import Final

from fivefold.errors import FivefoldError
from fivefold.explain import Explanation, explain
from fivefold.matrix.result import RunCause
from fivefold.matrix.run.console import oops_of, panic_of
from fivefold.matrix.run.watch import SymbolAt
from fivefold.memory import Source
from fivefold.survey.space import Space
from fivefold.units import hex64

_UNKNOWN: Final = "unknown"
_LINES_KEPT: Final = 1 << 20


def symbol_lookup(source: Source | None) -> SymbolAt:
    """Names of functions, without distances, from what the kernel in memory carries; no names where there are none."""
    if source is None:
        return _no_name
    try:
        space = Space(source)
        symbols = space.symbols
    except (FivefoldError, OSError, ValueError):
        return _no_name
    return lambda va: _bare(symbols.at(va))


def _no_name(va: int) -> str | None:
    return None


def _bare(name: str | None) -> str | None:
    return name.split("+")[0] if name else None


def explained(log: str | bytes, source: Source | None) -> Explanation | None:
    """What `explain` makes of a log, beside memory if there is some; None where the log has no exception."""
    data = log.encode() if isinstance(log, str) else log
    try:
        found = explain(io.BytesIO(data[-_LINES_KEPT:]), source)
    except (FivefoldError, OSError, ValueError):
        return None
    return found if found.exceptions else None


def cause_of_log(log: str | bytes, source: Source | None, name: SymbolAt) -> RunCause | None:
    """The first cause in a log of exceptions: a rule, a sentence, and the function that was running."""
    found = explained(log, source)
    if found is None:
        return None
    rip = found.guilty.raised.rip if found.guilty else None
    symbol = name(rip) if rip is not None else None
    return RunCause(str(found.cause.rule), found.headline or found.cause.sentence, symbol)


def cause_of_console(console: bytes, source: Source | None, name: SymbolAt) -> RunCause | None:
    """Of what the kernel printed: its oops explained if there is one, else its panic's own words."""
    oops, panic = oops_of(console), panic_of(console)
    if oops is None and panic is None:
        return None
    if oops is not None:
        start = console.find(oops.encode("ascii", "ignore")[:16])
        cause = cause_of_log(console[max(0, start - 4096) :], source, name)
        symbol = cause.symbol if cause else None
        symbol = symbol or _symbol_in(console[max(0, start) :])
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


def hang_cause(places: tuple[int, ...], halted: bool, name: SymbolAt, silent: float, timeout: bool) -> RunCause:
    """Where a machine stands still."""
    at = places[0] if places else None
    symbol = name(at) if at is not None else None
    spot = "at an unknown place" if at is None else f"at {hex64(at)}{f' ({symbol})' if symbol else ''}"
    if timeout:
        return RunCause("timeout", f"it was still running {spot} when its time was up", symbol)
    state = "halted" if halted else "running in one place"
    low = " in low memory, so before or below the kernel's own half" if at is not None and at < 1 << 47 else ""
    return RunCause("hang", f"nothing on the console for {silent:.0f} s; the CPU is {state} {spot}{low}", symbol)

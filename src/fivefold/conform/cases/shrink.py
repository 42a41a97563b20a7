"""Smaller cases: each with one thing less that is out of the ordinary."""

from __future__ import annotations

from collections.abc import Iterator

from fivefold.conform.cases.case import Case, CaseError, impossible, make_case


def smaller(case: Case) -> Iterator[Case]:
    """Cases that are simpler than *case* by one step, the boldest steps first."""
    seen = {case}
    for found in _steps(case):
        if found not in seen and impossible(found) is None:
            seen.add(found)
            yield found


def _steps(case: Case) -> Iterator[Case]:
    entries = dict(case.entries)
    for place in entries:
        yield from _made(case, entries={name: raw for name, raw in entries.items() if name != place})
    for flag in case.flags:
        yield from _made(case, flags=tuple(name for name in case.flags if name != flag))
    if case.pkru:
        yield from _made(case, pkru=0)
    if case.pkrs:
        yield from _made(case, pkrs=0)
    for place, raw in entries.items():
        changed = raw ^ case.usual(place)
        for bit in range(64):
            if changed >> bit & 1:
                yield from _made(case, entries=entries | {place: raw ^ 1 << bit})


def _made(
    case: Case,
    flags: tuple[str, ...] | None = None,
    entries: dict[str, int] | None = None,
    pkru: int | None = None,
    pkrs: int | None = None,
) -> Iterator[Case]:
    """*case* with some of it changed, if that is a case."""
    try:
        yield make_case(
            case.mode,
            case.action,
            case.cpl,
            case.flags if flags is None else flags,
            case.va,
            dict(case.entries) if entries is None else entries,
            case.pkru if pkru is None else pkru,
            case.pkrs if pkrs is None else pkrs,
            case.new,
        )
    except CaseError:
        return

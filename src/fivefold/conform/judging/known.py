"""Differences that are known, from the data file `known.json`: which engine and versions, which rule, what it does.

An entry matches a check by its rule (a pattern over the title), its kinds of access (a pattern) and, where it is
given, a pattern over what was seen. So a row with a known difference still reports another one in it.
"""

from __future__ import annotations

import json
import re
from functools import cache
from importlib import resources
from typing import NamedTuple

from fivefold.conform.judging.outcome import OutcomeCheck


class Known(NamedTuple):
    """One known difference. *since* is the first version and *before* the first that has it no more, if any."""

    name: str
    engines: tuple[str, ...]
    since: tuple[int, ...]
    before: tuple[int, ...] | None
    rule: re.Pattern[str]
    access: re.Pattern[str]
    got: re.Pattern[str]
    does: str
    manual: str
    source: str

    def matches(self, engine: str, version: tuple[int, ...], check: OutcomeCheck, access: str) -> bool:
        """Whether *check* is this difference."""
        if engine not in self.engines:
            return False
        # A version that is not known, of a machine that only printed, is held against every entry of its engine.
        if version and (version < self.since or (self.before is not None and version >= self.before)):
            return False
        patterns = ((self.rule, check.rule), (self.access, access), (self.got, check.got))
        return all(pattern.fullmatch(text) for pattern, text in patterns)


@cache
def known_differences() -> tuple[Known, ...]:
    """The data file."""
    text = (resources.files("fivefold.conform.judging") / "known.json").read_text(encoding="utf-8")
    return tuple(_known(entry) for entry in json.loads(text)["differences"])


def _known(entry: dict[str, str]) -> Known:
    before = entry.get("before")
    rule, access, got = (re.compile(entry.get(name, ".*"), re.DOTALL) for name in ("rule", "access", "got"))
    return Known(
        name=entry["name"],
        engines=tuple(entry["engines"]),
        since=version_of(entry.get("since", "0")),
        before=version_of(before) if before else None,
        rule=rule,
        access=access,
        got=got,
        does=entry["does"],
        manual=entry["manual"],
        source=entry["source"],
    )


def version_of(text: str) -> tuple[int, ...]:
    """The numbers of a version, for comparing; none where it is not known."""
    return tuple(int(part) for part in re.findall(r"\d+", text))


def known_difference(engine: str, version: str, check: OutcomeCheck, access: str) -> Known | None:
    """The known difference that *check* is, if it is one."""
    numbers = version_of(version)
    return next((known for known in known_differences() if known.matches(engine, numbers, check, access)), None)

"""What a watch shows: lines, one object of JSON a look, or a table on a terminal that follows it."""

from __future__ import annotations

import json
import sys
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, TextIO

from fivefold.report.sheet import Writable, paint
from fivefold.report.text.diff import COLOURS, SIGNS, change_json, counted, told
from fivefold.survey.diff.diff import Change
from fivefold.survey.diff.watch import WatchLook
from fivefold.survey.space import Space
from fivefold.units import hex64

if TYPE_CHECKING:
    from rich.console import Group

SCHEMA: Final = "fivefold.watch/1"
LINES: Final = 100
"""Changes of one look that are printed one by one."""
KEPT: Final = 200
"""Changes that a terminal can show: no screen has more lines."""

Shown = Callable[[WatchLook], None]


@dataclass
class Totals:
    """What a watch saw in all."""

    looks: int = 0
    missed: int = 0
    seconds: float = 0.0
    still: float = 0.0
    longest: float = 0.0
    stopped: int = 0
    changes: int = 0
    natures: dict[str, int] = field(default_factory=dict)

    def take(self, look: WatchLook) -> None:
        """Count a look."""
        self.looks += 1
        self.missed += bool(look.missed)
        self.seconds = look.at
        self.still += look.stood_still
        self.longest = max(self.longest, look.stood_still)
        self.stopped += look.stopped
        for change in look.changes or ():
            self.changes += 1
            self.natures[change.nature.value] = self.natures.get(change.nature.value, 0) + 1

    def sentence(self) -> str:
        """All of it on one line."""
        order = ("added", "removed", "changed")
        natures = ", ".join(f"{self.natures[nature]} {nature}" for nature in order if nature in self.natures)
        parts = [
            f"{counted_as(self.changes, 'change')}{f' ({natures})' * bool(natures)} in "
            f"{counted_as(self.looks, 'look')} over {self.seconds:.1f} s",
            f"the guest stood still for {self.still * 1000:.1f} ms in all, {self.longest * 1000:.1f} ms at most",
        ]
        if self.missed:
            parts.append(f"{counted_as(self.missed, 'look')} without a comparison")
        if self.stopped:
            parts.append(f"it was stopped already at {self.stopped}")
        return "; ".join(parts)


def counted_as(number: int, name: str) -> str:
    """How many of what *name* is one of."""
    return f"{number} {name}{'s' * (number != 1)}"


def heading(space: Space, interval: float) -> str:
    """What is watched."""
    root = f"root {hex64(space.root.value)} ({space.root.how})"
    return f"{space.source.name}, {root}, {space.levels} levels, every {interval:g} s"


@contextmanager
def shown_as_json(out: TextIO, totals: Totals) -> Iterator[Shown]:
    """A line for each look, and one with ``summary`` at the end, however it ends: the schema ``fivefold.watch/1``."""

    def show(look: WatchLook) -> None:
        document: dict[str, Any] = {
            "schema": SCHEMA,
            "look": look.number,
            "at": round(look.at, 3),
            "stood_still": round(look.stood_still, 6),
            "stopped": look.stopped,
            "tables": look.tables,
            "missed": look.missed or None,
            "changes": None if look.changes is None else [change_json(change) for change in look.changes],
        }
        print(json.dumps(document), file=out, flush=True)

    try:
        yield show
    finally:
        summary = {
            "looks": totals.looks,
            "missed": totals.missed,
            "stopped": totals.stopped,
            "seconds": round(totals.seconds, 3),
            "stood_still": round(totals.still, 6),
            "longest": round(totals.longest, 6),
            "changes": totals.changes,
            **{nature: totals.natures.get(nature, 0) for nature in ("added", "removed", "changed")},
        }
        print(json.dumps({"schema": SCHEMA, "summary": summary}), file=out, flush=True)


@contextmanager
def shown_as_lines(out: Writable, space: Space, interval: float, totals: Totals) -> Iterator[Shown]:
    """A line for each change, with the time in front; the summary at the end."""
    out.write(f"# watching {heading(space, interval)}\n")
    sys.stdout.flush()

    def show(look: WatchLook) -> None:
        if look.missed:
            out.write(f"# {look.at:.1f} s: nothing compared: {look.missed}\n")
        elif look.changes is None:
            out.write(f"# {look.at:.1f} s: {counted_as(look.tables, 'table')}, {_still(look)}\n")
        elif look.changes:
            out.write(f"# {look.at:.1f} s: {counted(look.changes)}; {_still(look)}\n")
            for change in look.changes[:LINES]:
                out.write(f"{paint(out, SIGNS[change.nature], COLOURS[change.nature])} {told(change)}\n")
            if len(look.changes) > LINES:
                out.write(f"# and {len(look.changes) - LINES} more; --json has all\n")
        sys.stdout.flush()

    try:
        yield show
    finally:
        out.write(f"# {totals.sentence()}\n")
        sys.stdout.flush()


def _still(look: WatchLook) -> str:
    if look.stopped:
        return "the guest was stopped already"
    return f"the guest stood still for {look.stood_still * 1000:.1f} ms"


@contextmanager
def shown_live(space: Space, interval: float, totals: Totals) -> Iterator[Shown]:
    """The last changes, as many as the terminal has lines for, below what is watched and above the totals."""
    from rich.live import Live

    from fivefold.report.console import report_console

    console = report_console(piped=80, to=sys.__stdout__)
    recent: deque[tuple[float, Change]] = deque(maxlen=KEPT)

    def screen(last: WatchLook | None) -> Group:
        return _screen(heading(space, interval), last, recent, totals, console.height)

    with Live(screen(None), console=console, auto_refresh=False) as live:

        def show(look: WatchLook) -> None:
            recent.extend((look.at, change) for change in look.changes or ())
            live.update(screen(look), refresh=True)

        yield show


def _screen(
    head: str, last: WatchLook | None, recent: deque[tuple[float, Change]], totals: Totals, height: int
) -> Group:
    from rich.console import Group
    from rich.text import Text

    rows = [
        Text.assemble(f"{at:8.1f} s ", (SIGNS[change.nature], _RICH[COLOURS[change.nature]]), f" {told(change)}")
        for at, change in list(recent)[-max(height - 6, 1) :]
    ]
    for row in rows:
        row.no_wrap, row.overflow = True, "ellipsis"
    now = "" if last is None else f"{last.missed or _still(last)}, {counted_as(last.tables, 'table')}"
    quiet = [] if rows else [Text("no changes yet", style="dim")]
    return Group(Text(head, style="bold"), *rows, *quiet, Text(now), Text(totals.sentence()), Text("Ctrl-C ends it"))


_RICH: Final = {"good": "green", "bad": "bold red", "warning": "yellow"}

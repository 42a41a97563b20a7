"""A fault explained for people: what happened in one line, the evidence, the walk, the story, what is not known.

`explanation_lines` gives the plain text; colours are added by `print_explanation` only, where there is a terminal.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from fivefold.arch import Step
from fivefold.explain import ExplainedException, Explanation
from fivefold.explain.rules.error_codes import decode_error
from fivefold.explain.rules.ruling import is_unplaced
from fivefold.machine.base import vector_name
from fivefold.report.sheet import fold
from fivefold.units import hex64

if TYPE_CHECKING:
    from rich.console import Console

WIDTH: Final = 110
"""Where there is no terminal."""
MOST_WIDTH: Final = 200
LEAST_WIDTH: Final = 40
_OUTCOMES: Final = {
    "handled": "handled",
    "double-fault": "double fault",
    "triple-fault": "triple fault",
    "oops": "reported by the kernel",
    "emulation-failure": "the hypervisor gave up",
    "reset": "the CPU was reset",
    "unknown": "how it ended is not known",
}
_MODES: Final = {
    "la57": "five levels",
    "la48": "four levels",
    "32-bit": "32-bit or PAE paging, outside of long mode",
    "none": "paging is off",
    None: "the number of levels is not known",
}
_STYLES: Final = {
    "cause": "bold red",
    "source": "bold",
    "mode": "bold",
    "evidence": "bold",
    "walk": "bold",
    "story": "bold",
    "legal": "bold",
    "not known": "bold",
    "what if": "bold",
}


def print_explanation(explanation: Explanation, console: Console, verbose: bool = False) -> None:
    """Print it as wide as the terminal; *verbose* adds error codes bit by bit, registers and every walk."""
    from rich.text import Text

    width = min(console.width, MOST_WIDTH)
    for line in _folded(explanation_lines(explanation, verbose, width), width):
        heading = line.split("  ")[0] if line and not line.startswith(" ") else ""
        text = Text(line)
        if heading in _STYLES:
            text.stylize(_STYLES[heading], 0, len(heading))
        console.print(text, soft_wrap=True)


def _folded(lines: Iterable[str], width: int) -> Iterator[str]:
    for line in lines:
        yield from fold(line, width).split("\n")


def explanation_lines(explanation: Explanation, verbose: bool = False, width: int = WIDTH) -> Iterator[str]:
    """The report, line by line, without colours: headline, cause, evidence, walk, story, what is not known."""
    page = _Page(max(width, LEAST_WIDTH))
    cause = explanation.cause
    yield from page.plain(explanation.headline)
    yield ""
    level = f" at {cause.level.name}" if cause.level else ""
    yield from page.item("cause", f"{cause.rule}{level}, {cause.confidence}: {cause.manual}")
    yield from page.item("source", f"{explanation.source}: {explanation.dialect}, {_OUTCOMES[explanation.outcome]}")
    yield from page.item("mode", _MODES[explanation.mode])
    yield from page.section("evidence", (*cause.evidence, *explanation.remarks))
    guilty = explanation.guilty
    if guilty is not None and guilty.finding.steps:
        yield from _walk(guilty)
    if explanation.exceptions:
        yield ""
    for number, explained in enumerate(explanation.exceptions, 1):
        yield from _explained(page, number, explained, verbose, explained is guilty)
    yield from page.section("legal", cause.legal)
    yield from page.section("what if", [f"{answer.change}: {answer.sentence}" for answer in explanation.what_if])
    yield from page.section("address", [place.sentence for place in explanation.places])
    yield from page.section("not known", explanation.unknown)


@dataclass(frozen=True, slots=True)
class _Page:
    """Paragraphs in two columns, *width* characters wide."""

    width: int

    def plain(self, text: str) -> Iterator[str]:
        """A paragraph over the whole width."""
        yield from textwrap.wrap(text, self.width, break_long_words=False, break_on_hyphens=False) or [""]

    def item(self, heading: str, text: str, deeper: int = 0) -> Iterator[str]:
        """A paragraph in the second column, *deeper* by some more."""
        indent = " " * (11 + deeper)
        room = self.width - len(indent)
        lines = textwrap.wrap(text, room, break_long_words=False, break_on_hyphens=False) or [""]
        yield f"{heading:{len(indent)}}{lines[0]}".rstrip()
        for line in lines[1:]:
            yield indent + line

    def section(self, heading: str, items: Iterable[str]) -> Iterator[str]:
        """A heading and its paragraphs after a blank line; nothing without any."""
        items = list(dict.fromkeys(items))
        if not items:
            return
        yield ""
        for index, item in enumerate(items):
            yield from self.item(heading if not index else "", item)


def _walk(explained: ExplainedException) -> Iterator[str]:
    yield ""
    for number, step in enumerate(explained.finding.steps):
        yield f"{'' if number else 'walk':11}{_step(step, explained.finding.culprit)}"


def _explained(
    page: _Page, number: int, explained: ExplainedException, verbose: bool, is_guilty: bool
) -> Iterator[str]:
    raised = explained.raised
    during = "" if raised.during is None else f" in the delivery of {vector_name(raised.during)}"
    where = "" if raised.rip is None else f", RIP {hex64(raised.rip)}"
    symbol = "" if raised.symbol is None else f", in {raised.symbol}"
    stack = "" if raised.rsp is None else f", RSP {hex64(raised.rsp)}"
    code = "" if raised.error_code is None else f"({raised.error_code:#x})"
    times = "" if raised.repeats == 1 else f", {raised.repeats} times"
    heading = "story" if number == 1 else ""
    yield from page.item(heading, f"{number}. {explained.name}{code}{during}{where}{symbol}{stack}{times}")
    yield from page.item("", explained.finding.sentence, 3)
    if verbose:
        yield from _details(page, explained, is_guilty)
    if explained.delivery:
        yield from page.item("", f"-> {explained.delivery}", 3)


def _details(page: _Page, explained: ExplainedException, is_guilty: bool) -> Iterator[str]:
    finding, raised = explained.finding, explained.raised
    if finding.instruction is not None:
        yield from page.item("", f"instruction: {finding.instruction.text}", 3)
    if raised.error_code is not None:
        words = "; ".join(decode_error(raised.vector, raised.error_code, raised.by_tcg))
        yield from page.item("", f"error code: {words}", 3)
    if explained.place is not None:
        yield from page.item("", explained.place.sentence, 3)
    for step in finding.steps if not is_guilty else ():
        yield f"{'':14}{_step(step, finding.culprit)}"
    cpu = finding.here.registers
    control = [(name.upper(), getattr(cpu, name)) for name in ("cr0", "cr2", "cr3", "cr4", "efer")]
    known = [f"{name}={value:#x}" for name, value in control if value is not None]
    if known:
        yield from page.item("", f"{' '.join(known)} CPL={finding.here.state.cpl}", 3)


def _step(step: Step, culprit: Step | None) -> str:
    index = (step.at & 0xFFF) >> 3
    mark = "  <- this entry" if step == culprit else ""
    entry = step.entry
    rights = f" {step.rights}" if entry.is_present else ""
    where = "in the root, at an unknown place" if is_unplaced(step) else f"at {hex64(step.at)}"
    return f"{entry.level.name:4} [{index:3}] {where}: {hex64(entry.raw)}{rights}{mark}"

"""A fault explained for people: the cause first, then the story, then what it rests on.

`explanation_lines` gives the plain text; colours are added by `print_explanation` only, where there is a terminal.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator
from typing import Final

from rich.console import Console
from rich.text import Text

from fivefold.arch import Step
from fivefold.explain import ExplainedException, Explanation
from fivefold.explain.rules.error_codes import decode_error
from fivefold.machine.base import vector_name
from fivefold.units import hex64

WIDTH: Final = 110
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
    "la57": "five-level paging is on (CR4.LA57=1)",
    "la48": "four-level paging is on (CR4.LA57=0)",
    "pae": "PAE paging is on, outside of long mode",
    "32-bit": "32-bit paging is on",
    "none": "paging is off",
    None: "the number of levels is not known",
}
_STYLES: Final = {
    "cause": "bold red",
    "story": "bold",
    "why": "bold",
    "legal": "bold",
    "not known": "bold",
    "what if": "bold",
}


def print_explanation(explanation: Explanation, console: Console, verbose: bool = False) -> None:
    """Print it; *verbose* adds every entry of every walk, error codes bit by bit, and registers."""
    for line in explanation_lines(explanation, verbose):
        heading = line.split("  ")[0] if line and not line.startswith(" ") else ""
        text = Text(line)
        if heading in _STYLES:
            text.stylize(_STYLES[heading], 0, len(heading))
        console.print(text, soft_wrap=True)


def explanation_lines(explanation: Explanation, verbose: bool = False) -> Iterator[str]:
    """The report, line by line, without colours."""
    cause = explanation.cause
    yield f"{explanation.source}: {_OUTCOMES[explanation.outcome]}; {_MODES[explanation.mode]}"
    for remark in explanation.remarks:
        yield f"({remark})"
    yield ""
    level = f" at {cause.level.name}" if cause.level else ""
    yield from _item("cause", f"{cause.rule}{level} ({cause.confidence}): {cause.sentence}")
    yield from _item("", f"{cause.manual}")
    if explanation.exceptions:
        yield ""
    for number, explained in enumerate(explanation.exceptions, 1):
        yield from _explained(number, explained, verbose)
    yield from _section("why", cause.evidence)
    yield from _section("legal", cause.legal)
    yield from _section("what if", [f"{answer.change}: {answer.sentence}" for answer in explanation.what_if])
    yield from _section("address", [place.sentence for place in explanation.places])
    yield from _section("not known", explanation.unknown)


def _item(heading: str, text: str, deeper: int = 0) -> Iterator[str]:
    """A wrapped paragraph in the second column, *deeper* by some more."""
    indent = " " * (11 + deeper)
    lines = textwrap.wrap(text, WIDTH - len(indent), break_long_words=False, break_on_hyphens=False) or [""]
    yield f"{heading:{len(indent)}}{lines[0]}".rstrip()
    for line in lines[1:]:
        yield indent + line


def _section(heading: str, items: Iterable[str]) -> Iterator[str]:
    items = list(items)
    if not items:
        return
    yield ""
    for index, item in enumerate(items):
        yield from _item(heading if not index else "", item)


def _explained(number: int, explained: ExplainedException, verbose: bool) -> Iterator[str]:
    raised = explained.raised
    during = "" if raised.during is None else f" in the delivery of {vector_name(raised.during)}"
    where = "" if raised.rip is None else f", RIP {hex64(raised.rip)}"
    stack = "" if raised.rsp is None else f", RSP {hex64(raised.rsp)}"
    code = "" if raised.error_code is None else f"({raised.error_code:#x})"
    times = "" if raised.repeats == 1 else f", {raised.repeats} times"
    yield from _item("story" if number == 1 else "", f"{number}. {explained.name}{code}{during}{where}{stack}{times}")
    yield from _item("", explained.finding.sentence, 3)
    if verbose:
        yield from _details(explained)
    if explained.delivery:
        yield from _item("", f"-> {explained.delivery}", 3)


def _details(explained: ExplainedException) -> Iterator[str]:
    finding, raised = explained.finding, explained.raised
    if finding.instruction is not None:
        yield from _item("", f"instruction: {finding.instruction.text}", 3)
    if raised.error_code is not None:
        yield from _item("", f"error code: {'; '.join(decode_error(raised.vector, raised.error_code))}", 3)
    if explained.place is not None:
        yield from _item("", explained.place.sentence, 3)
    for step in finding.steps:
        yield f"{'':14}{_step(step, finding.culprit)}"
    cpu = finding.here.registers
    control = [(name.upper(), getattr(cpu, name)) for name in ("cr0", "cr2", "cr3", "cr4", "efer")]
    known = [f"{name}={value:#x}" for name, value in control if value is not None]
    if known:
        yield from _item("", f"{' '.join(known)} CPL={finding.here.state.cpl}", 3)


def _step(step: Step, culprit: Step | None) -> str:
    index = (step.at & 0xFFF) >> 3
    mark = "  <- this entry" if step == culprit else ""
    entry = step.entry
    return f"{entry.level.name:4} [{index:3}] at {hex64(step.at)}: {hex64(entry.raw)} {step.rights}{mark}"

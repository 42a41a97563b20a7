"""The reports in a log of Linux: which lines belong to one exception of one CPU.

Lines are kept apart by the caller that ``CONFIG_PRINTK_CALLER`` prints. A report begins with the line that names
what happened and ends with its end trace, or where the next one begins. A report without an exception (KASAN, a
warning, a lockup) is a report of its own: it lends nothing to the oops after it.

Source: Linux 2.6.12 to 6.18, ``arch/x86/mm/fault.c``, ``arch/x86/kernel/traps.c``, ``dumpstack.c``, ``process_64.c``,
``arch/x86/mm/extable.c``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final, Literal

from fivefold.explain.logs.text.lines import Line

ReportKind = Literal["fault", "process", "other"]
"""``fault``: an exception in the kernel. ``process``: one of a process, which it ended. ``other``: no exception."""

MOST_LINES: Final = 400
"""Lines of one report that are looked at: an oops is about 60, with all its modules and traces 200."""

_OPENS: Final = re.compile(
    r"(?P<process>segfault at (?:0x)?[0-9a-f]|traps: \S.*\[\d+\] (?:trap |general|.* ip:))"
    r"|(?P<first>unable to handle (?:kernel )?(?:page fault|paging request|NULL pointer)"
    r"|(?:BUG: )?kernel NULL pointer dereference|BUG: \S+ stack guard page was hit|Corrupted page table at"
    r"|PANIC: (?:early exception|double fault)|kernel BUG at |Missing ENDBR: |kernel stack overflow|\*\*\* DOUBLE FAULT"
    r"|kernel tried to execute NX-protected page|unable to execute userspace code)"
    r"|(?P<die>\bOops: |\bOops\[#|: [0-9a-f]{4}(?:/\d+)? \[#?\d+\]|(?:^|[\] ])general protection fault"
    r"|(?:^|[\] ])(?:double fault|invalid opcode|divide error|stack segment|int3|alignment check|invalid TSS"
    r"|segment not present|simd exception|control protection fault|kernel stack overflow|Bad pagetable|bounds)"
    r"[^\n]*?: [0-9a-f]{4} \[#?\d+\])"
    r"|(?P<other>BUG: (?:KASAN|KCSAN|KMSAN|KFENCE|sleeping|scheduling|soft lockup|workqueue|spinlock|Bad|using|MAX_"
    r"|memory leak|unable to lock|stack|looking|key|held|non-zero|corrupted)|WARNING: (?!stack)|INFO: |UBSAN: "
    r"|watchdog: |rcu: INFO|\bNMI backtrace|Kernel panic - not syncing|-{6,}\[ cut here \]|CFI failure"
    r"|usercopy: |list_(?:add|del) corruption|refcount_t: )",
    re.I,
)
_NO_WORDS: Final = re.compile(r"[\W\d]|\b[CT]\d+\]|BUG", re.I)
_FOREIGN: Final = re.compile(
    r"Unexpected Exception:\d|Fatal trap \d|!!!! X64 Exception|BAD TRAP: type|-\[ Xen-\d|check_exception old:"
    r"|KVM internal error|panic\(cpu \d|trap type \d+ code|kernel: page fault trap, code"
    r"|(?:^\s*|[^\w\s] ?)EXCEPTION: [A-Z]|\d[deip]\[CPU\d|page fault for address [0-9a-f]+ @ "
)
"""Begins the report of another kernel, or of an emulator: what follows is not of the report before it."""
_ADDRESSED: Final = re.compile(r"\b(?:at|address)\b", re.I)
_END: Final = re.compile(r"-\[? ?end trace|end Kernel panic", re.I)


_ORDER: Final = (
    re.compile(r"unable to handle|NULL pointer dereference|Corrupted page table at", re.I),
    re.compile(r"\bPF: (?:supervisor|user)", re.I),
    re.compile(r"\bPF: error_code", re.I),
    re.compile(r"\bPGD [0-9a-f]", re.I),
    re.compile(r": [0-9a-f]{4,8}(?:/\d+)? \[#?\d+\]", re.I),
)
"""What a report of a page fault prints, in this order."""
_PAGE_FAULT: Final = re.compile(
    r"unable to (?:handle|execute)|NULL pointer dereference|Corrupted page table|kernel tried to execute", re.I
)
_OTHER_DIE: Final = re.compile(
    r"general.protection|divide.error|invalid.opcode|int3|stack segment|alignment check|invalid TSS|segment not present"
    r"|simd exception|control protection|VMM communication|bounds|coprocessor",
    re.I,
)
"""Names in the line with the error code that are not of a page fault."""
_NAMED_DIE: Final = re.compile(r": [0-9a-f]{4}(?![0-9a-f])", re.I)
"""The code in that line, whose number in brackets may be damaged."""


@dataclass(slots=True)
class Report:
    """The lines of one report, in order. *mixed*: another one of the same caller began before it had its registers."""

    kind: ReportKind
    lines: list[Line] = field(default_factory=list)
    has_die_line: bool = False
    ended: bool = False
    mixed: bool = False
    stage: int = -1
    """How far it is in `_ORDER`."""
    is_over: bool = False
    """What follows is not its own, though no other one begins."""
    unclaimed: list[Line] = field(default_factory=list)
    """What follows then: of another report, or of this one in a wrong order."""

    @property
    def number(self) -> int:
        """The line that it begins at."""
        return self.lines[0].number

    @property
    def text(self) -> str:
        """All of it."""
        return "\n".join(line.text for line in self.lines)


def find_reports(lines: Iterable[Line]) -> list[Report]:
    """Every report, in the order of their first lines."""
    found: list[Report] = []
    current: dict[str | None, Report] = {}
    for line in lines:
        if line.number < 0 or _FOREIGN.search(line.text):
            current.clear()
        report = current.get(line.caller)
        opened = _opened(line, report)
        if opened is not None:
            if report is not None and _is_title(report, line.text):
                found.remove(report)
                report = None
            if report is not None and _is_unfinished(report) and opened.kind == "fault":
                report.mixed = opened.mixed = True
            found.append(opened)
            current[line.caller] = report = opened
        if report is None or len(report.lines) + len(report.unclaimed) >= MOST_LINES:
            continue
        if _is_of_another(report, line.text):
            report.unclaimed.append(line)
            continue
        report.lines.append(line)
        report.ended |= _END.search(line.text) is not None
    return found


def _opened(line: Line, report: Report | None) -> Report | None:
    """The report that *line* begins, None where it belongs to the one before, or to none."""
    match = _OPENS.search(line.text)
    if match is None:
        return None
    if 'PANIC: "' in line.text:
        return Report("other")  # crash, which says so of a dump
    kind = match.lastgroup
    if kind == "process":
        return Report("process")
    if kind == "other":
        # A panic is the end of a report, and a rule above it its beginning.
        is_inside = report is not None and report.kind == "fault" and not report.ended and "cut here" not in line.text
        return None if is_inside and "panic" in line.text.lower() else Report("other")
    if report is not None and report.kind == "fault" and not report.ended:
        if kind == "die" and not report.has_die_line and not _is_other_die(report, line.text):
            report.has_die_line = True
            return None
        if kind == "first" and not report.has_die_line and len(report.lines) == 1 and _is_prelude(report.lines[0].text):
            return None
    # An early exception is told in one line, and no other with an error code follows.
    return Report("fault", has_die_line=kind == "die" or "early exception" in match[0].lower())


def _is_title(report: Report, text: str) -> bool:
    """Whether *report* is but the first line of the one that begins with *text*: its title, in a mail or by abrt."""
    if report.kind != "fault" or report.has_die_line or any(_stage(line.text) for line in report.lines):
        return False
    (before, title), (prefix, first) = _said(report.lines[0].text), _said(text)
    return before != prefix and (title == first or not _ADDRESSED.search(title))


def _said(text: str) -> tuple[str, str]:
    """The words on the line of *text* before those that open a report, and what these say."""
    match = _OPENS.search(text)
    start = match.start() if match else 0
    return _NO_WORDS.sub("", text[:start]), text[start:].strip()


def _stage(text: str) -> int | None:
    """Which of `_ORDER` *text* is."""
    return next((stage for stage, pattern in enumerate(_ORDER) if pattern.search(text)), None)


def _is_other_die(report: Report, text: str) -> bool:
    """Whether the line with the error code is of another exception than the page fault that *report* began with."""
    return bool(_PAGE_FAULT.search(report.lines[0].text) and _OTHER_DIE.search(text))


def _is_of_another(report: Report, text: str) -> bool:
    """Whether a line goes back in the order of `_ORDER`: then it, and what follows it, is of a report whose first
    lines are lost. Two consoles may print each line twice.
    """
    if report.kind != "fault" or report.ended:
        return report.is_over
    if report.lines and _NAMED_DIE.search(text) and _is_other_die(report, text):
        report.is_over = True
    stage = _stage(text)
    if stage is None:
        return report.is_over
    is_twice = bool(report.lines) and report.lines[-1].text == text
    report.is_over |= stage < report.stage or (stage == report.stage and not is_twice)
    report.stage = max(report.stage, stage)
    return report.is_over


def _is_prelude(text: str) -> bool:
    """A line that goes before the one with the address."""
    return any(words in text for words in ("kernel tried to execute", "unable to execute", "Missing ENDBR"))


def _is_unfinished(report: Report) -> bool:
    return report.kind == "fault" and not report.ended and not report.has_die_line

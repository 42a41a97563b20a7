"""What single lines of a kernel's serial text say, whole or with characters lost on the way.

A line of ours loses characters, it does not gain any: what is left of it is a subsequence of what was sent. A damaged
line is recognised by its likeness to ours; its numbers are taken only from a whole one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from difflib import SequenceMatcher
from typing import Final, NamedTuple

VERSION_TEXT: Final = "TAP version 14"
IDENTITY_TEXT: Final = "# fivefold: 5 levels of page tables, image at 0x"
SUMMARY_TEXT: Final = "# passed of , failed , skipped"
BAIL_OUT: Final = "Bail out!"
SAVED: Final = "hibernate: saved"
STARTING: Final = "kexec: starting the next kernel"
LIKE: Final = 0.75
"""Of a damaged line: how much of it and of ours must be the same."""

_IDENTITY: Final = re.compile(r"fivefold: ([45]) levels of page tables, image at 0x([0-9a-f]{16})\b")
_RESULT: Final = re.compile(r"(not )?ok ([1-9]\d{0,4}) - (\w+?)(?:(?=(?:not )?ok [1-9])|\b(?: # SKIP (.*))?)")
_DAMAGED: Final = re.compile(r"([notk]{0,5}(?: ?[ok]{0,2})) ?(\d{0,5}) ?-? ?([a-z]\w{2,})(?: #? ?S?K?I?P? .*)?")
_DETAIL: Final = re.compile(r"^ {0,2}(?=[a-z]{2})(?:g?o?t?|e?x?p?e?c?t?e?d?):? ?0?x?[0-9a-f]{10,16}$")
_PLAN: Final = re.compile(r"(?:^|[^\d.])1\.\.(\d{1,5})$")
_SUMMARY: Final = re.compile(r"passed (\d+) of (\d+), failed (\d+), skipped (\d+)$")
_CONTROL: Final = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b[@-Z\\-_]|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_LINE_END: Final = re.compile(r"\r*\n|\r+")


class Identity(NamedTuple):
    """Which kernel begins; None where the line does not say."""

    levels: int | None
    place: int | None


class Result(NamedTuple):
    """One check. *number* and *name* are None and "" where the line is too damaged to have them."""

    number: int | None
    name: str
    outcome: str
    """``ok``, ``failed`` or ``skipped``."""
    reason: str = ""


class Sum(NamedTuple):
    """The kernel's own count, from a line whose numbers add up."""

    passed: int
    planned: int
    failed: int
    skipped: int


def lines_of(data: bytes) -> Iterator[str]:
    """The lines of *data* without a terminal's escape sequences; text as Windows tools write it, too."""
    coding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8"
    text = data.decode(coding, errors="replace")
    for line in _LINE_END.split(text):
        yield _CONTROL.sub("", line).rstrip()


def resembles(line: str, ours: str) -> bool:
    """Whether *line* is *ours* but for some characters."""
    if not LIKE * len(ours) <= len(line) <= len(ours) / LIKE:
        return False
    return SequenceMatcher(None, ours, line, autojunk=False).ratio() >= (1 + LIKE) / 2


def is_version(line: str) -> bool:
    """Whether a report begins here."""
    return line.endswith(VERSION_TEXT) or (line[:1] in "TAP" and resembles(line, VERSION_TEXT))


def identity(line: str) -> Identity | None:
    """The kernel that introduces itself."""
    if whole := _IDENTITY.search(line):
        return Identity(int(whole[1]), int(whole[2], 16))
    if not any(part in line for part in ("level", "fivefold", "tables", "image")):
        return None
    if not resembles(line[: len(IDENTITY_TEXT)], IDENTITY_TEXT):
        return None
    depth = re.search(r"(?<!\w)([45])(?!\w)", line[:20])
    return Identity(int(depth[1]) if depth else None, None)


def results(line: str) -> Iterator[Result]:
    """The checks that *line* reports: one, or more where the end of a line was lost."""
    found = False
    for whole in _RESULT.finditer(line):
        found = True
        outcome = "failed" if whole[1] else "skipped" if whole[4] is not None else "ok"
        yield Result(int(whole[2]), whole[3], outcome, whole[4] or "")
    if not found and (left := _DAMAGED.fullmatch(line)):
        head = left[1].replace(" ", "")
        if bool(head) + bool(left[2]) + ("-" in line) >= 2:
            failed = bool(set(head) & set("nt"))
            yield Result(None, left[3], "failed" if failed else "skipped" if " #" in line else "ok")


def starts_next(line: str) -> bool:
    """Whether a kernel says that it starts another."""
    return line.endswith(STARTING) or (line[:1] in ("#", " ", "k") and resembles(line, f"# {STARTING}"))


def is_detail(line: str) -> bool:
    """Whether *line* belongs to the block that follows a failed check."""
    return _DETAIL.match(line) is not None


def plan(line: str) -> int | None:
    """How many checks there were."""
    whole = _PLAN.search(line)
    return int(whole[1]) if whole else None


def summary(line: str) -> Sum | bool:
    """The kernel's count; True if *line* is one, but damaged, False if it is none."""
    whole = _SUMMARY.search(line)
    if not whole and not (any(part in line for part in ("pass", "fail", "skip")) and _is_like_summary(line)):
        return False
    numbers = [int(digits) for digits in (whole.groups() if whole else re.findall(r"\d{1,5}", line))]
    if len(numbers) != 4 or numbers[0] + numbers[2] + numbers[3] != numbers[1]:
        return True
    return Sum(*numbers)


def _is_like_summary(line: str) -> bool:
    return resembles(re.sub(r"\d", "", line).replace("  ", " "), SUMMARY_TEXT)

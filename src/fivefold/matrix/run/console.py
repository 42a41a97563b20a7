"""The console of a guest, read: the init's lines, and what the kernel says when it gives up."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from fivefold.matrix.init.asks import SYMBOLS

FORMAT: Final = 1
_LINE: Final = re.compile(rb"f5 ([0-9a-f]{1,16}) ([ -~]*?) \* ([0-9a-f]{1,8})\r?\n")
_HASH_START: Final = 0x811C_9DC5
_HASH_FACTOR: Final = 0x0100_0193
PANIC: Final = re.compile(rb"(?:Kernel panic - not syncing: ?|PANIC: (?=early exception))([^\r\n]*)")
"""An exception before the kernel can handle one stops it, too, and it says so in words of its own."""
PANIC_END: Final = b"end Kernel panic"
OOPS: Final = re.compile(
    rb"(Oops: [^\r\n]*|Oops(?=[^\r\n]*#PF)[^\r\n]*|BUG: [^\r\n]*|general protection fault[^\r\n]*"
    rb"|PANIC: (?:double|early) [^\r\n]*|kernel BUG at [^\r\n]*|Internal error: [^\r\n]*)"
)
_OTHER_OOPS: Final = re.compile(rb": [0-9a-f]{4} \[#\d+\][^\r\n]*")
"""How 6.1 begins the oops of any other exception, such as ``invalid opcode: 0000 [#1]``."""
_STOPS: Final = b" -- System halted"
_CURSOR: Final = re.compile(rb"\x1b\[[0-9;?=]*[A-Za-z]|\x1b[c()][0-9A-Z]?|[\x00-\x09\x0b\x0c\x0e-\x1f]")
_LAST: Final = 1 << 12
_SHOWN: Final = 160
_LONGEST: Final = 400
WARNING: Final = re.compile(rb"WARNING: [^\r\n]*|x86/mm: Found insecure W\+X[^\r\n]*")


@dataclass
class InitReport:
    """What one kernel reported through the init: fields by word, and whether every line of it came whole."""

    fields: dict[str, list[str]] = field(default_factory=dict)
    rows: dict[str, dict[str, tuple[int, ...]]] = field(default_factory=dict)
    symbols: dict[str, int] = field(default_factory=dict)
    text: bytes | None = None
    complete: bool = False
    missing: int = 0
    """Lines that were lost on the way."""

    @property
    def release(self) -> str | None:
        """Such as ``6.1.0-57-cloud-amd64``."""
        return " ".join(self.fields.get("release", ())) or None

    @property
    def flags(self) -> frozenset[str]:
        """Of the CPU's flags in ``/proc/cpuinfo`` those that the init looks for."""
        return frozenset(self.fields.get("flags", ()))

    @property
    def mode(self) -> str | None:
        """The mode by the kernel's own word: its flag ``la57``, which it clears with four levels."""
        if "flags" not in self.fields:
            return None
        return "la57" if "la57" in self.flags else "la48"

    def number(self, word: str) -> int | None:
        """A field that is one hexadecimal number."""
        found = self.fields.get(word)
        return int(found[0], 16) if found else None


@dataclass
class Reports:
    """All reports of a console, oldest first, and the lines behind them."""

    reports: list[InitReport] = field(default_factory=list)
    failures: list[tuple[str, int]] = field(default_factory=list)
    """What the init could not do, with the error."""
    resumed: bool = False

    @property
    def complete(self) -> int:
        """How many reports are whole."""
        return sum(report.complete for report in self.reports)


def line_hash(text: bytes) -> int:
    """The hash that stands behind a line."""
    found = _HASH_START
    for byte in text:
        found = (found ^ byte) * _HASH_FACTOR & 0xFFFF_FFFF
    return found


def read_lines(console: bytes) -> Iterator[tuple[int, list[str], int, int]]:
    """Number, words, start and end of each line of the init whose hash is right."""
    for match in _LINE.finditer(console):
        body = match[0][: match[0].rindex(b" * ")]
        if line_hash(body) == int(match[3], 16):
            yield int(match[1], 16), match[2].decode().split(), match.start(), match.end()


def read_reports(console: bytes) -> Reports:
    """What the init said in *console*."""
    found = Reports()
    current: InitReport | None = None
    expected = 0
    text_start: int | None = None
    for number, words, start, end in read_lines(console):
        word, values = words[0], words[1:]
        if word == "begin" and values == [f"{FORMAT:x}"]:
            current, expected = InitReport(), 1
            found.reports.append(current)
            continue
        if current is None:
            continue
        current.missing += max(number - expected, 0)
        expected = number + 1
        if word == "failed":
            found.failures.append((values[0], int(values[1], 16)))
        elif word == "resumed":
            found.resumed = True
        elif word == "text":
            text_start = end
        elif word == "text_end" and text_start is not None:
            current.text = _raw_text(console[text_start:start], int(values[0], 16), int(values[1], 16))
            current.missing += current.text is None
        elif word == "end":
            current.complete = current.missing == 0
        else:
            _take(current, word, values)
    return found


def _take(report: InitReport, word: str, values: list[str]) -> None:
    if word in ("memory", "access"):
        report.rows.setdefault(word, {})[values[0]] = tuple(int(value, 16) for value in values[1:])
    elif word == "symbol":
        report.symbols[SYMBOLS[int(values[0], 16)]] = int(values[1], 16)
    else:
        report.fields[word] = values


def _raw_text(sent: bytes, size: int, checked: int) -> bytes | None:
    """The kernel's text of *size* bytes as it was before the terminal's line ends, None where it was damaged."""
    text = sent.replace(b"\r\n", b"\n")[:size]
    return text if len(text) == size and line_hash(text) == checked else None


def panic_of(console: bytes) -> str | None:
    """What the first panic says."""
    match = PANIC.search(console)
    return match[1][:_LONGEST].decode(errors="replace").strip() if match else None


def gave_up(console: bytes) -> str | None:
    """What the code that unpacks the kernel says before it stops. Source: Linux, *boot/compressed/error.c*."""
    at = console.find(_STOPS)
    lines = console[max(0, at - _LAST) : at].splitlines() if at >= 0 else []
    said = [line.strip() for line in lines if line.strip()]
    return said[-1].decode(errors="replace")[:_SHOWN] if said else None


def last_line(console: bytes) -> str | None:
    """The last line with anything on it, without what moves a cursor; cut to what a person reads at a glance."""
    lines = [line for line in _CURSOR.sub(b"", console[-_LAST:]).splitlines() if line.strip()]
    return lines[-1].decode(errors="replace").strip()[:_SHOWN] if lines else None


def oops_of(console: bytes) -> str | None:
    """What the first oops, BUG or fault in the kernel says."""
    found = [match for match in (OOPS.search(console), _OTHER_OOPS.search(console)) if match is not None]
    if not found:
        return None
    match = min(found, key=lambda one: one.start())
    words = match[0]
    if match.re is _OTHER_OOPS:
        before = console[max(0, match.start() - _SHOWN) : match.start()]
        words = re.split(rb"[\r\n]|\] ", before)[-1] + words
    return words[:_LONGEST].decode(errors="replace").strip()

"""Bochs' log, and the one line in which our own engines tell a triple fault.

Bochs prints ``exception(0x0e): error_code=…`` and ``page fault for address …`` at debug level, and
at the end ``exception(): 3rd (13) exception with no resolution`` with the registers. Source: Bochs,
``cpu/exception.cc``, ``cpu/paging.cc``, ``cpu/cpu.cc`` (debug).
"""

from __future__ import annotations

import re
from collections import deque
from dataclasses import replace
from typing import Final

from fivefold.arch import Vector
from fivefold.explain.logs.lines import Block
from fivefold.explain.logs.register_text import parse_registers
from fivefold.explain.logs.trace import RaisedException, Trace

_RAISED: Final = re.compile(r"exception\(0x([0-9a-f]{2})\): error_code=([0-9a-f]{1,8})")
_FAULT: Final = re.compile(r"page fault for address ([0-9a-f]{16}) @ ([0-9a-f]{16})")
_THIRD: Final = re.compile(r"exception\(\): 3rd \((\d{1,2})\) exception")
_CHAIN: Final = 4
"""Exceptions of a triple fault, the double fault among them."""
_EVENT: Final = re.compile(
    r"(#[A-Z]{2}|NMI|vector \d+)(?:\(0x([0-9a-f]{1,8})\))?(?: at 0x([0-9a-f]{16}))?, rip 0x([0-9a-f]{16})"
)


class BochsLog:
    """Folds Bochs' lines; the last exceptions before the panic are the story."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._exceptions: deque[RaisedException] = deque(maxlen=_CHAIN)
        self._address: tuple[int, int] | None = None
        self._third: Block | None = None
        self._dump: Block | None = None
        self.total = 0

    def feed(self, block: Block) -> None:
        """Take the next block; those of other dialects are left alone."""
        if self._third is not None:
            return
        if block.has_registers:
            self._dump = block
        if block.kind != "bochs":
            return
        if match := _FAULT.search(block.head):
            self._address = (int(match[1], 16), int(match[2], 16))
        elif match := _RAISED.search(block.head):
            self._raise(int(match[1], 16), int(match[2], 16), block.number)
        elif _THIRD.search(block.head):
            self._third = block

    def trace(self) -> Trace | None:
        """The end of the log, None if it was not Bochs'."""
        if self._third is None:
            return None
        match = _THIRD.search(self._third.head)
        last = int(match[1]) if match else 0
        # Bochs dumps the registers, then gives up.
        text = "\n".join(block.text for block in (self._dump, self._third) if block)
        cpu = parse_registers(text, "Bochs' dump")
        exceptions = list(self._exceptions)
        if not exceptions or exceptions[-1].vector != last:
            exceptions.append(RaisedException(last, line=self._third.number))
        return Trace(
            self._source,
            "Bochs log",
            pair_up(exceptions[-_CHAIN:]),
            "triple-fault",
            cpu,
            total=self.total,
            resets=1,
            truncated=len(exceptions) < _CHAIN,
        )

    def _raise(self, vector: int, code: int, line: int) -> None:
        self.total += 1
        cr2, rip = self._address if self._address and vector == Vector.PF else (None, None)
        self._address = None
        self._exceptions.append(RaisedException(vector, None, code, cr2, rip, line=line))


class EventLine:
    """Our engines' ``triple fault: #PF(0x2) at …, rip … -> …``."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._line: Block | None = None

    def feed(self, block: Block) -> None:
        """Take the next block; the first such line counts."""
        if block.kind == "events" and self._line is None:
            self._line = block

    def trace(self) -> Trace | None:
        """The exceptions of that line, None if there was none."""
        if self._line is None:
            return None
        cpu = parse_registers(self._line.text, "registers")
        exceptions = [_event(match, self._line.number) for match in _EVENT.finditer(self._line.head)]
        chained = tuple(replace(s, cpu=cpu) for s in pair_up(exceptions))
        return Trace(self._source, "engine's events", chained, "triple-fault", cpu, total=len(exceptions), resets=1)


def _event(match: re.Match[str], line: int) -> RaisedException:
    name, code, cr2, rip = match.groups()
    vector = int(name.split()[1]) if name.startswith("vector") else int(Vector[name.removeprefix("#")])
    numbers = [int(number, 16) if number else None for number in (code, cr2, rip)]
    return RaisedException(vector, None, numbers[0], numbers[1], numbers[2], line=line)


def pair_up(records: list[RaisedException]) -> tuple[RaisedException, ...]:
    """Records of an engine as exceptions: what struck while which other was being delivered.

    An engine records the double fault too; here it is the vector that the third one struck in.
    """
    found: list[RaisedException] = []
    during: int | None = None
    for record in records:
        if record.vector == Vector.DF and found:
            during = int(Vector.DF)
            continue
        found.append(replace(record, during=during))
        during = record.vector
    return tuple(found)

"""The kernel's words on a serial port that is as a reset leaves it, is not there, or never takes a byte."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from fivefold.arch import LA57

DATA, FIFO, LINE, STATUS = 0x3F8, 0x3FA, 0x3FB, 0x3FD


class Uart:
    """A 16550 after a reset: words of five bits, no FIFO. What is on its way is lost when the FIFO is cleared."""

    def __init__(self, code: Any, busy_looks: int = 0) -> None:
        self.line = 0
        self.divisor = [0, 0]
        self.sent = bytearray()
        self.waiting: list[int] = []
        self.busy_looks = busy_looks
        self.looks = 0

    def inb(self, port: int) -> int:
        assert port == STATUS
        self.looks += 1
        if self.waiting and self.looks >= self.busy_looks:
            self.looks = 0
            self.sent.append(self.waiting.pop(0))
        return 0 if self.waiting else 0x60

    def outb(self, port: int, value: int) -> None:
        if port == LINE:
            self.line = value
        elif port in (DATA, DATA + 1) and self.line & 0x80:
            self.divisor[port - DATA] = value
        elif port == DATA:
            assert not self.waiting, "a byte was written while the last one was not gone"
            self.waiting.append(value & (1 << 5 + (self.line & 3)) - 1)
        elif port == FIFO and value & 4:
            self.waiting.clear()

    def text(self) -> str:
        return (self.sent + bytes(self.waiting)).decode("latin-1")


def printed(code: Any, device: Any, package: str = "fivefold.kernel") -> str:
    helpers = code(LA57, "report", package=package)
    helpers.processor.inb, helpers.processor.outb = device.inb, device.outb
    helpers.call("report.put", "Fivefold\n")
    helpers.call("report.put_decimal", 57)
    return str(device.text())


def test_a_port_that_a_reset_left_is_programmed(code: Any, guards: Callable[..., None]) -> None:
    def check(package: str) -> None:
        device = Uart(code, busy_looks=3)
        assert printed(code, device, package) == "Fivefold\n57"
        assert (device.line, device.divisor) == (3, [1, 0])

    guards(check, "report.py", ("    outb(LINE_CONTROL, EIGHT_BITS)\n", "    outb(LINE_CONTROL, 0)\n"))
    guards(check, "report.py", ("    outb(COM1, DIVISOR)\n", ""))
    guards(check, "report.py", ("if wait_for(HOLDING_EMPTY):", "if True:"))


def test_what_was_sent_before_goes_out_first(code: Any, guards: Callable[..., None]) -> None:
    def check(package: str) -> None:
        device = Uart(code, busy_looks=5)
        device.line = 3
        device.outb(DATA, ord("!"))
        assert printed(code, device, package) == "!Fivefold\n57"

    guards(check, "report.py", (" or not wait_for(ALL_SENT)", ""))


class Dead(Uart):
    """A port where each look gives the same; what is written to it is counted."""

    def __init__(self, code: Any, answer: int) -> None:
        super().__init__(code)
        self.answer = answer
        self.written = 0

    def inb(self, port: int) -> int:
        self.looks += 1
        return self.answer

    def outb(self, port: int, value: int) -> None:
        self.written += 1


@pytest.mark.parametrize(("answer", "most_looks"), [(0xFF, 1), (0x00, 100_001)])
def test_a_port_that_is_not_there_is_left_alone(code: Any, answer: int, most_looks: int) -> None:
    """Found out once, not once for each byte: a report of 4,000 bytes would take minutes."""
    device = Dead(code, answer)
    printed(code, device)
    assert (device.looks <= most_looks, device.written) == (True, 0)

"""The few devices behind x86 ports that a guest of ours talks to: a serial port, and an exit.

Source for the serial port: National Semiconductor, "PC16550D Universal Asynchronous
Receiver/Transmitter with FIFOs", register summary.
"""

from __future__ import annotations

from typing import Final

from fivefold.machine.base import EXIT_PORT, SERIAL_PORT

_LINE_CONTROL, _LINE_STATUS, _INTERRUPT_ID = 3, 5, 2
_DIVISOR_LATCH: Final = 0x80
_TRANSMITTER_EMPTY: Final = 0x60
_NO_INTERRUPT: Final = 0x01


class Ports:
    """Port space with a 16550 that never waits and never receives; everything else reads as ones."""

    def __init__(self) -> None:
        self.output = bytearray()
        self.exit_code: int | None = None
        self._serial = bytearray(8)

    def read(self, port: int, size: int) -> int:
        """What ``in`` of *size* bytes gives."""
        register = port - SERIAL_PORT
        if 0 <= register < 8 and size == 1:
            return {_LINE_STATUS: _TRANSMITTER_EMPTY, _INTERRUPT_ID: _NO_INTERRUPT}.get(
                register, self._serial[register]
            )
        return (1 << 8 * size) - 1

    def write(self, port: int, value: int) -> None:
        """``out`` of *value*; the exit port keeps the first byte ever written."""
        register = port - SERIAL_PORT
        if register == 0 and not self._serial[_LINE_CONTROL] & _DIVISOR_LATCH:
            self.output.append(value & 0xFF)
        elif 0 < register < 8:
            self._serial[register] = value & 0xFF
        elif port == EXIT_PORT and self.exit_code is None:
            self.exit_code = value & 0xFF

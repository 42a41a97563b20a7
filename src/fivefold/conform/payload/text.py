"""The results as text on the serial port, for machines whose memory cannot be read from outside.

Each line ends in ``*`` and the hash of what is before it, so that a line which was cut or garbled is seen.
Numbers are hexadecimal, without a prefix. The lines are described in `docs/conform.md`.
"""

from __future__ import annotations

from typing import Final

from fivefold.conform.payload.layout import (
    HASH_FACTOR,
    HASH_START,
    LEAVES,
    W_CPUID,
    W_HASH,
    W_SIZE,
)
from fivefold.conform.places import CASES
from fivefold.metal.lang import byte_at, inb, load64, noinline, outb, u64

COM1: Final = 0x3F8
DIVISOR_LATCH: Final = 0x80
EIGHT_BITS: Final = 3
TRANSMITTER_EMPTY: Final = 0x20

line_hash: u64 = HASH_START


def start_port() -> None:
    """Set the port to 115200 baud, 8 bits, no parity, one stop bit, with its FIFO."""
    outb(COM1 + 1, 0)
    outb(COM1 + 3, DIVISOR_LATCH)
    outb(COM1, 1)
    outb(COM1 + 1, 0)
    outb(COM1 + 3, EIGHT_BITS)
    outb(COM1 + 2, 7)


@noinline
def put_byte(byte: u64) -> None:
    """Send one byte and take it into the line's hash; waits until the port takes it, but not for ever."""
    global line_hash
    for _attempt in range(100_000):
        if inb(COM1 + 5) & TRANSMITTER_EMPTY != 0:
            break
    outb(COM1, byte)
    line_hash = (line_hash ^ byte) * HASH_FACTOR


@noinline
def put(text: str) -> None:
    """Send *text*."""
    i = 0
    while byte_at(text, i) != 0:
        put_byte(byte_at(text, i))
        i += 1


@noinline
def put_hex(value: u64) -> None:
    """Send a space and *value* without leading zeros."""
    put_byte(32)
    shift = 60
    while shift != 0 and value >> shift == 0:
        shift -= 4
    while True:
        digit = value >> shift & 15
        put_byte(digit + (48 if digit < 10 else 87))
        if shift == 0:
            break
        shift -= 4


@noinline
def end_line() -> None:
    """End the line with its hash."""
    global line_hash
    found = line_hash & 0xFFFF_FFFF
    put(" *")
    put_hex(found)
    put("\r\n")
    line_hash = HASH_START


def begin_text() -> None:
    """Say what is run, on what."""
    start_port()
    put("\r\n")
    begin_line("fivefold-conform/1")
    put_hex(load64(CASES + 8 * W_SIZE))
    put_hex(load64(CASES + 8 * W_HASH))
    end_line()
    for i in range(len(LEAVES)):
        begin_line("cpuid")
        for word in range(4):
            put_hex(load64(CASES + 8 * (W_CPUID + 4 * i + word)))
        end_line()


def begin_line(text: str) -> None:
    """Start a line with *text*."""
    global line_hash
    line_hash = HASH_START
    put(text)

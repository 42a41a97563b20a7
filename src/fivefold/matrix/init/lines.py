"""What the init prints: lines with a number and a hash, so that one which was lost or mixed with another is seen.

A line is ``f5 NUMBER WORD FIELDS… *HASH``; numbers are hexadecimal without a prefix. A line goes out in one write.
"""

from __future__ import annotations

from typing import Final

from fivefold.matrix.init.calls import write_all
from fivefold.metal.lang import buffer, byte_at, load8, noinline, store8, u64

LONGEST: Final = 4096
HASH_START: Final = 0x811C_9DC5
HASH_FACTOR: Final = 0x0100_0193
"""FNV-1a of 32 bits, over what stands before the star and its blank."""
STDOUT: Final = 1

line: Final = buffer(LONGEST + 64)
used: u64 = 0
number: u64 = 0


@noinline
def put_byte(byte: u64) -> None:
    """Add a byte to the line; what is beyond its longest form is left out."""
    global used
    if used < LONGEST:
        store8(line + used, byte)
        used += 1


@noinline
def put(text: str) -> None:
    """Add *text*."""
    i = 0
    while byte_at(text, i) != 0:
        put_byte(byte_at(text, i))
        i += 1


@noinline
def put_hex(value: u64) -> None:
    """Add a space and *value* without leading zeros."""
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
def put_bytes(at: u64, size: u64) -> None:
    """Add a space and bytes, anything but printable ASCII as a question mark."""
    put_byte(32)
    for i in range(size):
        byte = load8(at + i)
        put_byte(byte if byte >= 32 and byte < 127 else 63)


def begin(word: str) -> None:
    """Begin a line of its kind."""
    global used, number
    used = 0
    put("f5")
    put_hex(number)
    put_byte(32)
    put(word)
    number += 1


@noinline
def end() -> None:
    """End the line with its hash, and send it."""
    global used
    found = HASH_START
    for i in range(used):
        found = (found ^ load8(line + i)) * HASH_FACTOR & 0xFFFF_FFFF
    put(" *")
    put_hex(found)
    put_byte(10)
    write_all(STDOUT, line, used)
    used = 0


def restart() -> None:
    """Number the lines from 0 again, on a line of their own."""
    global number
    number = 0
    put_byte(10)
    write_all(STDOUT, line, used)

"""What 32-bit code can do too: no variables, buffers, strings or tables."""

from __future__ import annotations

from typing import Final

from fivefold.metal.lang import (
    clz,
    copy64,
    ctz,
    export,
    fill64,
    load8,
    load32,
    load64,
    noinline,
    popcount,
    store32,
    store64,
    u64,
)

ROWS: Final = (3, 1 << 40, 9)


@export
def arithmetic(a: u64, b: u64) -> u64:
    return (a + b) * (a - b) ^ -a ^ ~b ^ (a & b | 0x00FF) ^ (a << b) ^ (a >> (b + 3)) ^ a // 4096 ^ b % 64


@export
def compare(a: u64, b: u64) -> u64:
    return u64(a < b) | u64(a <= b) << 1 | u64(a == b) << 2 | min(a, b) << 3 ^ max(a, b)


@export
def bits(a: u64, b: u64) -> u64:
    return ctz(a) | clz(b) << 8 | popcount(a ^ b) << 16


@export
def table(a: u64) -> u64:
    """A chain that a compiler likes to turn into a table."""
    kind = a & 15
    if kind == 0:
        return 77
    elif kind == 1:
        return 1 << 40
    elif kind == 2:
        return 13
    elif kind == 3:
        return 99999
    elif kind == 4:
        return a ^ 5
    elif kind == 5:
        return 8
    elif kind == 6:
        return a * 9
    elif kind == 7:
        return 654321
    return 3


@noinline
def step(value: u64, up: bool) -> u64:
    return value + 3 if up else value - 1


@export
def loops(a: u64, b: u64) -> u64:
    total = a
    for i in range(b % 32, 40, 3):
        total = step(total, total & 1 == 1) ^ i
        for row in ROWS:
            total += row
    return total


@export
def memory(at: u64, a: u64, b: u64) -> u64:
    """*at* is the address of 64 bytes."""
    fill64(at, a, 4)
    store64(at + 3, b)
    store32(at + 13, a)
    copy64(at + 32, at, a & 3)
    return load64(at + 32) ^ load32(at + 5) << 8 ^ load8(at + 14)

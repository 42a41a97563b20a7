"""Every construct of the subset that computes, one or a few a function, for all targets to agree on."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final, NewType

import metal_other
from metal_other import LIMIT, across
from metal_other import original as renamed

from fivefold.metal import lang
from fivefold.metal.lang import (
    address_of,
    atomic_add64,
    atomic_exchange64,
    buffer,
    byte_at,
    clz,
    copy64,
    ctz,
    export,
    extern,
    fill64,
    inline,
    load8,
    load16,
    load32,
    load64,
    noinline,
    popcount,
    prefetch,
    store8,
    store16,
    store32,
    store64,
    symbol,
    text_address,
    u64,
)

Page = NewType("Page", int)


class Color(enum.IntEnum):
    RED = 3
    BLUE = 1 << 40


@dataclass(frozen=True)
class Row:
    name: str
    start: int
    wide: bool
    parts: tuple[int, ...]


ROWS: Final = (Row("low", 5, False, (1, 2)), Row("high", 1 << 63, True, ()), Row("end", 77, False, (9,)))
TABLE: Final = (7, 0, (1 << 64) - 1, 0x8000_0000_0000_0000, Color.BLUE)
EMPTY: Final[tuple[int, ...]] = ()
YES: Final = True
GREETING: Final = "five-fold é"
BUF: Final = buffer(256, align=64)

counter: u64 = 3
flag: bool = True


@extern
def outside(value: u64, odd: bool) -> u64: ...


@export
def arithmetic(a: u64, b: u64) -> u64:
    return (a + b) * (a - b) ^ -a ^ ~b ^ (a & b | 0x00FF)


@export
def divide(a: u64, b: u64) -> u64:
    return a // b ^ (a % b << 1) ^ a // 16 ^ a % 8 ^ a // 10 ^ a % 1000


@export
def law_of_division(a: u64, b: u64) -> bool:
    return a == a // b * b + a % b


@export
def shifts(a: u64, b: u64) -> u64:
    return (a << b) ^ (a >> b) ^ (a << 63) ^ (a >> 65)


@export
def compare(a: u64, b: u64) -> u64:
    return (
        u64(a < b)
        | u64(a <= b) << 1
        | u64(a > b) << 2
        | u64(a >= b) << 3
        | u64(a == b) << 4
        | u64(a != b) << 5
        | u64(1 < a <= b != 7) << 6
        | u64((a < 5) == (b < 5)) << 7
        | u64((a < 5) != (b < 5)) << 8
    )


def counted(value: u64) -> u64:
    global counter
    counter += 1
    return value


@export
def shortcuts(a: u64, b: u64) -> u64:
    left = a > 10 and counted(b) > 10 and counted(a) > b
    right = a > 10 or counted(b) > 10 or counted(a) > b
    chain = a < counted(b) < counted(100)
    return u64(left) | u64(right) << 1 | u64(not chain) << 2 | u64(not (left or not right)) << 3


@export
def choice(a: u64, b: u64) -> u64:
    both = (a < b) if a > 100 else (b == 3 if b < 50 else YES)
    return (a if both else counted(b)) + (1 if a == b else 2 if a < b else 3)


@export
def extremes(a: u64, b: u64) -> u64:
    return min(a, b) ^ max(a, b) << 1 ^ min(a, 3)


@export
def bits(a: u64, b: u64) -> u64:
    return ctz(a) | clz(b) << 8 | popcount(a ^ b) << 16


@export
def flags(a: bool, b: bool) -> bool:
    kept: bool = a and not b
    if kept:
        return True
    return a == b


@export
def branches(a: u64, b: u64) -> u64:
    result: u64 = 0
    if a < 10:
        result = 1
        if b < 10:
            result += 10
        else:
            pass
    elif a < 1000 and b != 0:
        result = 2
    elif a == b:
        return 99
    else:
        result = 3
    result <<= 4
    result |= a & 1
    result -= b
    result *= 3
    result ^= a
    result &= ~0xF00
    result >>= 1
    result //= 3
    result %= 1000003
    return result


@export
def loops(a: u64, b: u64) -> u64:
    total = 0
    i = 0
    while i < a % 17:
        i += 1
        if i % 3 == 0:
            continue
        if total > 5000:
            break
        j = 0
        while True:
            j += 1
            if j * j > b % 50:
                break
            total += j ^ i
    return total


@export
def forever(a: u64) -> u64:
    """What is assigned on every way to a break has a value after the loop."""
    while True:
        a = a * 3 + 1
        left = a & 7
        if left == 5 or a > 1 << 60:
            break
    return left ^ a


@export
def counts(a: u64, b: u64) -> u64:
    total = 0
    last = 0
    for i in range(a % 9):
        last = i
        i = b
        total += i
        if total > 1 << 63:
            break
    for i in range(3, b % 40, 7):
        if i == 10:
            continue
        total = total * 31 + i
        last = i
    for i in range(4):
        total += i
    return total ^ last ^ i << 60


@export
def near_the_end(a: u64) -> u64:
    """The counter must not wrap: the last round starts at the last number below the end."""
    rounds = 0
    last = 0
    for i in range(0xFFFF_FFFF_FFFF_FFFF - a % 20, 0xFFFF_FFFF_FFFF_FFFF, 6):
        rounds += 1
        last = i
    for _ in range(a, a - 1, 1 << 62):
        rounds += 100
    return rounds ^ last


@export
def empty_ranges(a: u64, b: u64) -> u64:
    rounds = 0
    for _ in range(max(a, b), min(a, b)):
        rounds += 1
    for _ in range(0):
        rounds += 1
    return rounds


@export
def unrolled(a: u64, b: u64) -> u64:
    total = a
    for row in ROWS:
        if row.wide and a < b:
            continue
        total ^= row.start
        for part in row.parts:
            if part == 2 and b % 2 == 0:
                break
            total = total * 5 + part
        if total % 7 == 3:
            break
        total += byte_at(row.name, 0) + len(row.parts)
    for item in EMPTY:
        total += item
    for k in range(2):
        for number in TABLE:
            if number == 0:
                continue
            if total % 5 == k:
                break
            total ^= number
    return total


@export
def unrolled_return(a: u64) -> u64:
    for row in ROWS:
        if a % 100 < row.start:
            return row.start
    return 1


@export
def tables(a: u64) -> u64:
    return TABLE[a % 7] ^ TABLE[a] ^ TABLE[2] ^ TABLE[9] ^ len(TABLE) ^ EMPTY[a] ^ ROWS[0].start ^ ROWS[2].parts[0]


@export
def constants(a: u64) -> u64:
    return (a + LIMIT) ^ Color.RED ^ Color.BLUE.value ^ metal_other.LIMIT ^ Page(a) ^ lang.u64(YES) ^ u64(Color.RED)


@export
def variables(a: u64, b: bool) -> u64:
    global counter, flag
    before = counter
    counter = a
    flag = b
    metal_other.shared += 3
    metal_other.switch = not b
    if flag and not metal_other.switch:
        counter ^= before
    return counter + across(a) + renamed(a)


@export
def bound(a: u64) -> u64:
    metal_other.bound_shift = a
    return a << metal_other.bound_shift


@export
def memory(a: u64, b: u64) -> u64:
    fill64(BUF, 0x0102_0304_0506_0708, 16)
    store8(BUF + 3, a)
    store16(BUF + 5, b)
    store32(BUF + 9, a >> 7)
    store64(BUF + 17, a ^ b)
    copy64(BUF + 128, BUF, a % 9)
    fill64(BUF + 64, b, a % 5)
    prefetch(BUF)
    load64(BUF)
    return load8(BUF + 3) ^ load16(BUF + 4) << 8 ^ load32(BUF + 7) << 16 ^ load64(BUF + 130)


@export
def atomics(a: u64, b: u64) -> u64:
    store64(BUF + 8, a)
    first = atomic_add64(BUF + 8, b)
    second = atomic_exchange64(BUF + 8, a ^ b)
    return first * 3 ^ second ^ load64(BUF + 8)


def length(text: str) -> u64:
    n = 0
    while byte_at(text, n) != 0:
        n += 1
    return n


@export
def texts(a: u64) -> u64:
    at = text_address(GREETING)
    return length(GREETING) ^ length("") << 8 ^ length('low\tor \\ "high"') << 16 ^ byte_at("abc", a % 4) ^ load8(at)


@export
def text_argument(text: str, start: u64) -> u64:
    return byte_at(text, start % (length(text) + 1)) ^ length(text) << 8


@export
def external(a: u64, b: u64) -> u64:
    return outside(a, b % 2 == 1) ^ outside(b, False) ^ (symbol("landmark") + a)


@export
def addresses(a: u64) -> bool:
    return address_of(counted) != address_of(length) and a - a == 0 and address_of(counted) == address_of(counted)


@noinline
def recurse(n: u64, twice: bool) -> u64:
    if n == 0:
        return 1
    return recurse(n - 1, not twice) * (2 if twice else 3)


@export
def recursion(a: u64) -> u64:
    return recurse(a % 20, a < 100)


@inline
def nothing(value: u64) -> None:
    global counter
    if value == 0:
        return
    counter = value


@export
def procedures(a: u64) -> None:
    nothing(a)
    counted(a)
    return


@export
def many(a: u64, b: bool, c: u64, d: u64, e: bool, f: u64) -> u64:
    return a ^ u64(b) ^ c << 1 ^ d << 2 ^ u64(e) << 9 ^ f << 3


@export
def names_like_ours(t1: u64, range_: u64) -> u64:
    """Locals may be called what the compiler or Python calls its own."""
    entry = t1 + 1
    int = range_ ^ entry
    metal = int * 3
    for a0 in range(entry % 4):
        metal += a0
    return metal

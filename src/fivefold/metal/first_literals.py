"""Which zlib streams may begin with some byte, natively: so that few of a hundred thousand are unpacked to see.

Source: RFC 1951, *DEFLATE Compressed Data Format Specification*. Of a stream no more is decoded than the lengths of its
first block's codes, and the first code is compared with that of the byte. The answer is no only where that code is
another one; where the block is empty or the bytes end, the answer is "may be".

A subset module, but for `that_may_begin`, which calls it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from fivefold.errors import CompileError, MachineError
from fivefold.metal.lang import buffer, byte_at, export, inline, load8, load16, load64, store8, store64, u64
from fivefold.metal.program import Program

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from fivefold.metal.run.instance import Instance

    Numbers = npt.NDArray[np.int64]

PROGRAM: Final = Program((__name__,))
"""The build of this file, which a wheel has as prebuilt code."""

LEAST: Final = 2048
"""With fewer streams the code is not made ready: unpacking them takes less."""

END: Final = 256
"""The symbol that ends a block."""
_HEAD: Final = 640
"""Bytes that hold the codes of a block and one symbol, whatever they are: 17 + 57 + 14 * 320 + 15 bits, and a word."""

ORDER: Final = "QRSAIHJGKFLEMDNCOBP"
"""In which order the lengths of the code for lengths stand, from 0 as A to 18 as S."""

TABLE: Final = buffer(128)
"""For each seven bits the symbol of the code for lengths that they begin with, times 8, and how many bits it has."""
LENGTHS: Final = buffer(32)
COUNTS: Final = buffer(16 * 8)
"""How many symbols there are so far of each length."""

byte_length: u64 = 0
byte_rank: u64 = 0
"""How many bits the code of the wanted byte has, and how many symbols before it have as many."""
end_length: u64 = 0
end_rank: u64 = 0
"""The same of `END`."""


def that_may_begin(view: memoryview, starts: Numbers, byte: int) -> Numbers:
    """The numbers of those zlib streams, each from a start in *view* on, that may begin with *byte*: most do not.

    All of them where there are few, or where this machine has no native code.
    """
    import numpy as np  # a log is explained without it

    if len(starts) < LEAST:
        return np.arange(len(starts))
    try:
        native = _native()
    except (CompileError, MachineError):
        return np.arange(len(starts))
    found, places = np.zeros(len(starts), np.int64), np.ascontiguousarray(starts, np.int64)
    mapped = [native.map(one) for one in (view, places, found)]
    try:
        count = native.call("first_literals.may_begin", mapped[0], view.nbytes, mapped[1], len(places), byte, mapped[2])
    finally:
        for address in mapped:
            native.unmap(address)
    return found[:count]


_known: list[Instance] = []


def _native() -> Instance:
    if not _known:
        from fivefold.metal.run import host

        _known.append(host.load(PROGRAM))
    return _known[0]


@export
def may_begin(data: u64, size: u64, starts: u64, count: u64, byte: u64, found: u64) -> u64:
    """Store at *found* the numbers of the streams that may begin with *byte*; how many they are.

    *starts* has a word for each: where it begins in the *size* bytes at *data*.
    """
    kept = 0
    for i in range(count):
        start = load64(starts + 8 * i)
        if size < _HEAD or start > size - _HEAD or stream_may_begin(data + start + 2, byte):
            store64(found + 8 * kept, i)
            kept += 1
    return kept


@inline
def stream_may_begin(at: u64, byte: u64) -> bool:
    """Whether the blocks at *at* may begin with *byte*."""
    head = load64(at)
    kind = (head >> 1) & 3
    if kind == 2:
        return dynamic_may_begin(at, byte)
    if kind == 1:
        return fixed_may_begin(head >> 3, byte)
    # Stored: its length, which may be 0, and that inverted. A fourth kind there is not.
    return kind == 0 and (load16(at + 1) == 0 or load8(at + 5) == byte)


def fixed_may_begin(bits: u64, byte: u64) -> bool:
    """Whether the first of *bits* are the fixed code of *byte*, or of the end."""
    if bits & 127 == 0:
        return True
    if byte < 144:
        return bits & 255 == reversed_bits(48 + byte, 8)
    return bits & 511 == reversed_bits(256 + byte, 9)


def reversed_bits(code: u64, length: u64) -> u64:
    """The *length* bits of *code* as they stand in a stream: the highest first."""
    turned = 0
    for _ in range(length):
        turned = (turned << 1) | (code & 1)
        code = code >> 1
    return turned


def dynamic_may_begin(at: u64, byte: u64) -> bool:
    """Whether the block at *at*, which brings its own codes, may begin with *byte*."""
    global byte_length, byte_rank, end_length, end_rank
    head = load64(at)
    symbols = ((head >> 3) & 31) + 257
    both = symbols + ((head >> 8) & 31) + 1
    read_length_code(at, ((head >> 13) & 15) + 4)
    for length in range(16):
        store64(COUNTS + 8 * length, 0)
    byte_length = 0
    end_length = 0
    bit = 17 + 3 * (((head >> 13) & 15) + 4)
    number = 0
    last = 0
    while number < both:
        bits = load64(at + (bit >> 3)) >> (bit & 7)
        # A word has 57 bits at least, and a symbol takes 14 at most.
        for _ in range(4):
            if number < both:
                known = load8(TABLE + (bits & 127))
                taken = known & 7
                if taken == 0:
                    return True
                symbol = known >> 3
                bits = bits >> taken
                bit += taken
                times = 1
                if symbol < 16:
                    last = symbol
                elif symbol == 16:
                    times = 3 + (bits & 3)
                    bits = bits >> 2
                    bit += 2
                elif symbol == 17:
                    times = 3 + (bits & 7)
                    last = 0
                    bits = bits >> 3
                    bit += 3
                else:
                    times = 11 + (bits & 127)
                    last = 0
                    bits = bits >> 7
                    bit += 7
                if number < symbols:
                    count_symbols(number, min(times, symbols - number), last, byte)
                number += times
    bits = load64(at + (bit >> 3)) >> (bit & 7)
    return is_code(bits, byte_length, byte_rank) or is_code(bits, end_length, end_rank)


@inline
def count_symbols(number: u64, times: u64, length: u64, byte: u64) -> None:
    """Note that *times* symbols from *number* on have codes of *length* bits."""
    global byte_length, byte_rank, end_length, end_rank
    before = load64(COUNTS + 8 * length)
    store64(COUNTS + 8 * length, before + times)
    if byte - number < times:
        byte_length = length
        byte_rank = before + byte - number
    if END - number < times:
        end_length = length
        end_rank = before + END - number


def is_code(bits: u64, length: u64, rank: u64) -> bool:
    """Whether *bits* begin with the code of *length* bits that *rank* others of this length come before."""
    if length == 0:
        return False
    code = 0
    for shorter in range(1, length):
        code = (code + load64(COUNTS + 8 * shorter)) << 1
    return bits & ((1 << length) - 1) == reversed_bits(code + rank, length)


def read_length_code(at: u64, count: u64) -> None:
    """Fill `TABLE` with the code for lengths, whose first *count* lengths stand 17 bits behind *at*."""
    for symbol in range(0, 24, 8):
        store64(LENGTHS + symbol, 0)
    lengths = load64(at + 2) >> 1  # 57 bits at most
    counts = 0  # eight bits for each length
    for i in range(count):
        length = lengths & 7
        lengths = lengths >> 3
        store8(LENGTHS + order_of(i), length)
        counts += 1 << 8 * length
    codes = 0  # the next code of each length, likewise
    code = 0
    for length in range(1, 8):
        codes |= (code & 127) << 8 * length
        code = (code + ((counts >> 8 * length) & 255)) << 1
    for symbol in range(19):
        length = load8(LENGTHS + symbol)
        if length != 0:
            entry = reversed_bits((codes >> 8 * length) & 127, length)
            codes += 1 << 8 * length
            while entry < 128:
                store8(TABLE + entry, (symbol << 3) | length)
                entry += 1 << length


@inline
def order_of(i: u64) -> u64:
    """The symbol whose length is the *i*-th."""
    return byte_at(ORDER, i) - 65

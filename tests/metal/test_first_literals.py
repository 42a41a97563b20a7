"""Which zlib streams may begin with a byte: zlib itself is the witness."""

from __future__ import annotations

import random
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fivefold.errors import MachineError
from fivefold.metal import first_literals
from fivefold.metal.run import host

PAGE = 4096
BEHIND = bytes(1024)

seeds = st.integers(0, 1 << 32).map(random.Random)
pages = st.one_of(
    st.binary(min_size=1, max_size=300).map(lambda part: (part * PAGE)[:PAGE]),
    seeds.map(lambda rng: rng.randbytes(PAGE)),
    seeds.map(lambda rng: bytes(rng.choices(range(rng.choice((2, 60, 200))), k=PAGE))),
    st.text("OSRELEASE=abc\n\0", min_size=1, max_size=900).map(lambda text: text.encode().ljust(PAGE, b"\0")),
)
ways = st.tuples(
    st.integers(0, 9),
    st.integers(1, 9),
    st.sampled_from([zlib.Z_DEFAULT_STRATEGY, zlib.Z_FILTERED, zlib.Z_HUFFMAN_ONLY, zlib.Z_RLE, zlib.Z_FIXED]),
)


@pytest.fixture(autouse=True)
def _few_are_enough(monkeypatch) -> None:
    monkeypatch.setattr(first_literals, "LEAST", 0)


def packed(page: bytes, way: tuple[int, int, int]) -> bytes:
    packer = zlib.compressobj(way[0], zlib.DEFLATED, 15, way[1], way[2])
    return packer.compress(page) + packer.flush()


def asked(streams: list[bytes], byte: int) -> list[int]:
    starts = np.cumsum([0, *map(len, streams)][:-1]).astype(np.int64)
    return first_literals.that_may_begin(memoryview(b"".join(streams) + BEHIND), starts, byte).tolist()


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(pages, ways), min_size=1, max_size=6), st.data())
def test_exactly_those_that_begin_with_the_byte(chosen, data) -> None:
    streams = [packed(page, way) for page, way in chosen]
    byte = data.draw(st.sampled_from([page[0] for page, _ in chosen]) | st.integers(0, 255))
    assert asked(streams, byte) == [number for number, (page, _) in enumerate(chosen) if page[0] == byte]


@settings(max_examples=120, deadline=None)
@given(pages, ways, st.lists(st.tuples(st.integers(0, 1000), st.integers(0, 255)), max_size=3))
def test_no_stream_that_zlib_unpacks_is_lost(page: bytes, way: tuple[int, int, int], damage) -> None:
    """Damaged ones, too, as far as zlib reads them."""
    stream = bytearray(packed(page, way))
    for at, value in damage:
        stream[at % len(stream)] = value
    try:
        begin = zlib.decompressobj().decompress(stream, 1)
    except zlib.error:
        asked([bytes(stream)], page[0])  # no answer is wrong
    else:
        assert not begin or asked([bytes(stream)], begin[0]) == [0]


@pytest.mark.parametrize(("kind", "way"), [(0, (0, 8, 0)), (1, (6, 8, zlib.Z_FIXED)), (2, (6, 8, zlib.Z_HUFFMAN_ONLY))])
def test_every_byte_in_blocks_of_each_kind(kind: int, way: tuple[int, int, int]) -> None:
    every = bytes(range(256))
    streams = [packed((every[byte:] + every[:byte]).ljust(PAGE, b"-"), way) for byte in every]
    assert {stream[2] >> 1 & 3 for stream in streams} == {kind}
    assert [asked(streams, byte) for byte in every] == [[byte] for byte in every]


@pytest.mark.parametrize("flush", [zlib.Z_SYNC_FLUSH, zlib.Z_PARTIAL_FLUSH])
def test_an_empty_block_says_nothing_of_the_next(flush: int) -> None:
    packer = zlib.compressobj()
    stream = packer.flush(flush) + packer.compress(b"OSRELEASE=") + packer.flush()
    empty = b"\x78\x9c" + bytes([0, 0, 0, 0xFF, 0xFF]) + stream[2:]  # an empty stored block before it
    fixed = b"\x78\x9c" + bytes([2, 0]) + stream[2:]  # ten bits of an empty fixed block; what follows is not aligned
    assert asked([stream, empty, fixed], ord("O")) == [0, 1, 2]


def test_an_empty_block_with_codes_of_its_own() -> None:
    """Made bit by bit: 256 has a code of one bit, the byte 1 another, and the block ends at once."""
    bits = "0" + "01"  # not the last block, of kind 2, least bit first
    bits += "00000" + "00000" + "0111"  # 257 lengths, 1 distance, 18 lengths of lengths
    lengths = {1: 2, 18: 1, 0: 2}
    order = [16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1]
    bits += "".join(f"{lengths.get(symbol, 0):03b}"[::-1] for symbol in order)
    codes = {18: "0", 0: "10", 1: "11"}

    def zeros(count: int) -> str:
        return codes[18] + f"{count - 11:07b}"[::-1]

    bits += codes[0] + codes[1] + zeros(138) + zeros(116) + codes[1] + codes[0]
    ends, begins = bits + "1", bits + "0"  # the codes of 1 and of 256 are 0 and 1
    streams = []
    for text in (ends, begins):
        whole = text + "0" * (-len(text) % 8)
        packed_bits = bytes(int(whole[at : at + 8][::-1], 2) for at in range(0, len(whole), 8))
        streams.append(b"\x78\x9c" + packed_bits + bytes(700))
    assert zlib.decompressobj().decompress(streams[1], 1) == b"\1"
    assert asked(streams, 1) == [0, 1]
    assert asked(streams, 2) == [0]


def test_where_the_bytes_end_the_answer_is_yes() -> None:
    stream = zlib.compress(bytes(range(256)) * 16)
    view = memoryview(stream + bytes(10))
    starts = np.array([0], np.int64)
    assert first_literals.that_may_begin(view, starts, 77).tolist() == [0]
    assert first_literals.that_may_begin(memoryview(stream + BEHIND), starts, 77).tolist() == []


def test_few_streams_and_machines_without_native_code(monkeypatch) -> None:
    stream = zlib.compress(bytes(range(256)) * 16)
    view, starts = memoryview(stream + BEHIND), np.zeros(3, np.int64)
    monkeypatch.setattr(first_literals, "LEAST", 4)
    assert first_literals.that_may_begin(view, starts, 77).tolist() == [0, 1, 2]
    monkeypatch.setattr(first_literals, "LEAST", 3)
    assert first_literals.that_may_begin(view, starts, 77).tolist() == []

    def refused(program: object) -> None:
        raise MachineError("no native code")

    monkeypatch.setattr(first_literals, "_known", [])
    monkeypatch.setattr(host, "load", refused)
    assert first_literals.that_may_begin(view, starts, 77).tolist() == [0, 1, 2]

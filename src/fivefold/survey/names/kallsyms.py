"""The symbol table that every Linux carries for its own use, found by its form in the image.

Names are lists of tokens; a table of 256 tokens, in which digits and letters stand for themselves, spells them. The
tables lie in two orders (the offsets first, since 6.4 last), so each is looked for by what it must hold: the tokens
by the run of digits, the names by their number in front of them, the markers by where each 256th name begins.
Source: Linux, ``scripts/kallsyms.c``, ``write_src``, 4.6 to 6.12.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice, pairwise
from typing import Final

import numpy as np
import numpy.typing as npt

from fivefold.errors import printable
from fivefold.survey.guest.vmcoreinfo import KERNEL_WINDOW
from fivefold.survey.names.image_bytes import ImagePiece
from fivefold.symbols import SymbolSpan
from fivefold.units import GIB

_DIGITS: Final = b"\x00".join(b"0123456789"[n : n + 1] for n in range(10)) + b"\x00"
_KINDS: Final = frozenset(b"aAbBdDgGiInNrRsStTuUvVwW")
_BUCKET: Final = 256
_SEPARATOR: Final = 256
_NOTHING: Final = 257
"""Codes behind those of the tokens, for the bytes that hold lengths."""
FEWEST: Final = 513
"""Three markers confirm a place, and fewer symbols have two; no kernel has so few."""
MOST: Final = 1 << 22
MOST_NAMES: Final = 64 << 20
"""Bytes in front of the tokens in which the names are looked for."""
_PROBED: Final = 8
"""Names in a row that have to look like names before a place is looked at closely."""
MOST_CANDIDATES: Final = 256
MOST_TOKEN_TABLES: Final = 16
_EVEN: Final = (np.uint64(0xFFF0_FFF0_FFF0_FFF0), np.uint64(0x0030_0030_0030_0030))
_ODD: Final = (np.uint64(0xF0FF_F0FF_F0FF_F0FF), np.uint64(0x3000_3000_3000_3000))
"""The bits that four of `_DIGITS` have, and what these are."""
_WORDS_TOGETHER: Final = 1 << 14

Addresses = npt.NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class NameTable:
    """Names by number: *data* holds lengths and tokens from *start* on, *markers* where each 256th name begins."""

    data: bytearray
    start: int
    markers: list[int]
    tokens: list[str]
    count: int

    def __call__(self, number: int) -> tuple[str, str]:
        """Kind and name of one symbol."""
        at = self.start + self.markers[number // _BUCKET]
        for _ in range(number % _BUCKET):
            size, at = _length(self.data, at)
            at += size
        size, at = _length(self.data, at)
        text = "".join([self.tokens[code] for code in self.data[at : at + size]])
        return text[:1], text[1:]

    def spelled(self) -> bytes:
        """All kinds and names, a NUL before each and one behind the last."""
        starts, wide = self._lengths()
        codes = np.frombuffer(self.data, np.uint8, starts[-1] - self.start, self.start).astype(np.uint16)
        codes[np.array(starts[:-1], np.int64) - self.start] = _SEPARATOR
        codes[np.array(wide, np.int64) - self.start] = _NOTHING
        words = [token.encode() for token in self.tokens] + [b"\0", b""]
        sizes = np.array([len(word) for word in words])
        firsts = np.cumsum(sizes) - sizes
        each = sizes[codes]
        ends = np.cumsum(each)
        within = np.arange(ends[-1]) - np.repeat(ends - each, each) + np.repeat(firsts[codes], each)
        text: bytes = np.frombuffer(b"".join(words), np.uint8)[within].tobytes()
        return text + b"\0"

    def _lengths(self) -> tuple[list[int], list[int]]:
        """Where each length stands and where the last name ends; where the second bytes of long ones stand."""
        at, starts, wide = self.start, [], []
        for _ in range(self.count):
            starts.append(at)
            size, after = _length(self.data, at)
            if after - at == 2:
                wide.append(at + 1)
            at = after + size
        return [*starts, at], wide


class _Spelled:
    """All names of a table as text, made when the first is asked for."""

    def __init__(self, names: NameTable) -> None:
        self._names = names

    @cached_property
    def text(self) -> bytes:
        return self._names.spelled()

    def all(self) -> list[tuple[str, str]]:
        words = self.text.decode("ascii", "replace").split("\0")[1:-1]
        return [(word[:1], printable(word[1:])) for word in words]

    def numbers_of(self, name: str) -> list[int]:
        """Which names are *name*, whatever their kinds."""
        tail, found = name.encode() + b"\0", []
        at = self.text.find(tail)
        while at >= 0:
            if at > 1 and not self.text[at - 2]:
                found.append(self.text.count(b"\0", 0, at) - 1)
            at = self.text.find(tail, at + 1)
        return found


def _length(data: bytearray, at: int) -> tuple[int, int]:
    """How many tokens a name has, and where they begin: two bytes since 6.1 where the first has bit 7."""
    size = data[at]
    if size & 0x80:
        return (size & 0x7F) | data[at + 1] << 7, at + 2
    return size, at + 1


@dataclass(frozen=True, slots=True)
class Kallsyms:
    """What was found: *span* of the kernel's symbols, the virtual address *at* which their names begin."""

    span: SymbolSpan
    at: int
    count: int


def find_kallsyms(pieces: Iterable[ImagePiece]) -> Kallsyms | None:
    """The kernel's symbols in its mapped image, None where the tables are not there or do not fit each other."""
    for piece in pieces:
        for tokens in _token_tables(piece.data):
            found = _with_tokens(piece, tokens)
            if found is not None:
                return found
    return None


@dataclass(frozen=True, slots=True)
class _Tokens:
    spelled: list[str]
    start: int
    end: int
    """Where the index behind them ends."""


def _token_tables(data: bytearray) -> Iterator[_Tokens]:
    for at in islice(_digits_in(data), MOST_TOKEN_TABLES):
        if (found := _tokens_around(data, at)) is not None:
            yield found


def _digits_in(data: bytearray) -> Iterator[int]:
    """Where `_DIGITS` are, ascending. `find` alone is slow in zeros, and what is absent of an image is zeros."""
    words, done = np.frombuffer(data, "<u8", len(data) // 8), 0
    for first in range(0, len(words), _WORDS_TOGETHER):
        part = words[first : first + _WORDS_TOGETHER]
        # A whole word of them is aligned, with the digits in its even bytes or in the odd ones.
        alike = ((part & _EVEN[0]) == _EVEN[1]) | ((part & _ODD[0]) == _ODD[1])
        for at in (8 * (np.flatnonzero(alike) + first)).tolist():
            found = data.find(_DIGITS, max(at + 8 - len(_DIGITS), done), at + len(_DIGITS))
            if found >= 0:
                yield found
                done = found + 1


def _tokens_around(data: bytearray, digits: int) -> _Tokens | None:
    """The table with the digits at *digits*: its index of 256 ascending offsets lies behind the last token."""
    at = digits
    for _ in range(_BUCKET - ord("0")):
        at = data.find(b"\0", at, at + 1024) + 1
        if not at:
            return None
    index_at = -(-at // 8) * 8
    raw = bytes(data[index_at : index_at + 2 * _BUCKET])
    if len(raw) < 2 * _BUCKET:
        return None
    index = struct.unpack("<256H", raw)
    start = digits - index[ord("0")]
    if index[0] or start < 0 or any(low >= high for low, high in pairwise(index)):
        return None
    ends = [*index[1:], at - start]
    words = [bytes(data[start + low : start + high]) for low, high in zip(index, ends, strict=True)]
    if any(word.find(0) != len(word) - 1 for word in words):
        return None
    return _Tokens([printable(word[:-1].decode("ascii", "replace")) for word in words], start, index_at + 2 * _BUCKET)


def _with_tokens(piece: ImagePiece, tokens: _Tokens) -> Kallsyms | None:
    for number_at, count in _candidates(piece.data, tokens):
        names = _names(piece.data, tokens, number_at + 8, count)
        if names is None:
            continue
        addresses = _addresses(piece.data, tokens, number_at, count)
        if addresses is not None:
            return _kallsyms(piece, names, addresses, number_at)
    return None


def _kallsyms(piece: ImagePiece, names: NameTable, addresses: Addresses, number_at: int) -> Kallsyms:
    # Before 6.15 what belongs to each CPU lies at small absolute numbers: those are no addresses.
    order = np.argsort(addresses, kind="stable")
    order = order[np.searchsorted(addresses[order], np.uint64(KERNEL_WINDOW)) :]
    numbers, kept = order.tolist(), addresses[order].tolist()
    spelled = _Spelled(names)
    span = SymbolSpan(
        kept,
        lambda number: names(numbers[number]),
        kept[-1] + 1,
        all_names=lambda: map(spelled.all().__getitem__, numbers),
        numbers_of=lambda name: np.flatnonzero(np.isin(order, spelled.numbers_of(name))).tolist(),
    )
    return Kallsyms(span, piece.start + number_at + 8, names.count)


def _candidates(data: bytearray, tokens: _Tokens) -> list[tuple[int, int]]:
    """Places of a number with as many names behind it, as far as the first few tell: place and number."""
    low = max(0, tokens.start - MOST_NAMES) // 8 * 8
    whole = np.frombuffer(data, np.uint8, tokens.start // 8 * 8 - low, low)
    words = whole.view("<u4")
    numbers, above = words[0::2], words[1::2]
    places = np.flatnonzero((numbers >= FEWEST) & (numbers <= MOST) & (above == 0)) * 8
    kinds = np.array([bool(text) and ord(text[0]) in _KINDS for text in tokens.spelled])
    at = places + 8
    for _ in range(_PROBED):
        inside = at < len(whole) - 4
        places, at = places[inside], at[inside]
        first = whole[at].astype(np.int64)
        wide = first >= 0x80
        size = np.where(wide, first & 0x7F | whole[at + 1].astype(np.int64) << 7, first)
        at = at + 1 + wide
        good = (size > 0) & kinds[whole[at]] & (size < 1024)
        places, at = places[good], (at + size)[good]
    kept = places[:MOST_CANDIDATES]
    return [(low + place, int(numbers[place // 8])) for place in kept.tolist()]


def _names(data: bytearray, tokens: _Tokens, start: int, count: int) -> NameTable | None:
    """The names from *start* on, where markers behind them confirm the number; their words are of 4 or 8 bytes."""
    first = _skip(data, start, _BUCKET, tokens.start)
    second = None if first is None else _skip(data, first, _BUCKET, tokens.start)
    if first is None or second is None:
        return None
    buckets = -(-count // _BUCKET)
    for form, size in (("I", 4), ("Q", 8)):
        head = struct.pack(f"<3{form}", 0, first - start, second - start)
        at = data.find(head, start + count, tokens.start)
        if at < 0 or at % 8 or at + buckets * size > tokens.start:
            continue
        markers = list(struct.unpack_from(f"<{buckets}{form}", data, at))
        if markers != sorted(markers):
            continue
        end = _skip(data, start + markers[-1], count - (buckets - 1) * _BUCKET, at)
        if end is not None and at - end < 8:
            return NameTable(data, start, markers, tokens.spelled, count)
    return None


def _skip(data: bytearray, at: int, names: int, end: int) -> int | None:
    """Where *names* names from *at* on end; None where they reach beyond *end*."""
    for _ in range(names):
        if at + 2 > end:
            return None
        size, at = _length(data, at)
        at += size
    return at if at <= end else None


def _addresses(data: bytearray, tokens: _Tokens, number_at: int, count: int) -> Addresses | None:
    """The address of each name: the offsets lie behind the tokens, or before 6.4 in front of the number of names."""
    size = -(-4 * count // 8) * 8
    behind = -(-tokens.end // 8) * 8
    for offsets_at, base_at in ((behind, behind + size), (number_at - 8 - size, number_at - 8)):
        if offsets_at < 0 or base_at + 8 > len(data):
            continue
        (base,) = struct.unpack_from("<Q", data, base_at)
        if not KERNEL_WINDOW <= base < KERNEL_WINDOW + GIB:
            continue
        found = _from_offsets(np.frombuffer(data, "<i4", count, offsets_at), base)
        if found is not None:
            return found
    return None


def _from_offsets(offsets: npt.NDArray[np.int32], base: int) -> Addresses | None:
    """Addresses from *offsets*: with absolute numbers for each CPU's data the others are negative and count down.

    A kernel with symbols in ascending order, nearly all of them in the window above *base*; else None.
    """
    wide = offsets.astype(np.int64)
    relative = wide.view(np.uint64) + np.uint64(base)
    if (offsets < 0).any():
        below = (np.int64(-1) - wide).view(np.uint64) + np.uint64(base)
        relative = np.where(offsets < 0, below, wide.view(np.uint64))
    inside = (relative >= np.uint64(base)) & (relative < np.uint64(KERNEL_WINDOW + GIB))
    if (relative[1:] < relative[:-1]).any() or np.count_nonzero(inside) < len(offsets) // 2:
        return None
    return relative

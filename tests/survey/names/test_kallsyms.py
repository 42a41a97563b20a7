"""Kallsyms in an image that is made here, in each order and width that kernels have had."""

from __future__ import annotations

import random
import struct
from collections.abc import Sequence
from typing import Any

import pytest

from fivefold.survey.names.image_bytes import ImagePiece
from fivefold.survey.names.kallsyms import find_kallsyms

BASE = 0xFFFF_FFFF_9A00_0000
IMAGE = 0xFFFF_FFFF_9A00_0000

Listed = tuple[int, str, str]
"""Address, kind, name."""


def symbols(count: int = 1300) -> list[Listed]:
    """Symbols at ascending addresses: per CPU first, then text and data, one of them with a very long name."""
    draw = random.Random(5)
    per_cpu = [(n * 8, "A", f"per_cpu_{n}") for n in range(5)]
    own = [
        (BASE + 16 * n + draw.randrange(8), draw.choice("tTdDrB"), f"a_{draw.choice(['function', 'table'])}_{n}")
        for n in range(count)
    ]
    own[700] = (own[700][0], "T", "long_" + "x" * 300)
    own[701] = (own[700][0], "t", "another_name_of_it")
    own[702] = (own[700][0], "T", "a_global_name_of_it")
    return [*per_cpu, *own]


TOKENS = [chr(code) if chr(code).isalnum() or chr(code) in "_." else f"tok{code}" for code in range(256)]
TOKENS[0x80], TOKENS[0x81] = "function", "table"


def spell(kind: str, name: str, wide: bool) -> bytes:
    text = (kind + name).encode().replace(b"function", b"\x80").replace(b"table", b"\x81")
    if len(text) < 0x80:
        return bytes([len(text)]) + text
    assert wide
    return bytes([0x80 | len(text) & 0x7F, len(text) >> 7]) + text


def aligned(data: bytes) -> bytes:
    return data + bytes(-len(data) % 8)


def offset_of(address: int, per_cpu: bool) -> int:
    if not per_cpu:
        return (address - BASE) & 0xFFFF_FFFF
    return address if address < BASE else (BASE - 1 - address) & 0xFFFF_FFFF


def image(
    listed: Sequence[Listed], *, offsets_last: bool, per_cpu: bool, markers: str = "I", seqs: bool = False
) -> bytes:
    """The tables as a kernel's build lays them out, with other read-only data on both sides."""
    names, begins = b"", []
    for number, (_, kind, name) in enumerate(listed):
        if number % 256 == 0:
            begins.append(len(names))
        names += spell(kind, name, wide=True)
    words = [token.encode() + b"\0" for token in TOKENS]
    index = [sum(map(len, words[:n])) for n in range(256)]
    offsets = aligned(struct.pack(f"<{len(listed)}I", *(offset_of(at, per_cpu) for at, _, _ in listed)))
    base = struct.pack("<Q", BASE)
    by_name = aligned(bytes(3 * len(listed))) if seqs else b""
    middle = [
        aligned(struct.pack("<I", len(listed))),
        aligned(names),
        aligned(struct.pack(f"<{len(begins)}{markers}", *begins)),
        b"" if offsets_last else by_name,
        aligned(b"".join(words)),
        struct.pack("<256H", *index),
    ]
    tables = b"".join([*middle, offsets, base, by_name] if offsets_last else [offsets, base, *middle])
    draw = random.Random(9)
    return draw.randbytes(0x5000) + bytes(64) + tables + draw.randbytes(0x3000)


LAYOUTS = {
    "4.6": {"offsets_last": False, "per_cpu": True, "markers": "Q"},
    "4.20": {"offsets_last": False, "per_cpu": True},
    "6.2": {"offsets_last": False, "per_cpu": True, "seqs": True},
    "6.4": {"offsets_last": True, "per_cpu": True, "seqs": True},
    "without per-CPU": {"offsets_last": True, "per_cpu": False},
}


@pytest.mark.parametrize("release", LAYOUTS)
def test_all_names_are_found(release: str) -> None:
    layout: dict[str, Any] = LAYOUTS[release]
    listed = symbols() if layout["per_cpu"] else symbols()[5:]
    found = find_kallsyms([ImagePiece(IMAGE, bytearray(image(listed, **layout)))])
    assert found is not None and found.count == len(listed)
    assert sorted((one.address, one.kind, one.name) for one in found.span) == sorted(
        one for one in listed if one[0] >= BASE
    )
    for number in (0, 255, 256, 700, 1299):
        address, _, name = listed[-1300 + number]
        if number != 700:
            assert str(found.span.at(address)) == name
    assert str(found.span.at(listed[-1300 + 700][0])) == "a_global_name_of_it"
    assert found.span.address("another_name_of_it") == listed[-1300 + 700][0]
    assert found.span.address("a_function") is None and found.span.address("per_cpu_1") is None


@pytest.mark.parametrize("release", LAYOUTS)
def test_cut_or_changed_tables_are_no_kallsyms(release: str) -> None:
    """Whatever single part is missing or wrong, nothing is found, and nothing raises."""
    layout: dict[str, Any] = LAYOUTS[release]
    whole = image(symbols() if layout["per_cpu"] else symbols()[5:], **layout)
    draw = random.Random(3)
    tables = whole[0x5000:-0x3000]
    for _ in range(40):
        cut = draw.randrange(len(tables))
        find_kallsyms([ImagePiece(IMAGE, bytearray(whole[: 0x5000 + cut]))])
    digits = whole.index(b"0\x001\x002\x003\x00")
    assert find_kallsyms([ImagePiece(IMAGE, bytearray(whole[:digits] + b"!" + whole[digits + 1 :]))]) is None
    base = whole.rindex(struct.pack("<Q", BASE))
    assert find_kallsyms([ImagePiece(IMAGE, bytearray(whole[:base] + bytes(8) + whole[base + 8 :]))]) is None


def test_nothing_in_other_bytes() -> None:
    assert find_kallsyms([]) is None
    assert find_kallsyms([ImagePiece(IMAGE, bytearray(1 << 20))]) is None
    assert find_kallsyms([ImagePiece(IMAGE, bytearray(random.Random(1).randbytes(1 << 20)))]) is None
    digits = b"".join(b"%d\0" % n for n in range(10))
    assert find_kallsyms([ImagePiece(IMAGE, bytearray(digits * 500))]) is None

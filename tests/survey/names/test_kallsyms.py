"""Kallsyms in an image that is made here, in each order and width that kernels have had."""

from __future__ import annotations

import random
import struct
from typing import Any

import pytest

from fivefold.survey.names.image_bytes import ImagePiece
from fivefold.survey.names.kallsyms import find_kallsyms

BASE = 0xFFFF_FFFF_9A00_0000
IMAGE = 0xFFFF_FFFF_9A00_0000

RELEASES = ("4.6", "4.20", "6.2", "6.4", "without per-CPU")


@pytest.mark.parametrize("release", RELEASES)
def test_all_names_are_found(release: str, kallsyms_of: Any) -> None:
    listed, image = kallsyms_of(release)
    found = find_kallsyms([ImagePiece(IMAGE, bytearray(image))])
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


@pytest.mark.parametrize("release", RELEASES)
def test_cut_or_changed_tables_are_no_kallsyms(release: str, kallsyms_of: Any) -> None:
    """Whatever single part is missing or wrong, nothing is found, and nothing raises."""
    _, whole = kallsyms_of(release)
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

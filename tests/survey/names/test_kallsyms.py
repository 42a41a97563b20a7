"""Kallsyms in an image that is made here, in each order and width that kernels have had."""

from __future__ import annotations

import random
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fivefold.survey.names import kallsyms
from fivefold.survey.names.image_bytes import ImagePiece
from fivefold.survey.names.kallsyms import find_kallsyms

BASE = 0xFFFF_FFFF_9A00_0000
IMAGE = 0xFFFF_FFFF_9A00_0000
DIGITS = b"0\x001\x002\x003\x00"

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
    for _, _, name in listed[-1300:-1280]:
        assert found.span.address(name[2:]) is None  # the end of a name is no name
    assert found.at == IMAGE + image.index(struct.pack("<Q", len(listed)) + spelled(listed[0])) + 8


def spelled(symbol: tuple[int, str, str]) -> bytes:
    """A name of which no part has a token of its own."""
    text = (symbol[1] + symbol[2]).encode()
    return bytes([len(text)] if len(text) < 0x80 else [0x80 | len(text) & 0x7F, len(text) >> 7]) + text


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("more", range(8))
def test_names_may_end_anywhere(release: str, more: int, kallsyms_of: Any) -> None:
    """Markers begin at the next multiple of 8; 513 symbols are enough, 512 are no kernel's."""
    fewest = 513 - (release != "without per-CPU") * 5
    listed, image = kallsyms_of(release, fewest, "n" * (more + 1))
    found = find_kallsyms([ImagePiece(IMAGE, bytearray(image))])
    assert found is not None and found.count == 513 and found.span.address("n" * (more + 1)) == listed[-1][0]
    _, image = kallsyms_of(release, fewest - 1, "n" * (more + 1))
    assert find_kallsyms([ImagePiece(IMAGE, bytearray(image))]) is None


@pytest.mark.parametrize("release", RELEASES)
def test_where_names_are_looked_for(release: str, kallsyms_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """So many bytes in front of the tokens, rounded up to a multiple of 8."""
    listed, image = kallsyms_of(release)
    number = image.index(struct.pack("<Q", len(listed)) + spelled(listed[0]))
    tokens = image.index(DIGITS) - 49  # 47 empty tokens and a dot come before the digits
    assert number % 8 == 0
    for most, is_found in ((tokens - number, True), (tokens - number - 1, True), (tokens - number - 8, False)):
        monkeypatch.setattr(kallsyms, "MOST_NAMES", most)
        assert (find_kallsyms([ImagePiece(IMAGE, bytearray(image))]) is not None) is is_found


def damaged(image: bytes, at: int, data: bytes) -> object:
    return find_kallsyms([ImagePiece(IMAGE, bytearray(image[:at] + data + image[at + len(data) :]))])


@pytest.mark.parametrize("release", RELEASES)
def test_tables_that_contradict_themselves(release: str, kallsyms_of: Any) -> None:
    """Markers that descend, offsets that do, a base outside of the window, an index that stands still."""
    listed, image = kallsyms_of(release)
    form, size = ("<6Q", 8) if release == "4.6" else ("<6I", 4)
    names = image.index(struct.pack("<Q", len(listed)) + spelled(listed[0])) + 8
    begins = [0]
    for number, one in enumerate(listed):
        long = spelled(one).replace(b"function", b"\x80").replace(b"table", b"\x81")
        length = len(long) - (2 if image[names + begins[-1]] & 0x80 else 1)
        assert number or length
        begins.append(begins[-1] + wide(length) + length)
    markers = image.index(struct.pack(form, *begins[: len(listed) : 256][:6]))
    assert damaged(image, markers, b"\0") is not None  # as it was
    assert damaged(image, markers + 4 * size, image[markers + 2 * size :][:size]) is None
    index = image.index(DIGITS) - 49 + len(b"".join(token_table(image)))
    index += -index % 8
    assert image[index : index + 4] == struct.pack("<2H", 0, 1)
    assert damaged(image, index + 400, image[index + 398 : index + 400]) is None
    assert damaged(image, index, b"\1") is None
    base = image.rindex(struct.pack("<Q", BASE))
    for wrong in (0xFFFF_FFFF_7FFF_FFFF, 0xFFFF_FFFF_C000_0000):
        assert damaged(image, base, struct.pack("<Q", wrong)) is None
    first = base - 4 * (len(listed) + len(listed) % 2)
    swapped = image[first + 2004 : first + 2008] + image[first + 2000 : first + 2004]
    assert damaged(image, first + 2000, swapped) is None


def token_table(image: bytes) -> list[bytes]:
    return [word + b"\0" for word in image[image.index(DIGITS) - 49 :].split(b"\0")[:256]]


def wide(length: int) -> int:
    return 2 if length >= 0x80 else 1


@pytest.mark.parametrize("release", RELEASES)
def test_images_that_end_with_the_tables(release: str, kallsyms_of: Any) -> None:
    """The last byte that is needed is needed, and no byte behind it."""
    _, image = kallsyms_of(release)
    if release in ("6.4", "without per-CPU"):
        end = image.rindex(struct.pack("<Q", BASE)) + 8
    else:
        end = image.index(DIGITS) - 49 + len(b"".join(token_table(image)))
        end += -end % 8 + 512
    for size in range(end - 9, end + 2):
        found = find_kallsyms([ImagePiece(IMAGE, bytearray(image[:size]))])
        assert (found is not None) is (size >= end), size - end


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


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(1, 20), st.booleans()), max_size=8), st.integers(0, 3))
def test_digits_are_found_wherever_they_lie(parts: list[tuple[int, int, bool]], ahead: int) -> None:
    """Whole ones and such as are cut, in zeros and in digits, at every offset in a word."""
    digits = b"".join(b"%d\0" % number for number in range(10))
    data = bytearray(ahead)
    for gap, size, filled in parts:
        data += (b"1\0" * 20 if filled else bytes(40))[:gap] + digits[:size] + digits
    want = [at for at in range(len(data)) if data.startswith(digits, at)]
    assert list(kallsyms._digits_in(data)) == want

"""Types of a kernel, put together by hand: every kind, its parts, and what contradicts itself."""

from __future__ import annotations

import struct
from typing import Any

import pytest

from fivefold.errors import FormatError
from fivefold.survey.names.btf import MOST_BYTES, Btf, BtfKind, size_of

WORDS = {
    1: (1, 0),
    3: (3, 0),
    4: (0, 3),
    5: (0, 3),
    6: (0, 2),
    13: (0, 2),
    14: (1, 0),
    15: (0, 3),
    17: (1, 0),
    19: (0, 3),
}
"""By kind: words behind a type's three, once and for each part (Linux, "BPF Type Format")."""


@pytest.mark.parametrize("kind", range(1, 20))
def test_every_kind_takes_its_place(kind: int, new_types: Any) -> None:
    """The type after it is found, and those that do not refer to parts have none."""
    once, each = WORDS.get(kind, (0, 0))
    for parts in (0, 1, 3):
        types = new_types()
        types.add(16, "first", size=4)
        types.add(kind, "it", parts, 77, 1, bytes(4 * (once + each * parts)))
        types.add(16, "last", size=8)
        found = types.btf()
        assert len(found) == 3
        one = found.type(2)
        assert (one.name, one.kind, one.flag, one.parts, one.size) == ("it", BtfKind(kind), True, parts, 77)
        assert (found.type(1).name, found.type(3).name, found.type(3).size) == ("first", "last", 8)


@pytest.mark.parametrize("kind", [0, 20, 31])
def test_kinds_that_are_none(kind: int, new_types: Any) -> None:
    types = new_types()
    types.add(16, "first")
    types.add(kind)
    with pytest.raises(FormatError, match=f"^BTF: type 2 is of kind {kind}; expected 1 to 19$"):
        types.btf()


@pytest.mark.parametrize("number", [-1, 0, 2])
def test_numbers_that_are_none(number: int, new_types: Any) -> None:
    types = new_types()
    types.add(16, "one")
    with pytest.raises(FormatError, match=rf"^BTF: a type refers to type {number}; expected 1 to 1$"):
        types.btf().type(number)


def test_offsets_of_members(new_types: Any) -> None:
    """By name, the first of several that is there; in structures without a name, and as parts of bytes."""
    types = new_types()
    number = types.add(1, "int", size=4, body=bytes(4))
    inner = types.struct("", ("deep", number, 64), ("in_bits", number, 96))
    union = types.struct("", ("either", number, 0), ("or", number, 0), kind=5)
    types.struct("task", ("pid", number, 32), ("", inner, 128), ("", union, 512), ("pids", number, 640), size=88)
    types.struct(
        "bits", ("a", number, 3 << 24 | 40), ("b", number, 5 << 24 | 48), ("c", number, 2 << 24 | 53), flag=1, size=8
    )
    types.struct("task", ("pid", number, 4096))
    types.struct("large", ("far", number, 1 << 24 | 8), ("next", number, 5 << 24 | 16))
    types.struct("empty")
    found = types.btf()
    assert found.offset("task", "pid") == 4
    assert found.offset("task", "pids") == 80
    assert found.offset("task", "gone", "deep") == 24
    assert found.offset("task", "in_bits", "pid") == 28
    assert found.offset("task", "either") == found.offset("task", "or") == 64
    assert (found.offset("bits", "a"), found.offset("bits", "b")) == (5, 6)
    assert found.offset("task", "gone") is found.offset("gone", "pid") is found.offset("empty", "pid") is None
    assert (found.size("task"), found.size("bits"), found.size("gone")) == (88, 8, None)
    bits = next(found.type(n) for n in range(1, len(found) + 1) if found.type(n).name == "bits")
    assert list(found.members(bits)) == [("a", number, 40, 3), ("b", number, 48, 5), ("c", number, 53, 2)]
    large = next(found.type(n) for n in range(1, len(found) + 1) if found.type(n).name == "large")
    assert list(found.members(large)) == [("far", number, 1 << 24 | 8, 0), ("next", number, 5 << 24 | 16, 0)]
    assert found.offset("large", "far") == (1 << 21) + 1
    task = found.type(4)
    assert list(found.members(task))[3] == ("pids", number, 640, 0)


def test_constants_of_enumerations(new_types: Any) -> None:
    types = new_types()
    old = types.add(6, "old", 2, 4, body=struct.pack("<IiIi", types.text("minus"), -1, types.text("two"), 2))
    found = types.btf()
    # Before 6.0 nothing says whether values have a sign.
    assert list(found.choices(found.type(old))) == [("minus", -1), ("two", 2)]
    wide = struct.pack("<IIIIII", types.text("big"), 5, 1, types.text("low"), 0xFFFF_FFFF, 0xFFFF_FFFF)
    number, signed = types.add(19, "wide", 2, 8, body=wide), types.add(19, "signed", 2, 8, 1, wide)
    half = struct.pack("<IIIIII", types.text("top"), 0, 1 << 30, types.text("least"), 0, 1 << 31)
    halves = types.add(19, "halves", 2, 8, 1, half)
    found = types.btf()
    assert list(found.choices(found.type(halves))) == [("top", 1 << 62), ("least", -(1 << 63))]
    assert list(found.choices(found.type(old))) == [("minus", 0xFFFF_FFFF), ("two", 2)]
    assert list(found.choices(found.type(number))) == [("big", 1 << 32 | 5), ("low", (1 << 64) - 1)]
    assert list(found.choices(found.type(signed))) == [("big", 1 << 32 | 5), ("low", -1)]


def test_signs_of_enumerations_are_told_since_one_tells_its_own(new_types: Any) -> None:
    """Then those that tell none have no sign."""
    types = new_types()
    all_ones = types.add(6, "first", 1, 4, body=struct.pack("<Ii", types.text("all_ones"), -1))
    signed = types.add(6, "second", 1, 4, 1, struct.pack("<Ii", types.text("minus"), -1))
    found = types.btf()
    assert list(found.choices(found.type(all_ones))) == [("all_ones", 0xFFFF_FFFF)]
    assert list(found.choices(found.type(signed))) == [("minus", -1)]


def test_how_deep_structures_without_a_name_are_followed(new_types: Any) -> None:
    """Eight, with the one around them; one that contains itself ends, too."""
    types = new_types()
    inner = types.struct("", ("deepest", 0, 8))
    for _ in range(6):
        inner = types.struct("", ("", inner, 8))
    types.struct("eight", ("", inner, 8))
    types.struct("nine", ("", types.struct("", ("", inner, 8)), 8))
    types.struct("", ("", types.count + 1, 0), ("it", 0, 16))
    types.struct("circle", ("", types.count, 0))
    found = types.btf()
    assert (found.offset("eight", "deepest"), found.offset("nine", "deepest")) == (8, None)
    assert (found.offset("circle", "it"), found.offset("circle", "gone")) == (2, None)


def test_a_structure_without_a_name_may_be_the_first_type(new_types: Any) -> None:
    types = new_types()
    types.struct("around", ("", types.struct("", ("it", 0, 16)), 64))
    assert types.btf().offset("around", "it") == 10


def test_names_that_are_not_there(new_types: Any) -> None:
    types = new_types()
    types.add(16, "one")
    data = types.data()
    assert Btf(data).type(1).name == "one"
    for broken, at in ((data.replace(struct.pack("<I", 1), struct.pack("<I", 99)), 99), (data[:-1] + b"e", 1)):
        with pytest.raises(FormatError, match=rf"^BTF: a name begins at {at}; expected less than 5$"):
            Btf(broken).type(1)


def test_details(new_types: Any) -> None:
    types = new_types()
    number = types.add(3, body=struct.pack("<III", 7, 8, 9))
    found = types.btf()
    assert found.details(found.type(number), 3) == (7, 8, 9)
    with pytest.raises(FormatError, match="the parts of a type are cut"):
        found.details(found.type(number), 4)


def test_what_is_cut(new_types: Any) -> None:
    types = new_types()
    types.struct("task", ("pid", 1, 0))
    whole = types.data(gap=8)
    assert Btf(whole).offset("task", "pid") == 0 and size_of(whole) == len(whole)
    with pytest.raises(FormatError, match=rf"^BTF ends after {len(whole) - 1} bytes; expected {len(whole)}$"):
        Btf(whole[:-1])
    with pytest.raises(FormatError, match=r"^BTF of 23 bytes; expected 24 or more$"):
        size_of(whole[:23])
    types.types = types.types[:-4]
    with pytest.raises(FormatError, match="the last type is cut"):
        types.btf()


@pytest.mark.parametrize(
    ("at", "form", "value"), [(0, "<H", 0xEB9E), (2, "<B", 2), (4, "<I", 23), (12, "<I", MOST_BYTES)]
)
def test_heads_that_are_none(at: int, form: str, value: int, new_types: Any) -> None:
    head = bytearray(new_types().data())
    struct.pack_into(form, head, at, value)
    with pytest.raises(FormatError, match="expected"):
        size_of(bytes(head))

"""BTF: what a kernel says of its own structures, as far as offsets of members go.

Source: Linux, "BPF Type Format (BTF)", sections "BTF Type and String Encoding" and "Type Encoding".
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from enum import IntEnum
from functools import cached_property
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from fivefold.errors import FormatError

MAGIC: Final = 0xEB9F
HEAD: Final = struct.Struct("<HBBIIIII")
MOST_BYTES: Final = 64 << 20
_TYPE: Final = struct.Struct("<III")
_MEMBER: Final = struct.Struct("<III")
_STRUCT: Final = 4
_UNION: Final = 5
_DEEPEST: Final = 8
"""Structures without a name that are nested in each other."""

_KINDS: Final = 20


def _by_kind(known: dict[int, int]) -> npt.NDArray[np.int64]:
    return np.array([known.get(kind, 0) for kind in range(32)], np.int64)


# Words behind a type's three, once and for each of its parts; other kinds have neither.
_ONCE: Final = _by_kind({1: 1, 3: 3, 14: 1, 17: 1})
_EACH: Final = _by_kind({4: 3, 5: 3, 6: 2, 13: 2, 15: 3, 19: 3})
_KNOWN: Final = _by_kind(dict.fromkeys(range(1, _KINDS), 1)) != 0


class BtfKind(IntEnum):
    """The kinds of types, by their numbers."""

    INT = 1
    PTR = 2
    ARRAY = 3
    STRUCT = 4
    UNION = 5
    ENUM = 6
    FWD = 7
    TYPEDEF = 8
    VOLATILE = 9
    CONST = 10
    RESTRICT = 11
    FUNC = 12
    FUNC_PROTO = 13
    VAR = 14
    DATASEC = 15
    FLOAT = 16
    DECL_TAG = 17
    TYPE_TAG = 18
    ENUM64 = 19


class BtfType(NamedTuple):
    """One type. *size* is in bytes, or the number of the type that it refers to, as its kind has it.

    *flag*: for structures, that offsets hold the widths of bit fields; for enumerations, that values have a sign; for
    forward declarations, that it is a union.
    """

    name: str
    kind: BtfKind
    flag: bool
    parts: int
    size: int
    place: int


def size_of(head: bytes) -> int:
    """How many bytes the BTF takes that begins with *head*; `FormatError` where it is none."""
    if len(head) < HEAD.size:
        raise FormatError(f"BTF of {len(head)} bytes; expected {HEAD.size} or more")
    magic, version, _, head_size, type_at, type_size, text_at, text_size = HEAD.unpack_from(head)
    if magic != MAGIC or version != 1 or head_size < HEAD.size:
        raise FormatError(f"BTF begins with {magic:#x}, version {version}; expected {MAGIC:#x} and 1")
    size: int = head_size + max(type_at + type_size, text_at + text_size)
    if size > MOST_BYTES:
        raise FormatError(f"BTF of {size} bytes; expected at most {MOST_BYTES}")
    return size


class Btf:
    """The structures of a kernel, by name."""

    def __init__(self, data: bytes) -> None:
        """All of it; `FormatError` where it contradicts itself."""
        if size_of(data) > len(data):
            raise FormatError(f"BTF ends after {len(data)} bytes; expected {size_of(data)}")
        _, _, _, head_size, type_at, type_size, text_at, text_size = HEAD.unpack_from(data)
        self._types = data[head_size + type_at : head_size + type_at + type_size]
        self._texts = data[head_size + text_at : head_size + text_at + text_size]
        self._words = np.frombuffer(self._types, "<u4", len(self._types) // 4)
        self._places = self._all_places()
        self._named: dict[int, int] | None = None

    def _all_places(self) -> list[int]:
        """Where each type begins, counted in bytes, by its number; number 0 is no type."""
        info = self._words[1:]
        kinds = info >> 24 & 0x1F
        steps = np.where(_KNOWN[kinds], 3 + _ONCE[kinds] + _EACH[kinds] * (info & 0xFFFF), 0).tolist()
        places, at = [-1], 0
        while at < len(steps):
            places.append(4 * at)
            if not steps[at]:
                raise FormatError(
                    f"BTF: type {len(places) - 1} is of kind {int(kinds[at])}; expected 1 to {_KINDS - 1}"
                )
            at += steps[at]
        if 4 * at != len(self._types):
            raise FormatError("BTF: the last type is cut")
        return places

    def __len__(self) -> int:
        """How many types there are: their numbers are 1 to this."""
        return len(self._places) - 1

    def type(self, number: int) -> BtfType:
        """The type of a number; `FormatError` where there is none."""
        if not 0 < number < len(self._places):
            raise FormatError(f"BTF: a type refers to type {number}; expected 1 to {len(self)}")
        place = self._places[number]
        text, info, size = _TYPE.unpack_from(self._types, place)
        kind = BtfKind(info >> 24 & 0x1F)
        return BtfType(self._text(text), kind, bool(info >> 31), info & 0xFFFF, size, place + _TYPE.size)

    def members(self, one: BtfType) -> Iterator[tuple[str, int, int, int]]:
        """Name, type's number, offset and width in bits of each member; the width is 0 for what is no bit field."""
        for text, number, bits in struct.iter_unpack("<III", self._body(one, _MEMBER.size * one.parts)):
            at, width = (bits & 0xFF_FFFF, bits >> 24) if one.flag else (bits, 0)
            yield self._text(text), number, at, width

    def choices(self, one: BtfType) -> Iterator[tuple[str, int]]:
        """Name and value of each constant of an enumeration of either size."""
        if one.kind == BtfKind.ENUM:
            signed = one.flag or not self._says_signs
            for text, value in struct.iter_unpack("<Ii" if signed else "<II", self._body(one, 8 * one.parts)):
                yield self._text(text), value
            return
        for text, low, high in struct.iter_unpack("<III", self._body(one, 12 * one.parts)):
            value = high << 32 | low
            yield self._text(text), value - (1 << 64) if one.flag and value >> 63 else value

    @cached_property
    def _says_signs(self) -> bool:
        """Whether enumerations say if they have a sign, which those of compilers and kernels before 6.0 do not."""
        words = np.array(self._places[1:], np.int64) // 4
        kinds = self._words[words + 1] >> 24 & 0x1F
        enums = kinds == BtfKind.ENUM
        return bool(np.any(kinds == BtfKind.ENUM64) or np.any(self._words[words + 1][enums] >> 31))

    def details(self, one: BtfType, count: int) -> tuple[int, ...]:
        """The *count* numbers of 32 bits behind a type: an int's encoding, an array's element, index and length."""
        return struct.unpack(f"<{count}I", self._body(one, 4 * count))

    def _body(self, one: BtfType, size: int) -> bytes:
        if one.place + size > len(self._types):
            raise FormatError("BTF: the parts of a type are cut")
        return self._types[one.place : one.place + size]

    def _text(self, at: int) -> str:
        end = self._texts.find(b"\0", at)
        if end < 0:
            raise FormatError(f"BTF: a name begins at {at}; expected less than {len(self._texts)}")
        return self._texts[at:end].decode("utf-8", "backslashreplace")

    def offset(self, structure: str, *members: str) -> int | None:
        """The byte at which a member lies, the first of *members* that there is; None without any.

        Members of structures without a name count as those of the one around them.
        """
        place = self._structure(structure)
        if place is None:
            return None
        for member in members:
            if (found := self._member(place, member.encode(), _DEEPEST)) is not None:
                return found
        return None

    def _structure(self, name: str) -> int | None:
        if self._named is None:
            words = np.array(self._places[1:], np.int64) // 4
            info = self._words[words + 1]
            words = words[(info >> 24 & 0x1F == _STRUCT) & (info & 0xFFFF != 0)]
            # Read backwards, so that of several of one name the first stays.
            self._named = dict(zip(self._words[words][::-1].tolist(), (4 * words[::-1]).tolist(), strict=True))
        at = self._texts.find(b"\0" + name.encode() + b"\0")
        while at >= 0:
            if (found := self._named.get(at + 1)) is not None:
                return found
            at = self._texts.find(b"\0" + name.encode() + b"\0", at + 1)
        return None

    def size(self, structure: str) -> int | None:
        """Bytes of a structure, None where there is none."""
        place = self._structure(structure)
        return None if place is None else int.from_bytes(self._types[place + 8 : place + 12], "little")

    def _member(self, place: int, name: bytes, deep: int) -> int | None:
        _, info, _ = _TYPE.unpack_from(self._types, place)
        if info >> 24 & 0x1F not in (_STRUCT, _UNION) or not deep:
            return None
        first = place + _TYPE.size
        for number in range(info & 0xFFFF):
            text, kind, bits = _MEMBER.unpack_from(self._types, first + number * _MEMBER.size)
            offset: int = (bits & 0xFF_FFFF if info >> 31 else bits) // 8
            if text:
                if self._texts.startswith(name + b"\0", text):
                    return offset
            elif 0 < kind < len(self._places):
                inner = self._member(self._places[kind], name, deep - 1)
                if inner is not None:
                    return offset + inner
        return None

"""The types of a kernel's BTF as an ISF file has them.

ISF ("Intermediate Symbol Format") is the JSON in which volatility3 reads symbols. It knows base types, structures and
unions, and enumerations by name; all else is written out where it is used. So typedefs and qualifiers are followed to
what they stand for, and what has no name in C gets one.
"""

from __future__ import annotations

from typing import Any, Final

from fivefold.errors import FormatError
from fivefold.survey.names.btf import Btf, BtfKind, BtfType

Json = dict[str, Any]

POINTER: Final = "pointer"
VOID: Final[Json] = {"kind": "base", "name": "void"}
_DEEPEST: Final = 32
"""Pointers, arrays, typedefs and qualifiers around one type; C code has a handful."""
_FOLLOWED: Final = frozenset(
    {
        BtfKind.TYPEDEF,
        BtfKind.VOLATILE,
        BtfKind.CONST,
        BtfKind.RESTRICT,
        BtfKind.TYPE_TAG,
        BtfKind.VAR,
    }
)
_RECORDS: Final = {BtfKind.STRUCT: "struct", BtfKind.UNION: "union", BtfKind.FWD: "struct"}
_ENUMS: Final = frozenset({BtfKind.ENUM, BtfKind.ENUM64})
_CHARACTERS: Final = frozenset({"char", "signed char", "unsigned char"})
_INT_SIGNED: Final = 1
_INT_BOOL: Final = 4
_SIGNED: Final = {1: "signed char", 2: "short int", 4: "int", 8: "long int"}
_UNSIGNED: Final = {1: "unsigned char", 2: "short unsigned int", 4: "unsigned int", 8: "long unsigned int"}


class IsfTypes:
    """All types of *btf*: *base_types*, *user_types* and *enums* are the parts of an ISF file."""

    def __init__(self, btf: Btf) -> None:
        """`FormatError` where the BTF contradicts itself."""
        self._btf = btf
        self._all = [btf.type(number) for number in range(1, len(btf) + 1)]
        self._names = _names(self._all)
        self.base_types: dict[str, Json] = {
            "void": _base("void", 0, False),
            POINTER: _base("int", 8, False),
            **{name: _base("char" if size == 1 else "int", size, True) for size, name in _SIGNED.items()},
            **{name: _base("char" if size == 1 else "int", size, False) for size, name in _UNSIGNED.items()},
        }
        self.user_types: dict[str, Json] = {}
        self.enums: dict[str, Json] = {}
        for one in self._all:
            if one.kind in (BtfKind.INT, BtfKind.FLOAT):
                self._add_base(one)
        named = [(name, self._type(number)) for number, name in self._names.items()]
        plain = [(name, self._type(one.size) if one.kind == BtfKind.TYPEDEF else one) for name, one in named]
        for name, one in plain:
            if one.kind in _ENUMS:
                self._add_enum(name, one)
        for name, one in plain:
            if one.kind in _RECORDS:
                self._add_record(name, one)

    def variables(self) -> dict[str, Json]:
        """Types of the variables that BTF has: those of which each CPU has its own."""
        return {one.name: self.written_out(one.size) for one in self._all if one.kind == BtfKind.VAR}

    def written_out(self, number: int, deep: int = _DEEPEST) -> Json:
        """What ISF writes where the type *number* is used; 0 is void."""
        while number and (one := self._type(number)).kind in _FOLLOWED and deep and number not in self._names:
            number, deep = one.size, deep - 1
        if not number:
            return VOID
        if not deep:
            raise FormatError(f"BTF: type {number} lies behind more than {_DEEPEST} pointers, arrays and typedefs")
        if one.kind == BtfKind.PTR:
            return {"kind": "pointer", "subtype": self.written_out(one.size, deep - 1)}
        if one.kind == BtfKind.ARRAY:
            element, _, count = self._btf.details(one, 3)
            return {"kind": "array", "count": count, "subtype": self.written_out(element, deep - 1)}
        if number in self._names and one.kind == BtfKind.TYPEDEF:
            one = self._type(one.size)
        if one.kind in _RECORDS:
            return {"kind": _record_kind(one), "name": self._names[number]}
        if one.kind in _ENUMS:
            return {"kind": "enum", "name": self._names[number]}
        if one.kind in (BtfKind.INT, BtfKind.FLOAT):
            return {"kind": "base", "name": one.name}
        return {"kind": "function"}

    def size(self, written: Json) -> int:
        """Bytes of a type as `written_out` returns it."""
        kind = written["kind"]
        if kind == "array":
            return int(written["count"]) * self.size(written["subtype"])
        if kind == "pointer":
            return 8
        table = {"base": self.base_types, "enum": self.enums}.get(kind, self.user_types)
        return int(table[written["name"]]["size"]) if "name" in written else 0

    def _type(self, number: int) -> BtfType:
        return self._all[number - 1] if number <= len(self._all) else self._btf.type(number)

    def _add_base(self, one: BtfType) -> None:
        kind = "float"
        signed = True
        if one.kind == BtfKind.INT:
            encoding = self._btf.details(one, 1)[0] >> 24
            signed = bool(encoding & _INT_SIGNED) or one.name == "char"
            kind = "bool" if encoding & _INT_BOOL else "char" if one.name in _CHARACTERS else "int"
        self.base_types[one.name] = _base(kind, one.size, signed)

    def _add_enum(self, name: str, one: BtfType) -> None:
        constants = dict(self._btf.choices(one))
        signed = one.flag or any(value < 0 for value in constants.values())
        base = (_SIGNED if signed else _UNSIGNED).get(one.size, "unsigned int")
        self.enums[name] = {"size": one.size, "base": base, "constants": constants}

    def _add_record(self, name: str, one: BtfType) -> None:
        if one.kind == BtfKind.FWD:
            self.user_types[name] = {"kind": _record_kind(one), "size": 0, "fields": {}}
            return
        fields: dict[str, Json] = {}
        for place, (text, number, at, width) in enumerate(self._btf.members(one)):
            field = self._field(number, at, width)
            if not text:
                field["anonymous"] = field["type"]["kind"] in ("struct", "union")
            fields[text or f"unnamed_field_{place}"] = field
        self.user_types[name] = {"kind": _record_kind(one), "size": one.size, "fields": fields}

    def _field(self, number: int, at: int, width: int) -> Json:
        written = self.written_out(number)
        if not width:
            width, shift = self._bits_of_int(number)
            at += shift
        if not width:
            return {"type": written, "offset": at // 8}
        own = self._size_in_btf(number)
        offset, size = _unit(own, at, width)
        bits = {"kind": "bitfield", "bit_position": at - 8 * offset, "bit_length": width, "type": written}
        if size > own:
            bits["type"] = {"kind": "base", "name": _UNSIGNED[size]}
        return {"type": bits, "offset": offset}

    def _bits_of_int(self, number: int) -> tuple[int, int]:
        """Width and offset of an int that is a bit field itself, as in kernels before 5.0; 0 for a whole one."""
        one = self._followed(number)
        if one is None or one.kind != BtfKind.INT:
            return 0, 0
        encoding = self._btf.details(one, 1)[0]
        return (encoding & 0xFF, encoding >> 16 & 0xFF) if encoding & 0xFF != 8 * one.size else (0, 0)

    def _size_in_btf(self, number: int) -> int:
        one = self._followed(number)
        return one.size if one is not None and one.size in _UNSIGNED else 8

    def _followed(self, number: int) -> BtfType | None:
        for _ in range(_DEEPEST):
            if not number:
                return None
            one = self._type(number)
            if one.kind not in _FOLLOWED:
                return one
            number = one.size
        return None


def _names(types: list[BtfType]) -> dict[int, str]:
    """A name for each structure, union and enumeration, its own where it has one and is the first of that name.

    A typedef of one without a name has a name and a copy of its own: BTF has one of several that look alike, but what
    is a kernel_cap_t is not a pfn_t. Complete types come before forward declarations, and typedefs last.
    """
    found: dict[int, str] = {}
    taken: set[tuple[bool, str]] = set()
    kinds = set(_RECORDS) | _ENUMS
    bare = {number for number, one in enumerate(types, 1) if one.kind in kinds and not one.name}
    numbers = [
        number
        for number, one in enumerate(types, 1)
        if one.kind in kinds or (one.kind == BtfKind.TYPEDEF and one.size in bare)
    ]
    for number in sorted(numbers, key=lambda one: _comes(types[one - 1])):
        one = types[number - 1]
        name = one.name or f"unnamed_{number}"
        space = (types[one.size - 1] if one.kind == BtfKind.TYPEDEF else one).kind in _ENUMS
        if (space, name) in taken:
            name = f"{name}__{number}"
        taken.add((space, name))
        found[number] = name
    return found


def _comes(one: BtfType) -> tuple[bool, bool]:
    return one.kind == BtfKind.TYPEDEF, one.kind == BtfKind.FWD


def _unit(size: int, at: int, width: int) -> tuple[int, int]:
    """Offset and bytes of a unit in which a bit field lies whole: its type's, a larger one, or unaligned if packed."""
    for unit in (one for one in _UNSIGNED if one >= size):
        if at % (8 * unit) + width <= 8 * unit:
            return at // (8 * unit) * unit, unit
    return at // 8, 8


def _record_kind(one: BtfType) -> str:
    return "union" if one.kind == BtfKind.UNION or (one.kind == BtfKind.FWD and one.flag) else "struct"


def _base(kind: str, size: int, signed: bool) -> Json:
    return {"kind": kind, "size": size, "signed": signed, "endian": "little"}

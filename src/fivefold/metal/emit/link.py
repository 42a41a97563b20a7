"""Link relocatable objects into placed groups of sections.

No file format comes out of this: the boot image puts the groups into an ELF
file of its own, the host puts them into memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from fivefold.errors import ImageError
from fivefold.metal.emit.elf import ObjectFile, Relocation, Section, read_object
from fivefold.metal.emit.fields import FIELDS, fill
from fivefold.units import MASK64, hex64

_FILLER: Final = b"\xcc"
"""Between sections of code: int3, so that running off an end is seen at once."""


class Group(NamedTuple):
    """Sections that lie together: those named *patterns*, or with a dot and more behind it.

    Sections keep the order of *patterns*, then that of the objects. *align* is that of the group's start.
    """

    name: str
    patterns: tuple[str, ...]
    align: int = 4096


DEFAULT_GROUPS: Final = (
    Group(".text", (".text",)),
    Group(".rodata", (".rodata",)),
    Group(".data", (".data",)),
    Group(".bss", (".bss",)),
)


@dataclass(frozen=True, slots=True)
class Placed:
    """A group at its place. ``data`` is shorter than ``size`` where only zeros follow."""

    name: str
    address: int
    size: int
    data: bytes

    @property
    def end(self) -> int:
        """One past the last byte."""
        return self.address + self.size


@dataclass(frozen=True, slots=True)
class Fixup:
    """An absolute address in the image, to be moved if the image is; *width* in bytes."""

    address: int
    width: int


@dataclass(frozen=True)
class Linked:
    """The linked groups, in order of address, and what is known of them."""

    base: int
    groups: tuple[Placed, ...]
    symbols: Mapping[str, int]
    """Global symbols, and those that the linker makes: see `link`."""
    functions: tuple[tuple[int, int, str], ...]
    """Start, size, name of every function, local ones too, ascending."""
    fixups: tuple[Fixup, ...]

    @property
    def end(self) -> int:
        """One past the last byte of the last group, zeros included."""
        return max((group.end for group in self.groups), default=self.base)

    def group(self, name: str) -> Placed:
        """Return a group by name; `ImageError` if there is none."""
        for group in self.groups:
            if group.name == name:
                return group
        raise ImageError(f"no group {name}; there are {', '.join(group.name for group in self.groups)}")

    def flat(self) -> bytes:
        """Return the bytes from ``base`` to the last one that is not known to be zero."""
        image = bytearray()
        for group in self.groups:
            if group.data:
                image += bytes(group.address - self.base - len(image)) + group.data
        return bytes(image)


@dataclass
class _Piece:
    """One input section at its place."""

    object: int
    section: Section
    address: int


@dataclass
class _Link:
    """A link under way."""

    objects: list[ObjectFile]
    names: list[str]
    pieces: dict[tuple[int, int], _Piece] = field(default_factory=dict)
    symbols: dict[str, int] = field(default_factory=dict)
    owners: dict[str, str] = field(default_factory=dict)
    absolute: set[str] = field(default_factory=set)
    fixups: list[Fixup] = field(default_factory=list)

    def address(self, number: int, index: int | None, value: int) -> int:
        """Return the address of *value* in section *index* of object *number*."""
        if index == -1:
            return value
        piece = self.pieces.get((number, index or 0))
        if piece is None:
            raise ImageError(f"{self.names[number]}: a symbol lies in a section that is in no group")
        return piece.address + value


def link(
    objects: Sequence[bytes] | Mapping[str, bytes],
    *,
    base: int,
    groups: Sequence[Group] = DEFAULT_GROUPS,
    defines: Mapping[str, int] | None = None,
) -> Linked:
    """Place the sections of *objects* from *base* up, group after group, and fill in addresses.

    *objects* may be a mapping whose keys name them in errors. *defines* gives absolute symbols. For each group
    ``.name`` that has bytes, or not, the linker defines ``__name_start`` and ``__name_end``; for all of them
    ``__image_start`` and ``__image_end``. Raises `ImageError`: a section that no group takes, an undefined or
    duplicate symbol, an address that does not fit its place.
    """
    named = dict(objects) if isinstance(objects, Mapping) else {f"object {i}": o for i, o in enumerate(objects)}
    job = _Link([read_object(data, name) for name, data in named.items()], list(named))
    spans = _place(job, base, groups)
    _define(job, spans, base, dict(defines or {}))
    placed = tuple(_bytes(job, group, start, end) for group, start, end in spans)
    return Linked(base, placed, dict(sorted(job.symbols.items())), _functions(job), tuple(job.fixups))


def _takes(pattern: str, name: str) -> bool:
    return name == pattern or name.startswith(pattern + ".")


def _align(value: int, align: int) -> int:
    return (value + align - 1) & ~(align - 1)


def _place(job: _Link, base: int, groups: Sequence[Group]) -> list[tuple[Group, int, int]]:
    """Give every section an address; return each group with its start and end."""
    spans = []
    at = base
    for group in groups:
        at = start = _align(at, group.align)
        for number, section in _members(job, group):
            at = _align(at, section.align)
            job.pieces[number, section.number] = _Piece(number, section, at)
            at += section.size
        spans.append((group, start, at))
    for number, thing in enumerate(job.objects):
        for section in thing.sections:
            if section.size and (number, section.number) not in job.pieces:
                raise ImageError(f"{job.names[number]}: section {section.name} is in no group")
    if at > 1 << 64:
        raise ImageError(f"the image ends beyond 2^64: {at - base:#x} bytes from {hex64(base)}")
    return spans


def _members(job: _Link, group: Group) -> Iterator[tuple[int, Section]]:
    """Yield the sections of a group in order: those with bytes, then those that are only zeros."""
    found = [
        (number, section)
        for pattern in group.patterns
        for number, thing in enumerate(job.objects)
        for section in thing.sections
        if _takes(pattern, section.name) and (number, section.number) not in job.pieces
    ]
    yield from (item for item in found if item[1].data)
    yield from (item for item in found if not item[1].data)


def _define(job: _Link, spans: list[tuple[Group, int, int]], base: int, defines: dict[str, int]) -> None:
    job.absolute |= set(defines)
    for group, start, end in spans:
        name = group.name.strip(".").replace(".", "_")
        defines |= {f"__{name}_start": start, f"__{name}_end": end}
    defines |= {"__image_start": base, "__image_end": spans[-1][2] if spans else base}
    job.symbols.update(defines)
    job.owners.update(dict.fromkeys(defines, "the linker"))
    for number, thing in enumerate(job.objects):
        for symbol in thing.symbols:
            if not symbol.is_global or symbol.section is None:
                continue
            if symbol.name in job.symbols:
                raise ImageError(f"{symbol.name} is defined by {job.owners[symbol.name]} and by {job.names[number]}")
            job.symbols[symbol.name] = job.address(number, symbol.section, symbol.value)
            job.owners[symbol.name] = job.names[number]
            if symbol.section == -1:
                job.absolute.add(symbol.name)


def _bytes(job: _Link, group: Group, start: int, end: int) -> Placed:
    """Return the bytes of a group, relocated."""
    members = [piece for piece in job.pieces.values() if start <= piece.address < end]
    filled = max((p.address + len(p.section.data) for p in members if p.section.data), default=start)
    executable = any(piece.section.executable for piece in members)
    image = bytearray((_FILLER if executable else b"\0") * (filled - start))
    for piece in members:
        if piece.address < filled:
            offset = piece.address - start
            image[offset : offset + piece.section.size] = piece.section.data or bytes(piece.section.size)
    for piece in members:
        for relocation in job.objects[piece.object].relocations:
            if relocation.section == piece.section.number:
                _relocate(job, piece, relocation, image, piece.address - start + relocation.offset)
    return Placed(group.name, start, end - start, bytes(image))


def _relocate(job: _Link, piece: _Piece, relocation: Relocation, image: bytearray, offset: int) -> None:
    """Fill one place. The forms: S + A or, relative to the place, S + A - P; or a field of an instruction."""
    form = relocation.form
    if form in FIELDS:
        _relocate_field(job, piece, relocation, image, offset)
        return
    width = int(form.removeprefix("pc").removesuffix("s")) // 8
    if offset + width > len(image):
        raise ImageError(f"{job.names[piece.object]}: a relocation lies outside {piece.section.name}")
    addend = relocation.addend
    if addend is None:
        addend = int.from_bytes(image[offset : offset + width], "little", signed=True)
    place = piece.address + relocation.offset
    symbol = job.objects[piece.object].symbols[relocation.symbol].name or "an absolute address"
    value = _symbol(job, piece.object, relocation.symbol) + addend
    if form.startswith("pc"):
        value -= place
    elif relocation.symbol and symbol not in job.absolute:
        job.fixups.append(Fixup(place, width))
    if not _fits(value, form, width):
        where = f"{job.names[piece.object]}: {piece.section.name}+{relocation.offset:#x}"
        raise ImageError(f"{where}: {symbol} is out of reach: {hex64(value & MASK64)} does not fit {form}")
    image[offset : offset + width] = (value & ((1 << 8 * width) - 1)).to_bytes(width, "little")


def _relocate_field(job: _Link, piece: _Piece, relocation: Relocation, image: bytearray, offset: int) -> None:
    """Fill a field of an AArch64 instruction, which moves with the image: nothing is to be fixed up."""
    where = f"{job.names[piece.object]}: {piece.section.name}+{relocation.offset:#x}"
    if offset + 4 > len(image) or relocation.addend is None:
        raise ImageError(f"{where}: a relocation of an instruction that is not there")
    value = _symbol(job, piece.object, relocation.symbol) + relocation.addend
    word = int.from_bytes(image[offset : offset + 4], "little")
    filled = fill(relocation.form, word, value, piece.address + relocation.offset)
    if filled is None:
        raise ImageError(f"{where}: {hex64(value & MASK64)} is out of reach of the instruction, or not aligned for it")
    image[offset : offset + 4] = filled.to_bytes(4, "little")


def _fits(value: int, form: str, width: int) -> bool:
    """Tell whether a sum, taken modulo 2^64, is what the place will be read as."""
    value &= MASK64
    if width == 8:
        return True
    low = value < 1 << 8 * width
    extended = value >= (1 << 64) - (1 << 8 * width - 1)
    small = value < 1 << 8 * width - 1
    if form.startswith("pc") or form == "32s":
        return small or extended
    # The ABI has 32 zero-extended; shorter ones are read either way.
    return low or (width < 4 and extended)


def _symbol(job: _Link, number: int, index: int) -> int:
    if index == 0:  # The ABI: a relocation without a symbol uses 0.
        return 0
    symbol = job.objects[number].symbols[index]
    if symbol.section is not None and not symbol.is_global:
        return job.address(number, symbol.section, symbol.value)
    if symbol.name not in job.symbols:
        raise ImageError(f"{job.names[number]}: {symbol.name} is not defined")
    return job.symbols[symbol.name]


def _functions(job: _Link) -> tuple[tuple[int, int, str], ...]:
    found = {
        (job.address(number, symbol.section, symbol.value), symbol.size, symbol.name)
        for number, thing in enumerate(job.objects)
        for symbol in thing.symbols
        if symbol.is_function and symbol.section is not None
    }
    return tuple(sorted(found))

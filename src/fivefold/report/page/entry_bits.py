"""What each bit of a page-table entry means, in words, for those who learn it from a page.

Source: Intel SDM, "4-Level Paging and 5-Level Paging", the tables of entry formats.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from fivefold.arch import TABLE_SIZE, Cpu, Entry, Flag, Level
from fivefold.units import hex64


class BitField(NamedTuple):
    """Bits *low* to *high* of an entry: their *name*, and what they say when they are *zero* and when not (*one*)."""

    low: int
    high: int
    name: str
    zero: str
    one: str


_ALL: Final = (
    BitField(0, 0, "P", "not present: the CPU reads no other bit", "present"),
    BitField(1, 1, "RW", "no writes below here", "writes allowed, if all levels allow them"),
    BitField(2, 2, "US", "supervisor only", "user mode too, if all levels allow it"),
    BitField(3, 3, "PWT", "write-back, as far as this bit counts", "write-through: selects in the PAT"),
    BitField(4, 4, "PCD", "cached, as far as this bit counts", "not cached: selects in the PAT"),
    BitField(5, 5, "A", "not used for a translation since it was cleared", "accessed: used for a translation"),
)
_LEAF: Final = (
    BitField(6, 6, "D", "not written since it was cleared", "dirty: written"),
    BitField(8, 8, "G", "dropped from the TLB by a load of CR3", "global: stays when CR3 is loaded, if CR4.PGE"),
    BitField(9, 11, "software", "free for the system", "free for the system"),
    BitField(52, 58, "software", "free for the system", "free for the system"),
    BitField(59, 62, "key", "protection key 0", "protection key, if CR4.PKE or CR4.PKS"),
)
_TABLE: Final = (
    BitField(6, 6, "ignored", "", ""),
    BitField(8, 11, "software", "free for the system", "free for the system"),
    BitField(52, 62, "software", "free for the system", "free for the system"),
)
_NX: Final = BitField(63, 63, "NX", "fetches allowed, if all levels allow them", "no instruction fetch below here")


def bit_fields(level: Level, *, leaf: bool) -> tuple[BitField, ...]:
    """The fields of an entry of *level*, ascending, all 64 bits once."""
    middle = (*(_LEAF if leaf else _TABLE), _bit7(level, leaf=leaf), *_address(level, leaf=leaf))
    return tuple(sorted((*_ALL, *middle, _NX)))


def _bit7(level: Level, *, leaf: bool) -> BitField:
    if level == Level.PT:
        return BitField(7, 7, "PAT", "selects in the PAT with PCD and PWT", "selects in the PAT with PCD and PWT")
    if level > Level.PDPT:
        return BitField(7, 7, "reserved", "must be 0 at this level", "reserved: the CPU faults")
    large = "2M" if level == Level.PD else "1G"
    return BitField(7, 7, "PS", "points to a table", f"maps a page of {large}" if leaf else "")


def _address(level: Level, *, leaf: bool) -> tuple[BitField, ...]:
    if not leaf:
        return (BitField(12, 51, "table", "the table below is at 0", "where the table below is"),)
    page = BitField(level.shift, 51, "page", "the page is at 0", "where the page is")
    if level == Level.PT:
        return (page,)
    pat = BitField(12, 12, "PAT", "selects in the PAT with PCD and PWT", "selects in the PAT with PCD and PWT")
    return (pat, BitField(13, level.shift - 1, "reserved", "must be 0", "reserved: the CPU faults"), page)


class DecodedField(NamedTuple):
    """One field of an entry with its *value*, and what that means."""

    field: BitField
    value: int
    meaning: str


def decode(entry: Entry) -> list[DecodedField]:
    """The fields of *entry* from bit 0 on."""
    fields = bit_fields(entry.level, leaf=entry.is_leaf)
    values = [entry.raw >> one.low & ((1 << one.high - one.low + 1) - 1) for one in fields]
    return [DecodedField(one, value, one.one if value else one.zero) for one, value in zip(fields, values, strict=True)]


def all_fields() -> dict[str, tuple[BitField, ...]]:
    """The fields by ``LEVEL`` and ``LEVEL leaf``, for a script that decodes entries itself."""
    return {
        f"{level.name}{' leaf' if leaf else ''}": bit_fields(level, leaf=leaf)
        for level in Level
        for leaf in (False, True)
        if (leaf or level > Level.PT) and not (leaf and level > Level.PDPT)
    }


def decoding_rules(cpu: Cpu, nxe: bool, *, ignores_read_only: bool) -> dict[str, Any]:
    """What a script needs, beside the fields, to decode entries: the address field, reserved bits, CR0.WP off."""
    kinds = {"": 0, " leaf": int(Flag.BIT7)}
    return {
        "frame_mask": hex64(cpu.frame_mask(TABLE_SIZE)),
        "reserved": {
            f"{level.name}{kind}": hex64(cpu.must_be_zero(Entry(bits, level), nxe))
            for level in Level
            for kind, bits in kinds.items()
        },
        "ignores_read_only": ignores_read_only,
    }

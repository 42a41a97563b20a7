"""Mistakes that a dump can make, each put back into a copy of the kernel: the scan must notice every one.

RFC-B.. are those of the 2017 proposal's own dump and masks; the others are of the kind that a
dump with a memory of shared tables invites.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from fivefold.arch import LA48, LA57, PagingMode
from fivefold.kernel.scan import scan, scan_ranges
from fivefold.kernel.scan.scan_ranges import MAPPED, RANGE_SIZE, REPEAT, UNREADABLE

BASE = 0x10_0000
P, W, U, NX = 1, 2, 4, 1 << 63
TABLE = P | W | U
Tables = list[Mapping[int, int]]
Row = tuple[int, int, int, int]
Scan = Callable[..., list[Row]]


OWNERS = {"contiguity": "scan_ranges", "first": "scan_stack", "last": "scan_stack"}
"""Which module has the setting, if not `scan`."""


@pytest.fixture
def dump(code: Any) -> Scan:
    """Scan *tables*, which lie one after the other from `BASE` with the root last: (start, last, phys, info) rows."""

    def run(package: str, mode: PagingMode, tables: Tables, **settings: int) -> list[Row]:
        size = 0x1000 * len(tables)
        kernel = code(mode, "scan", "memblock", package=package, extents=[(BASE, BASE + size)])
        for number, entries in enumerate(tables):
            words = [entries.get(slot, 0) for slot in range(512)]
            kernel.ram.write(BASE + 0x1000 * number, struct.pack("<512Q", *words))
        kernel.add_memory()
        for name, value in settings.items():
            kernel.set(f"{OWNERS.get(name, 'scan')}.{name}", value)
        frames = (BASE + size) >> 12
        records = kernel.plain.map(bytearray(RANGE_SIZE * 4096))
        index, walks = kernel.plain.map(bytearray(4 * frames)), kernel.plain.map(bytearray(64 * 256))
        kernel.call("scan.scan_init", records, 4096, index, frames, walks, 256)
        assert kernel.call("scan.scan", BASE + size - 0x1000) == scan.DONE
        found = kernel.plain.read(records, RANGE_SIZE * kernel.get("scan_ranges.count"))
        return [(start, last, phys, info) for start, last, phys, _, info, _ in struct.iter_unpack("<6Q", found)]

    return run


def at(number: int) -> int:
    """The entry that points to table *number*."""
    return BASE + 0x1000 * number | TABLE


def info(kind: int, level: int, rights: int = 7) -> int:
    """The info word."""
    return kind | level << 4 | rights << 8


def one_page(slot: int, levels: int, leaf: int = 0x7000 | TABLE) -> Tables:
    """The shortest tree to one page, by *slot* of the root and slot 0 of the tables below."""
    return [{0: leaf}, *({0: at(number)} for number in range(levels - 2)), {slot: at(levels - 2)}]


def test_rfc_b08_no_level_is_lost_or_made_up(dump: Scan, guards: Callable[..., None]) -> None:
    """With the test for the folded level inverted, a 256 TiB slot was printed as 512 GiB."""

    def check(package: str) -> None:
        assert dump(package, LA57, one_page(273, 5)) == [
            (0xFF11_0000_0000_0000, 0xFF11_0000_0000_0FFF, 0x7000, info(MAPPED, 1))
        ]
        assert dump(package, LA48, one_page(273, 4)) == [
            (0xFFFF_8880_0000_0000, 0xFFFF_8880_0000_0FFF, 0x7000, info(MAPPED, 1))
        ]

    guards(check, "pgtable.py", ("return 4 + l5_enabled", "return 5 - l5_enabled"))


def test_rfc_b09_empty_slots_are_not_walked(dump: Scan, guards: Callable[..., None]) -> None:
    """Folded, every empty slot was descended into, and page 0 read as a table."""

    def check(package: str) -> None:
        assert len(dump(package, LA48, one_page(1, 4))) == 1

    guards(
        check,
        "scan.py",
        ("if entry & PRESENT == 0:\n            i = absent_end(table, i, ahead, False)\n        elif room", "if room"),
    )


def test_rfc_b12_frames_are_not_cut_at_46_bits(dump: Scan, guards: Callable[..., None]) -> None:
    def check(package: str) -> None:
        tables = one_page(1, 5, 0x0004_4567_89AB_C000 | TABLE)
        assert [row[2] for row in dump(package, LA57, tables)] == [0x0004_4567_89AB_C000]

    guards(check, "pgtable.py", ("0x000F_FFFF_FFFF_F000", "0x0000_3FFF_FFFF_F000"))


def test_rfc_b38_the_sign_is_the_mode_s(dump: Scan, guards: Callable[..., None]) -> None:
    """Sign-extended from bit 47, 0xff11000000000000 is 0x11000000000000."""

    def check(package: str) -> None:
        assert dump(package, LA57, one_page(273, 5))[0][0] == 0xFF11_0000_0000_0000

    guards(check, "scan_stack.py", ("va -= (i >> 8) << va_bits()", "va -= (i >> 8) << 48"))


INSIDE = {100: 0x2_0000 | TABLE, 200: 0x3_0000 | TABLE, 201: 0x4_0000 | TABLE, 300: 0x5_0000 | TABLE}
SHARED: Tables = [
    {511: 0x7000 | TABLE},
    {0: 0x8000 | TABLE, 1: 0x9000 | TABLE, **INSIDE, 511: 0x6000 | TABLE},
    {0: at(0), 1: at(1), 2: at(0), 5: at(1), 6: at(1) & ~W},
    {0: at(2)},
    {0: at(3)},
]
"""Table 1 goes on where table 0 ends, in its range; in slot 5 it stands alone, and in slot 6 it follows itself."""


def page(slot: int, entry: int) -> int:
    """The address behind entry *entry* of the lowest table in slot *slot*."""
    return slot << 21 | entry << 12


def shared_rows() -> list[Row]:
    def rest(slot: int, rights: int) -> list[tuple[int, int, int, int]]:
        inside = [(page(slot, i), page(slot, i), entry & ~0xFFF, rights) for i, entry in INSIDE.items()]
        return [*inside, (page(slot, 511), page(slot, 511), 0x6000, rights)]

    told = [(page(0, 511), page(1, 1), 0x7000, 7), *rest(1, 7)]
    told += [(page(2, 511), page(2, 511), 0x7000, 7)]
    told += [(page(5, 0), page(5, 1), 0x8000, 7), *rest(5, 7)]
    told += [(page(6, 0), page(6, 1), 0x8000, 6), *rest(6, 6)]
    return [(start, last | 0xFFF, phys, info(MAPPED, 1, rights)) for start, last, phys, rights in told]


HEAD = "load64(walk + HEAD) if load64(at + START) < origin else load64(at + PHYS)"


@pytest.mark.parametrize(
    ("file", "right", "wrong"),
    [
        ("scan_memo.py", "return level | rights << 4", "return level"),
        ("scan_memo.py", HEAD, "load64(at + PHYS)"),
        ("scan_memo.py", "high = min(load64(at + LAST), origin", "high = max(load64(at + LAST), origin"),
        ("scan_memo.py", "low = max(load64(at + START), origin)", "low = load64(at + START)"),
        ("scan_memo.py", "if number + 1 < end:\n        replay_outer(walk, level, end, delta)", ""),
        ("scan_memo.py", "append_moved(number + 2, end, delta)", "append_moved(number + 1, end, delta)"),
        ("scan_ranges.py", "load64(at + LAST) + delta", "load64(at + LAST)"),
        ("scan_ranges.py", "return contiguity != BREAK or phys == next_phys", "return True"),
        ("scan_entries.py", "return rights & ((entry >> 1 & 3)", "return ((entry >> 1 & 3)"),
    ],
    ids=[
        "rights are not in the key", "head is lost", "end is not cut", "start is not cut", "last range is lost",
        "one twice", "not moved", "jumps merge", "rights are the leaf's",
    ],
)  # fmt: skip
def test_shared_tables(dump: Scan, guards: Callable[..., None], file: str, right: str, wrong: str) -> None:
    def check(package: str) -> None:
        assert dump(package, LA48, SHARED) == shared_rows()

    guards(check, file, (right, wrong))


def test_a_repeat_does_not_merge_with_the_repeat_of_another_table(dump: Scan, guards: Callable[..., None]) -> None:
    many = dict.fromkeys(range(0, 512, 2), 0x7000 | TABLE)
    tables: Tables = [many, many, {0: at(0), 1: at(1), 2: at(0), 3: at(0), 4: at(1)}, {0: at(2)}, {0: at(3)}]

    def check(package: str) -> None:
        told = [row for row in dump(package, LA48, tables, repeat_above=100) if row[3] & 7 == REPEAT]
        assert told == [
            (page(2, 0), page(3, 511) | 0xFFF, BASE, info(REPEAT, 1)),
            (page(4, 0), page(4, 511) | 0xFFF, BASE + 0x1000, info(REPEAT, 1)),
        ]

    guards(check, "scan.py", ("pa, walk_number(walk), info, 0)", "pa, 0, info, 0)"))


def test_tables_that_are_not_memory_are_told_one_by_one(dump: Scan, guards: Callable[..., None]) -> None:
    missing = 0x7000_0000
    tables: Tables = [{0: missing | TABLE, 1: missing | TABLE, 2: missing + 0x1000 | TABLE}, {0: at(0)}, {0: at(1)}]

    def check(package: str) -> None:
        assert dump(package, LA48, [{}, *one_lower(tables)]) == [
            (0, page(1, 511) | 0xFFF, missing, info(UNREADABLE, 1)),
            (page(2, 0), page(2, 511) | 0xFFF, missing + 0x1000, info(UNREADABLE, 1)),
        ]

    guards(
        check,
        "scan_ranges.py",
        ("return info & KIND_MASK != UNREADABLE or phys == load64(opened + PHYS)", "return True"),
    )


def one_lower(tables: Tables) -> Tables:
    """The same tables, which point to each other, with one more before them."""
    low, high = BASE, BASE + 0x1000 * len(tables)
    return [{i: e + 0x1000 if low <= e < high else e for i, e in table.items()} for table in tables]


def test_a_range_goes_on_over_a_jump_that_is_only_noted(dump: Scan, guards: Callable[..., None]) -> None:
    """One page everywhere, as KASAN maps its zeros: one range, unless jumps are asked for."""
    tables: Tables = [
        dict.fromkeys(range(512), 0x7000 | TABLE),
        {0: at(0), 1: at(0), 3: at(0)},
        {0: at(1)},
        {0: at(2)},
    ]

    def check(package: str) -> None:
        assert dump(package, LA48, tables, contiguity=scan_ranges.NOTE) == [
            (0, page(1, 511) | 0xFFF, 0x7000, info(MAPPED, 1)),
            (page(3, 0), page(3, 511) | 0xFFF, 0x7000, info(MAPPED, 1)),
        ]

    guards(check, "scan_ranges.py", ("return contiguity != BREAK or", "return contiguity == IGNORE or"))


def test_the_first_page_of_a_table_of_tables_is_remembered(dump: Scan, guards: Callable[..., None]) -> None:
    """Where it follows on from what lies before the table, no range says what it is."""
    tables: Tables = [
        {511: 0x7000 | TABLE}, {511: at(0)},
        {0: 0x8000 | TABLE}, {0: at(2)},
        {0: at(1), 1: at(3), 3: at(3)},
        {0: at(4)},
    ]  # fmt: skip

    def check(package: str) -> None:
        gib = 1 << 30
        assert dump(package, LA48, tables) == [
            (gib - 0x1000, gib + 0xFFF, 0x7000, info(MAPPED, 1)),
            (3 * gib, 3 * gib + 0xFFF, 0x8000, info(MAPPED, 1)),
        ]

    guards(check, "scan_stack.py", ("store64(above + HEAD, load64(frame + HEAD))", "pass"))


def test_part_of_a_table_does_not_answer_for_all_of_it(dump: Scan, guards: Callable[..., None]) -> None:
    tables: Tables = [{0: 0x7000 | TABLE, 9: 0x9000 | TABLE}, {0: at(0), 1: at(0)}, {0: at(1)}, {0: at(2)}]

    def check(package: str) -> None:
        told = [row[0] for row in dump(package, LA48, tables, first=page(0, 5))]
        assert told == [page(0, 9), page(1, 0), page(1, 9)]

    guards(check, "scan_stack.py", ("return PARTIAL if first > low or last < high else 0", "return 0"))


@pytest.mark.parametrize(
    ("first", "last", "slots"),
    [
        (0, 1 << 47, [255]),
        (0, (1 << 47) - 1, [255]),
        (0, 0xFFFF_7FFF_FFFF_FFFF, [255]),
        (0, 0xFFFF_8000_0000_0000, [255, 256]),
        (1 << 47, (1 << 64) - 1, [256]),
        ((1 << 47) - 1, (1 << 64) - 1, [255, 256]),
        (1 << 47, 0xFFFF_7FFF_FFFF_FFFF, []),
    ],
)
def test_limits_in_the_gap(dump: Scan, first: int, last: int, slots: list[int]) -> None:
    """Limits that are not canonical mean the nearest addresses inside them that are."""
    missing = 0x7000_0000 | TABLE
    starts = {255: 255 << 39, 256: 0xFFFF_8000_0000_0000}
    told = dump("fivefold.kernel", LA48, [{255: missing, 256: missing}], first=first, last=last)
    assert [row[0] for row in told] == [starts[slot] for slot in slots]

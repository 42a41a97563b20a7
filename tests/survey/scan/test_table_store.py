"""Tables that are brought when the scan comes to them: the same answers, and nothing read that is not asked for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fivefold.arch import LA48, AddressSpace, distinct_tables, regions
from fivefold.errors import MemoryReadError
from fivefold.memory import open_source
from fivefold.metal.run import interpreter
from fivefold.survey.scan import scan as module
from fivefold.survey.scan.scan import TableScanner
from fivefold.survey.scan.scan_result import ALL_FLAGS, Contiguity, ScanSettings
from fivefold.survey.scan.table_store import TableStore, Words, bring_from
from fivefold.survey.space import Space
from fivefold.units import PhysAddr

GUESTS = Path(__file__).parents[2] / "data" / "guests"
P, W, PS = 1, 2, 1 << 7


class Counted:
    """Memory that notes what was read of it."""

    def __init__(self, memory: object, missing: frozenset[int] = frozenset()) -> None:
        self.memory, self.missing, self.asked = memory, missing, list[int]()

    def read(self, pa: PhysAddr, size: int, /) -> bytes:
        self.asked.append(pa)
        if pa in self.missing:
            raise MemoryReadError(pa, size, "a test")
        return self.memory.read(pa, size)  # type: ignore[attr-defined, no-any-return]


@pytest.mark.parametrize("name", sorted(path.name for path in GUESTS.glob("*.elf.xz")))
def test_captures_are_the_same_in_place_and_brought(name: str) -> None:
    with open_source(GUESTS / name) as source, Space(source) as space:
        counted = Counted(source.memory)
        in_place, brought = TableScanner(source.memory.banks()), TableScanner(bring=bring_from(counted))
        for how in (
            ScanSettings(flags=ALL_FLAGS, contiguity=Contiguity.BREAK, repeat_above=64),
            ScanSettings(repeat_above=16),
            ScanSettings(first=0xFFFF_8000_0000_0000, last=0xFFFF_FFFF_8123_4567, repeat_above=64),
        ):
            ours, theirs = (one.scan(space.root.value, space.levels, how) for one in (brought, in_place))
            assert np.array_equal(ours.rows, theirs.rows)
            assert ours.counts == theirs.counts
        tables = {table for level in distinct_tables(space.tables).values() for table in level}
        assert tables <= set(counted.asked) and len(counted.asked) == len(set(counted.asked))
        in_place.close()
        brought.close()


def two_branches() -> tuple[dict[int, Words], int]:
    """A root whose first two entries lead, by way of two tables each, to leaves; the second of them far away."""
    tables = {frame: np.zeros(512, np.uint64) for frame in (0x1000, 0x2000, 0x3000, 0x4000, 0x5000, 0x6000, 0x7000)}
    for entry, (upper, middle, leaf) in enumerate(((0x2000, 0x3000, 0x4000), (0x5000, 0x6000, 0x7000))):
        tables[0x1000][entry] = upper | P | W
        tables[upper][0] = middle | P | W
        tables[middle][:2] = leaf | P | W
        tables[leaf][7] = 0x9000 | P
    return tables, 0x1000


class Tables:
    """Memory that has nothing but tables."""

    def __init__(self, tables: dict[int, Words]) -> None:
        self.tables = tables

    def read(self, pa: PhysAddr, size: int, /) -> bytes:
        if pa not in self.tables or size != 4096:
            raise MemoryReadError(pa, size, "a test")
        return self.tables[pa].tobytes()


def test_a_window_brings_what_it_needs() -> None:
    tables, root = two_branches()
    counted = Counted(Tables(tables))
    with TableScanner(bring=bring_from(counted)) as scanner:
        result = scanner.scan(PhysAddr(root), 4, ScanSettings(last=(1 << 39) - 1))
        assert result.start.tolist() == [0x7000, 0x207000]
        assert counted.asked == [0x1000, 0x2000, 0x3000, 0x4000]
        scanner.scan(PhysAddr(root), 4)
        assert sorted(counted.asked) == sorted(tables)


def test_a_missing_table_is_asked_for_once_and_told_at_each_place() -> None:
    tables, root = two_branches()
    counted = Counted(Tables(tables), frozenset({0x4000}))
    with TableScanner(bring=bring_from(counted)) as scanner:
        for _ in range(2):
            result = scanner.scan(PhysAddr(root), 4)
            assert (result.counts.unreadable_tables, result.kind.tolist()) == (2, [3, 1, 1])
    assert counted.asked.count(0x4000) == 1


def test_a_root_that_is_missing_is_refused() -> None:
    with TableScanner(bring=bring_from(Tables({}))) as scanner, pytest.raises(MemoryReadError):
        scanner.scan(PhysAddr(0x1000), 4)


def test_plain_python_waits_for_tables_too() -> None:
    tables, root = two_branches()
    results = [
        TableScanner(bring=bring_from(Tables(tables)), load=load).scan(PhysAddr(root), 4)
        for load in (interpreter.load, module.host.load)
    ]
    assert np.array_equal(results[0].rows, results[1].rows)


def test_the_store_grows_and_keeps_what_it_has() -> None:
    code = module.host.load(module.scan_program(4, prefetch=False, brought=True))
    frames = np.random.default_rng(3).permutation(20_000).astype(np.uint64) << np.uint64(12)
    asked: list[int] = []

    def bring(wanted: Words) -> tuple[np.ndarray, Words]:  # type: ignore[type-arg]
        asked.extend(wanted.tolist())
        there = wanted % np.uint64(0x3000) != 0
        return there, np.repeat(wanted[there], 512).reshape(-1, 512)

    store = TableStore(code, bring)
    for at in range(0, len(frames), 701):
        store.fetch(frames[at : at + 701])
    for frame in frames[::97].tolist():
        store.need(frame)
    assert sorted(asked) == sorted(frames.tolist())
    store.close()


def test_bits_about_encryption_are_cleared() -> None:
    bit = 1 << 47
    tables, root = two_branches()
    secret = {frame: np.where(table != 0, table | np.uint64(bit), table) for frame, table in tables.items()}
    plain = TableScanner(bring=bring_from(Tables(tables))).scan(PhysAddr(root), 4)
    found = TableScanner(bring=bring_from(Tables(secret), bit)).scan(PhysAddr(root), 4)
    assert np.array_equal(plain.rows, found.rows)


def test_a_space_of_the_plain_walk_agrees() -> None:
    tables, root = two_branches()
    result = TableScanner(bring=bring_from(Tables(tables))).scan(PhysAddr(root), 4)
    runs = list(regions(AddressSpace(Tables(tables), PhysAddr(root), LA48)))
    assert [int(run.start) for run in runs] == result.start.tolist()

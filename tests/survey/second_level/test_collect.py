"""Tables of EPT, NPT and VT-d that are drawn at random, read entry by entry by the rules of the manuals."""

from __future__ import annotations

import random
import struct
from typing import Any

import pytest

from fivefold.arch import Level
from fivefold.errors import FormatError, MemoryReadError
from fivefold.memory import CpuState, Extent, PagedMemory, Ram, Source
from fivefold.survey.second_level.collect import (
    Collected,
    SecondLevelKind,
    SecondLevelRoot,
    collect,
    kind_seen,
    runs,
    wrong_kind,
)
from fivefold.survey.second_level.sources import guest_source, root_of
from fivefold.units import PhysAddr

ROOT, TABLES = 0x35_0000, 24
FRAME = 0x000F_FFFF_FFFF_F000


def test_memory_that_cannot_be_read_in_place_is_refused() -> None:
    """A compressed dump, for one: what the guest has is views of the host's memory."""
    memory = PagedMemory([Extent(0, 0x1000)], lambda pa, size: bytes(size), "packed")
    with pytest.raises(FormatError, match=r"^packed cannot be read in place, which .*; save it to a file first$"):
        guest_source(Source(memory, "test"), SecondLevelRoot(SecondLevelKind.npt, PhysAddr(0x1000), 4))


def drawn(seed: int) -> Ram:
    """Tables that lead to each other, to pages and to what is not there; every other bit is chance."""
    draw, ram = random.Random(seed), Ram.of_size(TABLES << 12, start=ROOT)
    for table in range(TABLES):
        entries = [0] * 512
        for index in draw.sample(range(512), 3):
            frame = draw.choice([ROOT + draw.randrange(TABLES + 2) * 0x1000, draw.getrandbits(40) << 12])
            flags = draw.getrandbits(12) & ~(draw.choice([0, 7, 0x20]))
            entries[index] = frame & FRAME | flags | draw.getrandbits(12) << 52
        ram.write(PhysAddr(ROOT + table * 0x1000), struct.pack("<512Q", *entries))
    return ram


def ordinary(kind: str, entry: int, *, leaf: bool, level: int) -> int:
    """One present entry as an ordinary table has it. Source: Intel SDM, "EPT Entries"; VT-d, "Second-Stage Entries"."""
    if kind == "npt":
        return entry
    bits = {"P": 1, "U/S": 1, "R/W": entry >> 1 & 1, "A": 0, "D": 0, "PS": leaf and level > 1, "XD": 1}
    if kind == "ept":
        bits |= {"A": entry >> 8 & 1, "D": entry >> 9 & 1 if leaf else 0, "XD": not entry >> 2 & 1}
    places = {"P": 0, "R/W": 1, "U/S": 2, "A": 5, "D": 6, "PS": 7, "XD": 63}
    return entry & FRAME | sum(1 << places[name] for name, is_set in bits.items() if is_set)


def read(ram: Ram, kind: str, levels: int) -> Collected:
    """All of it, table by table."""
    found = Collected()
    work = [(ROOT, levels, 0)]
    while work:
        table, level, base = work.pop()
        if not ROOT <= table < ROOT + TABLES * 0x1000:
            found.missing += 1
            continue
        rows = struct.unpack("<512Q", ram.read(PhysAddr(table), 4096))
        translated = []
        below = []
        for index, entry in enumerate(rows):
            here = base + index * (1 << 9 * level + 3)
            if not entry & {"ept": 7, "npt": 1, "vtd": 3}[kind]:
                translated.append(entry if kind == "npt" else 0)
                continue
            leaf = level == 1 or (level < 4 and bool(entry & 0x80))
            translated.append(ordinary(kind, entry, leaf=leaf, level=level))
            if leaf:
                span = 1 << 9 * level + 3
                found.pages.append((here, entry & FRAME & ~(span - 1), span))
                found.write_back_leaves += entry >> 3 & 7 == 6
                found.other_leaves += entry >> 3 & 7 not in (0, 6)
            else:
                found.above_accessed |= bool(entry & 0x20)
                below.append((entry & FRAME, level - 1, here))
        found.tables[table] = translated  # type: ignore[assignment]
        work += below
    return found


@pytest.mark.parametrize("kind", ["ept", "npt", "vtd"])
@pytest.mark.parametrize("levels", [3, 4, 5])
@pytest.mark.parametrize("seed", range(3))
def test_every_entry_of_every_table(kind: str, levels: int, seed: int) -> None:
    ram = drawn(seed)
    got, want = collect(ram, SecondLevelRoot(SecondLevelKind(kind), ROOT, levels)), read(ram, kind, levels)
    assert sorted(got.pages) == sorted(want.pages)
    # One table may be met at several levels: the last reading stays, of which the order is no matter.
    assert got.tables.keys() == want.tables.keys()
    assert got.tables[ROOT].tolist() == want.tables[ROOT] or ROOT in {e & FRAME for e in want.tables[ROOT]}
    for name in ("missing", "above_accessed", "other_leaves", "write_back_leaves"):
        assert getattr(got, name) == getattr(want, name), name


@pytest.mark.parametrize("kind", ["ept", "npt", "vtd"])
@pytest.mark.parametrize("level", [1, 2, 3, 4, 5])
def test_every_bit_of_an_entry(kind: str, level: int) -> None:
    """Alone in tables of its level: as an ordinary entry it is what the rules say."""
    ram = Ram.of_size(0x1000, start=ROOT)
    entries = [1 << bit | base for bit in range(64) for base in (0, 7, 0x87, 0x2007)]
    ram.write(PhysAddr(ROOT), struct.pack("<256Q", *entries))
    root = SecondLevelRoot(SecondLevelKind(kind), ROOT, level)
    got = collect(ram, root).tables[ROOT].tolist()
    present = {"ept": 7, "npt": 1, "vtd": 3}[kind]
    for entry, found in zip(entries, got, strict=False):
        leaf = level == 1 or (level < 4 and bool(entry & 0x80))
        assert found == (ordinary(kind, entry, leaf=leaf, level=level) if entry & present or kind == "npt" else 0)
    assert len(got) == 512 and not any(got[256:])


def test_a_root_that_is_not_there() -> None:
    with pytest.raises(MemoryReadError):
        collect(Ram.of_size(0x1000, start=ROOT), SecondLevelRoot(SecondLevelKind.npt, 0x5000, 4))


def test_so_many_tables_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    from fivefold.survey.second_level import collect as module

    ram = Ram.of_size(4 << 12, start=ROOT)
    for table in range(3):
        ram.write(PhysAddr(ROOT + table * 0x1000), struct.pack("<Q", ROOT + (table + 1) * 0x1000 | 7))
    root = SecondLevelRoot(SecondLevelKind.npt, ROOT, 4)
    monkeypatch.setattr(module, "MOST_TABLES", 4)
    assert len(collect(ram, root).tables) == 4
    assert [len(collect(ram, root, sample).tables) for sample in (1, 3, 4, 9)] == [1, 3, 4, 4]
    monkeypatch.setattr(module, "MOST_TABLES", 3)
    with pytest.raises(FormatError, match=r"^--npt 0x350000:4: more than 3 tables; these are no second-level tables$"):
        collect(ram, root)


def test_runs_of_pages() -> None:
    """Pages that go on in both memories are one run, whatever the order in which they were read."""
    pages = [(0x3000, 0x9000, 0x1000), (0, 0x5000, 0x1000), (0x1000, 0x6000, 0x1000), (0x2000, 0x8000, 0x1000)]
    pages += [(0x20_0000, 0x40_0000, 0x20_0000), (0x40_0000, 0x60_0000, 0x1000), (0x40_2000, 0x60_2000, 0x1000)]
    assert list(runs(pages)) == [
        (0, 0x5000, 0x2000),
        (0x2000, 0x8000, 0x2000),
        (0x20_0000, 0x40_0000, 0x20_1000),
        (0x40_2000, 0x60_2000, 0x1000),
    ]
    assert list(runs([])) == [] and list(runs(pages[1:2])) == [(0, 0x5000, 0x1000)]


@pytest.mark.parametrize(
    ("about", "kind"),
    [
        ({}, None),
        ({"above_accessed": True, "write_back_leaves": 9}, "npt"),
        ({"write_back_leaves": 1}, "ept"),
        ({"write_back_leaves": 9, "other_leaves": 1}, None),
        ({"other_leaves": 1}, None),
    ],
)
def test_of_which_kind_tables_are(about: dict[str, Any], kind: str | None) -> None:
    found = Collected(**about)
    assert kind_seen(found) == kind
    told = {each: wrong_kind(SecondLevelRoot(each, 0x5000, 4), found) for each in SecondLevelKind}
    assert {each for each, why in told.items() if why} == {"npt": {"ept", "vtd"}, "ept": {"npt"}}.get(kind or "", set())
    assert (told[SecondLevelKind.ept] or "--npt 0x5000:4, or --cr3 0x5000").endswith("--npt 0x5000:4, or --cr3 0x5000")
    assert (told[SecondLevelKind.npt] or "give --ept 0x501e").endswith("give --ept 0x501e")


def test_how_many_levels_npt_has() -> None:
    """As the host: by CR4.LA57, where it is known."""

    def source(cr4: int | None) -> Source:
        return Source(None, "test", (CpuState("test", cr4=cr4),))  # type: ignore[arg-type]

    assert root_of("npt", 0x5000, None, source(0x1020)).levels == 5
    assert root_of("npt", 0x5000, None, source(0x2FEF)).levels == 4
    assert root_of("vtd", 0x5000, 3, source(None)) == SecondLevelRoot(SecondLevelKind.vtd, 0x5000, Level.PDPT)
    for kind, cr4 in (("npt", None), ("vtd", 0x1020)):
        with pytest.raises(Exception, match=rf"^--{kind} 0x0000000000005000 does not say how many levels"):
            root_of(kind, 0x5000, None, source(cr4))

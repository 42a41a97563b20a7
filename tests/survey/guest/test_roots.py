"""Roots without registers: all of the captures', and what tells them from other tables and from data."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from fivefold.arch import LA48, LA57, Level, PagingMode
from fivefold.memory import Bank, BankedMemory, CpuState, Extent, PagedMemory, Ram, Source
from fivefold.survey.guest import roots
from fivefold.survey.guest.info import About
from fivefold.survey.guest.root_labels import HAS_USER_HALF, KERNEL_ONLY
from fivefold.survey.guest.roots import Confidence, find_roots
from fivefold.survey.guest.table_pages import TablePages
from fivefold.survey.space import Space
from fivefold.units import MIB, PhysAddr

ROOT = 0x10_0000
IMAGE = (0xFFFF_FFFF_8100_0000, 0x20_0000 | 0x121, Level.PD)
USER = (0x40_0000, 0x30_0000 | 7, Level.PT)


@pytest.mark.parametrize("with_registers", [True, False], ids=["registers", "memory alone"])
def test_captures(
    name: str, with_registers: bool, captures: Path, look: Callable[..., Space], facts: Callable[[str], Any]
) -> None:
    source, known = look(name).source, facts(name)
    found = find_roots(source if with_registers else replace(source, cpus=()))
    there = known["roots"]
    want = {int(root, 16) for root in [*there["cr3"], there["init_top_pgt"], *there.get("pti_user", [])]}

    assert {root.root for root in found} == want
    assert {root.levels for root in found} == {known["levels"]}
    assert {root.confidence for root in found} == {Confidence.HIGH}
    assert {root.group for root in found} == {0}
    assert {root.root for root in found if root.is_user_half} == {int(r, 16) for r in there.get("pti_user", [])}


def test_isolated_pairs(look: Callable[..., Space]) -> None:
    found = {root.root: root for root in find_roots(look("debian-la57-kaslr-pti").source)}
    for root in found.values():
        assert root.pair == root.root ^ 0x1000
        assert found[root.pair].pair == root.root
    assert found[PhysAddr(0x255_7000)].reasons == (
        "user half of an isolated pair with 0x0000000002556000",
        "maps code in the kernel's window",
        "3 entries lead to well-formed tables of 5 levels",
    )


@pytest.mark.parametrize("mode", [LA48, LA57], ids=["la48", "la57"])
def test_direct_map_over_memory_that_was_never_written(
    built: Callable[..., Ram], sourced: Callable[..., Source], mode: PagingMode
) -> None:
    """Its PT leads to tables and, for the rest, to empty pages: it stands above no root, and is none."""
    direct = [(0xFFFF_8880_0000_0000 + pa, pa | 0x163, Level.PT) for pa in range(ROOT, ROOT + 2 * MIB, 4096)]
    assert [root.root for root in find_roots(sourced(built(mode, [IMAGE, USER, *direct])))] == [ROOT]


@pytest.mark.parametrize("mode", [LA48, LA57], ids=["la48", "la57"])
def test_one_root_in_memory(built: Callable[..., Ram], sourced: Callable[..., Source], mode: PagingMode) -> None:
    ram = built(mode, [IMAGE, USER])
    (root,) = find_roots(sourced(ram))
    assert (root.root, root.levels, root.confidence) == (ROOT, int(mode.top), Confidence.MEDIUM)
    assert root.reasons == (
        "maps code in the kernel's window",
        f"2 entries lead to well-formed tables of {int(mode.top)} levels",
    )


@pytest.mark.parametrize(
    ("va", "in_window"),
    [
        (0xFFFF_FFFF_7FE0_0000, False),
        *((0xFFFF_FFFF_8000_0000 + step * 2 * MIB, True) for step in (0, 1, 2, 7, 8, 256, 510, 511)),
        (0xFFFF_FFFF_C000_0000, False),
    ],
)
def test_code_anywhere_in_the_window(
    built: Callable[..., Ram], sourced: Callable[..., Source], va: int, in_window: bool
) -> None:
    """In any 2 MiB of it; data there is none, nor is code beside it."""
    (root,) = find_roots(sourced(built(LA48, [(va, 0x20_0000 | 0x121, Level.PD), USER])))
    assert root.confidence == (Confidence.MEDIUM if in_window else Confidence.LOW)
    assert ("maps code in the kernel's window" in root.reasons) is in_window
    (root,) = find_roots(sourced(built(LA48, [(va, 1 << 63 | 0x20_0000 | 0x121, Level.PD), USER])))
    assert root.confidence == Confidence.LOW


def test_what_hangs_below_a_root_is_none(built: Callable[..., Ram], sourced: Callable[..., Source]) -> None:
    """A P4D table has the shape of a four-level root."""
    ram = built(LA57, [IMAGE, USER])
    pages = TablePages(sourced(ram).memory)
    assert len(pages.of_level[Level.PML4]) > 1
    assert [root.root for root in find_roots(sourced(ram))] == [ROOT]
    ram.write(PhysAddr(ROOT), bytes(8))
    stray = [root for root in find_roots(sourced(ram)) if root.levels == 4]
    assert [root.confidence for root in stray] == [Confidence.LOW]
    assert "may be a P4D table that nothing leads to" in stray[0].reasons[0]


def test_a_register_names_a_root_whatever_it_holds(built: Callable[..., Ram], sourced: Callable[..., Source]) -> None:
    ram = built(LA48, [IMAGE])
    ram.write(PhysAddr(0x38_0000), b"no table" * 512)
    cpus = (CpuState("test", cr3=0x38_0000, cr4=0x1020), CpuState("test", cr3=ROOT | 0xFFF, cr4=0x20))
    found = find_roots(sourced(ram, cpus))
    assert [(root.root, root.levels, root.cpus) for root in found] == [(ROOT, 4, (1,)), (0x38_0000, 5, (0,))]
    assert found[0].reasons[0] == "CR3 of CPU 1"
    assert [root.levels for root in find_roots(sourced(ram, cpus), levels=5)] == [5]


def test_a_cpu_says_how_many_levels_its_root_has(built: Callable[..., Ram], sourced: Callable[..., Source]) -> None:
    """Early in a boot hardly anything hangs below a root, and it may look as if a level were missing."""
    ram = built(LA48, [IMAGE, USER])
    assert [root.levels for root in find_roots(sourced(ram))] == [4]
    running = CpuState("test", cr0=0x8005_0033, cr3=ROOT, cr4=0x1020)
    assert [(root.root, root.levels) for root in find_roots(sourced(ram, (running,)))] == [(ROOT, 5)]


def test_a_cpu_without_paging_names_no_root(built: Callable[..., Ram], sourced: Callable[..., Source]) -> None:
    """A guest may run on fewer CPUs than it has: the others keep what their reset left in CR3."""
    paging = CpuState("test", cr0=0x8005_0033, cr3=ROOT, cr4=0x20)
    idle = [
        CpuState("test", cr0=0x6000_0010, cr3=0x38_0000, cr4=0),
        CpuState("test", cr0=0x8000_0011, cr3=0x38_0000, cr4=0x20, efer=0x100),
        CpuState("test", cr0=0x8000_0011, cr3=0x38_0000, cr4=0x10),
        CpuState("test"),
    ]
    source = sourced(built(LA48, [IMAGE]), (paging, *idle))
    assert [(root.root, root.cpus) for root in find_roots(source)] == [(ROOT, (0,))]
    assert About(source, Space(source)).roots() == {ROOT: "CR3 of CPU 0"}


def test_tables_that_seem_to_have_a_level_more_than_the_cpus_walk(
    built: Callable[..., Ram], sourced: Callable[..., Source]
) -> None:
    """Pages that hold what tables do, mapped without NX and G, lengthen every chain by a step."""
    data = [(0x40_0000 + 0x1000 * n, 0x20_0000 + 0x1000 * n | 0x67, Level.PT) for n in range(512)]
    ram = built(LA48, data)
    for _, raw, _ in data:
        ram.write(PhysAddr(raw & 0xFFF_F000), (0x30_0021).to_bytes(8, "little") * 512)
    cpus = (CpuState("test", cr0=0x8005_0033, cr3=ROOT, cr4=0x20), CpuState("test", cr0=0x10, cr3=0x38_0000))
    assert [(root.root, root.levels) for root in find_roots(sourced(ram, cpus))] == [(ROOT, 4)]
    assert [(root.root, root.levels) for root in find_roots(sourced(ram))] == [(ROOT, 5)]
    elsewhere = (CpuState("test", cr0=0x8005_0033, cr3=0x38_0000, cr4=0x20),)
    assert [(root.root, root.levels) for root in find_roots(sourced(ram, elsewhere), levels=5)] == [(ROOT, 5)]


def test_data_that_looks_like_five_levels_is_no_kernel(
    built: Callable[..., Ram], sourced: Callable[..., Source]
) -> None:
    """A chain of numbers beside a four-level kernel takes nothing from it."""
    ram = built(LA48, [IMAGE, USER])
    for page in range(5):
        ram.write(PhysAddr(0x38_0000 + page * 0x1000), (0x38_1000 + page * 0x1000 | 0x27).to_bytes(8, "little"))
    found = find_roots(sourced(ram))
    assert [(root.root, root.levels, root.confidence.name) for root in found] == [
        (ROOT, 4, "MEDIUM"),
        (0x38_0000, 5, "LOW"),
    ]


def test_two_processes_share_a_kernel(built: Callable[..., Ram], sourced: Callable[..., Source]) -> None:
    ram = built(LA48, [IMAGE, USER])
    ram.write(PhysAddr(0x3F_0000 + 511 * 8), ram.read(PhysAddr(ROOT + 511 * 8), 8))
    found = find_roots(sourced(ram))
    assert [(root.root, root.confidence.name, root.group) for root in found] == [
        (ROOT, "HIGH", 0),
        (0x3F_0000, "HIGH", 0),
    ]
    assert found[1].reasons[0] == "shares the kernel's tables with 1 other root"


@pytest.mark.parametrize(
    ("user", "label", "how"),
    [
        ([], KERNEL_ONLY, "its lower half is empty"),
        ([USER], HAS_USER_HALF, "1 entry of its lower half"),
        ([USER, (0x7FFF_FFFF_F000, 0x31_0000 | 7, Level.PT)], HAS_USER_HALF, "2 entries of its lower half"),
    ],
)
def test_which_half_a_root_has(
    built: Callable[..., Ram], sourced: Callable[..., Source], user: list[tuple[int, int, Level]], label: str, how: str
) -> None:
    """The upper half begins in the middle: what is mapped there, first slot included, is no user half."""
    ram = built(LA48, [IMAGE, (0xFFFF_8000_0000_0000, 0x30_0000 | 3, Level.PT), *user])
    (root,) = find_roots(sourced(ram))
    assert (root.label, root.label_known_from) == (label, how)


@pytest.mark.parametrize(
    ("upper", "lower", "levels", "paired"),
    [(1, 7, 4, True), (3, 7, 4, False), (1, 9, 4, False), (1, 7, 5, False)],
    ids=["pair", "as much kernel", "other lower half", "other levels"],
)
def test_what_makes_a_pair(upper: int, lower: int, levels: int, paired: bool) -> None:
    def entries(low: int, count: int) -> npt.NDArray[np.uint64]:
        words = np.zeros(512, np.uint64)
        words[0], words[512 - count :] = low << 12 | 7, 0x9003
        return words

    kernel = roots._Candidate(PhysAddr(0x2000), 4, entries(7, 3))
    user = roots._Candidate(PhysAddr(0x3000), levels, entries(lower, upper))
    roots._pair_up({kernel.root: kernel, user.root: user})
    assert (kernel.pair == user.root, user.is_user_half) == (paired, paired)


@pytest.mark.parametrize(
    ("low", "kept", "last", "joined"),
    [(8, 1, 0xA003, True), (9, 1, 0xA003, False), (8, 3, 0xA003, False), (8, 1, 0xB003, False)],
    ids=["one of them", "other lower half", "as much kernel", "last slot of none"],
)
def test_a_user_half_that_leads_nowhere_is_known_by_its_company(low: int, kept: int, last: int, joined: bool) -> None:
    ram = Ram.of_size(0x4000, start=0x2000)

    def root(frame: int, lower: int, count: int, end: int) -> roots._Candidate:
        words = np.zeros(512, np.uint64)
        words[0], words[512 - count :], words[511] = lower << 12 | 7, 0x9003, end
        ram.write(PhysAddr(frame), words.tobytes())
        return roots._Candidate(PhysAddr(frame), 4, words)

    known = [root(0x2000, 7, 3, 0x9003), root(0x3000, 7, 1, 0xA003), root(0x4000, 8, 3, 0x9003)]
    root(0x5000, low, kept, last)
    found = {one.root: one for one in known}
    roots._pair_up(found)
    roots._add_user_halves(TablePages(in_banks(ram.banks())), found)
    assert (PhysAddr(0x5000) in found, found[PhysAddr(0x4000)].pair == 0x5000) == (joined, joined)
    assert all(one.is_user_half == bool(one.root & 0x1000) for one in found.values())


def test_addresses_that_are_too_wide(built: Callable[..., Ram], sourced: Callable[..., Source]) -> None:
    ram = built(LA48, [(0x40_0000, 1 << 50 | 7, Level.PT)])
    assert find_roots(sourced(ram)) == []
    assert [root.root for root in find_roots(sourced(ram), phys_bits=51)] == [ROOT]


def test_one_lost_table_in_eight_is_tolerated(built: Callable[..., Ram], sourced: Callable[..., Source]) -> None:
    ram = built(LA48, [IMAGE, *((n << 39, 0x30_0000 | 7, Level.PT) for n in range(7))])
    ram.write(PhysAddr(ROOT + 8 * 9), (0x9000_0000_0000 >> 8 | 7).to_bytes(8, "little"))
    assert [root.root for root in find_roots(sourced(ram))] == [ROOT]
    ram.write(PhysAddr(ROOT + 8 * 10), (0x9000_0000_0000 >> 8 | 7).to_bytes(8, "little"))
    assert [root.root for root in find_roots(sourced(ram))] == []


def test_data_is_no_root(sourced: Callable[..., Source]) -> None:
    rng = random.Random(7)
    ram = Ram.of_size(4 * MIB, start=MIB)
    for page in range(512):
        kind = page % 4
        words = [
            rng.getrandbits(64) if kind == 0 else page * 8 + n if kind == 1 else rng.getrandbits(8) for n in range(512)
        ]
        ram.write(PhysAddr(MIB + page * 4096), struct.pack("<512Q", *(words if kind < 3 else [0] * 512)))
    assert find_roots(sourced(ram)) == []


def in_banks(banks: list[tuple[int, Any]], written: list[Extent] | None = None) -> BankedMemory:
    found = [Bank(start, memoryview(data)) for start, data in banks]
    return BankedMemory(found, "banks", written=None if written is None else lambda: written)


def test_memory_without_whole_pages(sourced: Callable[..., Source]) -> None:
    ram = Ram.of_size(0x1800, start=0x800)
    ram.write(PhysAddr(0x800), b"x" * 0x1800)
    assert TablePages(sourced(ram).memory).count == 1
    assert find_roots(sourced(Ram.of_size(100, start=0x10))) == []


def test_which_pages_there_are_and_which_are_empty() -> None:
    filled = b"x".ljust(0x1000, b"\0")
    pages = TablePages(in_banks([(0x1000, bytes(0x1000) + filled), (0x8000, filled + bytes(0x800))]))
    frames = np.array([0x1000, 0x2000, 0x3000, 0x8000, 0x9000, 0], np.uint64)
    assert pages.has(frames).tolist() == [True, True, False, True, False, False]
    assert pages.is_filled(frames).tolist() == [False, True, False, True, False, False]
    assert pages.count == 2


def used_pages(banks: list[tuple[int, Any]]) -> list[int]:
    """Where pages are that are not empty."""
    return [start + at for start, data in banks for at in range(0, len(data), 4096) if any(bytes(data[at : at + 4096]))]


@pytest.mark.parametrize("mode", [LA48, LA57], ids=["la48", "la57"])
def test_what_was_never_written_is_empty_unread(built: Callable[..., Ram], mode: PagingMode) -> None:
    """Parts of pages, of several banks and of none; what a PT leads to may lie in what was never written."""
    banks = built(mode, [IMAGE, USER]).banks()
    whole, used = TablePages(in_banks(banks)), used_pages(banks)
    assert whole.count == len(used)
    written = [Extent(PhysAddr(0), PhysAddr(16)), *(Extent(PhysAddr(at + 8), PhysAddr(at + 4096)) for at in used)]
    beyond = banks[-1][0] + len(banks[-1][1])
    sparse = TablePages(in_banks(banks, [*written, Extent(PhysAddr(beyond), PhysAddr(beyond + 4096))]))
    assert all(np.array_equal(sparse.of_level[level], whole.of_level[level]) for level in whole.of_level)
    unread = TablePages(in_banks(banks, written[:-1]))
    assert unread.count == len(used) - 1


@pytest.mark.parametrize("mode", [LA48, LA57], ids=["la48", "la57"])
def test_memory_that_is_fetched_has_the_same_tables(built: Callable[..., Ram], mode: PagingMode) -> None:
    ram = built(mode, [IMAGE, USER])
    extents = [Extent(start, start + len(data)) for start, data in ram.banks()]
    fetched = PagedMemory(extents, lambda pa, size: ram.read(PhysAddr(pa), size), "fetched")
    told: list[tuple[int, int | None]] = []
    found = TablePages(fetched, progress=lambda done, total: told.append((done, total)))
    whole = TablePages(in_banks(ram.banks()))
    assert all(np.array_equal(found.of_level[level], whole.of_level[level]) for level in whole.of_level)
    assert told[-1][0] == told[-1][1] == sum(extent.end - extent.start for extent in extents)


def test_halves_of_a_root() -> None:
    """Slot 255 is the last of the lower half, and 256 the first of the upper; absent entries lead nowhere."""
    entries = np.zeros(512, np.uint64)
    entries[[0, 255, 256, 511]] = [0x1067, 0x2000 | 1 << 63 | 1, 0x3001, 0x4066]
    candidate = roots._Candidate(PhysAddr(ROOT), 4, entries)
    lower, upper = candidate.half(False), candidate.half(True)
    assert (len(lower), int(lower[0]), int(lower[255])) == (256, 0x1000, 0x2000)
    assert (len(upper), int(upper[0]), int(upper[255])) == (256, 0x3000, 0)
    assert candidate.kernel_key == 0
    entries[511] |= np.uint64(1)
    assert candidate.kernel_key == 0x4000

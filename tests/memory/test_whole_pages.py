"""Pages of a memory that may hold something, and those that begin with some bytes, against a loop over every page."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import numpy as np
import pytest

from fivefold.errors import FormatError, MemoryReadError
from fivefold.memory import Bank, BankedMemory, page_batches, page_heads
from fivefold.memory.banked import PagedMemory
from fivefold.memory.base import Extent
from fivefold.memory.page_batches import BATCH, PageBatch, in_buffers, parts_of
from fivefold.units import MIB, PAGE

HEAD = b"beginning"
Memory = BankedMemory | PagedMemory

WORLDS: dict[str, tuple[list[tuple[int, int]], list[tuple[int, int]] | None]] = {
    # Extents as start and size, and what is written as start and end; None: all.
    "one page": ([(0x1000, PAGE)], None),
    "less than a page": ([(0x1000, PAGE - 1)], None),
    "no page inside": ([(0x1800, PAGE)], None),
    "does not begin or end with a page": ([(0x1234, 5 * PAGE)], None),
    "begins a byte behind a page": ([(0x1001, 2 * PAGE)], None),
    "begins a byte before a page": ([(0x1FFF, 2 * PAGE + 1)], None),
    "two, one behind the other": ([(0x1000, PAGE), (0x2000, 2 * PAGE)], None),
    "three with holes": ([(0, 3 * PAGE), (0x8000, PAGE), (0x10_0000, 70 * PAGE)], None),
    "nothing written": ([(0x1000, 4 * PAGE)], []),
    "a byte of a page": ([(0x1000, 4 * PAGE)], [(0x2FFF, 0x3000)]),
    "the byte behind it": ([(0x1000, 4 * PAGE)], [(0x3000, 0x3001)]),
    "two bytes of two pages": ([(0x1000, 4 * PAGE)], [(0x2FFF, 0x3001)]),
    "two runs in one page": ([(0x1000, 4 * PAGE)], [(0x2000, 0x2010), (0x2800, 0x2810)]),
    "two runs that share a page": ([(0x1000, 6 * PAGE)], [(0x2000, 0x3010), (0x3800, 0x4810)]),
    "first and last": ([(0x1000, 4 * PAGE)], [(0x1000, 0x1001), (0x4FFF, 0x5000)]),
    "written outside, too": ([(0x3000, 2 * PAGE), (0x9000, PAGE)], [(0, 0x3800), (0x6000, 0x7000), (0x9FFF, 0xB000)]),
    "written before and behind": ([(0x3000, 2 * PAGE)], [(0, 0x3000), (0x5000, 0x9000)]),
    "many short runs": ([(0, 300 * PAGE)], [(at * PAGE, at * PAGE + 1) for at in range(0, 300, 3)]),
    "63, 64 and 65 pages": (
        [(0, 400 * PAGE)],
        [(0, 63 * PAGE), (100 * PAGE, 164 * PAGE), (200 * PAGE, 265 * PAGE), (300 * PAGE, 301 * PAGE)],
    ),
    "a batch and one more": ([(0x1000, (BATCH + 1) * PAGE)], None),
    "short runs of more than a batch": (
        [(0, 2 * (BATCH + 80) * PAGE)],
        [(at * PAGE, (at + 33) * PAGE) for at in range(0, 2 * BATCH + 66, 66)],
    ),
    "a step of reading and one more": ([(0x800, 2 * MIB + 3 * PAGE)], None),
    "bytes across two steps": ([(0, 2 * MIB)], [(MIB - 1, MIB + 1)]),
}


def world(name: str) -> tuple[list[tuple[int, bytes]], list[Extent]]:
    """Banks with a number in each page, some of which begin with HEAD, and what is written."""
    places, written = WORLDS[name]
    banks, draw = [], random.Random(name)
    for start, size in places:
        data = bytearray(size)
        for at in range(-start % PAGE, max(size - 15, 0), PAGE):
            text = (HEAD if draw.random() < 0.3 else b"beginnin", b"other"[: draw.randrange(6)])[draw.random() < 0.2]
            data[at : at + len(text)] = text
            data[at + 12 : at + 16] = ((start + at) // PAGE).to_bytes(4, "little")
        banks.append((start, bytes(data)))
    every = [Extent(start, start + size) for start, size in places]
    return banks, every if written is None else [Extent(*pair) for pair in written]


def in_buffer(banks: list[tuple[int, bytes]], written: list[Extent]) -> Memory:
    return BankedMemory([Bank(start, memoryview(data)) for start, data in banks], "test", written=lambda: written)


def fetched(banks: list[tuple[int, bytes]], written: list[Extent]) -> Memory:
    def fetch(pa: int, size: int) -> bytes:
        for start, data in banks:
            if start <= pa and pa + size <= start + len(data):
                return data[pa - start : pa - start + size]
        raise MemoryReadError(pa, size, "test")

    extents = [Extent(start, start + len(data)) for start, data in banks]
    return PagedMemory(extents, fetch, "test", written=lambda: written)


def every_page(banks: list[tuple[int, bytes]], written: Sequence[Extent]) -> dict[int, bytes]:
    """The whole pages with a byte in *written*, looked at one by one."""
    found = {}
    for start, data in banks:
        for pa in range(-(-start // PAGE) * PAGE, start + len(data) - PAGE + 1, PAGE):
            if any(run.start < pa + PAGE and pa < run.end for run in written):
                found[pa] = data[pa - start : pa - start + PAGE]
    return found


@pytest.mark.parametrize(
    "cuts",
    [[0x1800], [0x1001, 0x1FFF], [0x1400, 0x1800, 0x1C00], [0x1800, 0x3800], [0x2000], [0x1800, 0x2000, 0x2010]],
    ids=str,
)
def test_a_page_in_banks_that_touch(cuts: list[int]) -> None:
    """As an ELF core has it whose segments end inside pages: the page is there, once, and in its place."""
    whole = random.Random(1).randbytes(5 * PAGE)
    edges = [0, *cuts, len(whole)]
    apart = in_buffer(
        [(0x10_0000 + low, whole[low:high]) for low, high in pairwise(edges)], [Extent(0x10_0000, 0x10_5000)]
    )
    found = {int(at): row.tobytes() for batch in apart.page_batches() for at, row in zip(*batch, strict=True)}
    assert found == {0x10_0000 + at: whole[at : at + PAGE] for at in range(0, len(whole), PAGE)}
    hole = in_buffer([(0x10_0000, whole[:0x1800]), (0x10_1801, whole[0x1801:])], [Extent(0x10_0000, 0x10_5000)])
    assert [int(at) for batch in hole.page_batches() for at in batch.addresses] == [
        0x10_0000, 0x10_2000, 0x10_3000, 0x10_4000
    ]  # fmt: skip


@pytest.mark.parametrize("name", WORLDS)
@pytest.mark.parametrize("make", [in_buffer, fetched])
def test_batches(name: str, make: Callable[..., Memory]) -> None:
    banks, written = world(name)
    batches = list(make(banks, written).page_batches())
    assert all(len(batch.addresses) == len(batch.rows) > 0 and batch.rows.shape[1] == 512 for batch in batches)
    assert [batch.bytes for batch in batches] == [batch.rows.nbytes for batch in batches]
    found = [pair for batch in batches for pair in zip(batch.addresses.tolist(), batch.rows, strict=True)]
    expected = every_page(banks, written)
    assert [pa for pa, _ in found] == sorted(expected)
    assert all(row.tobytes() == expected[pa] for pa, row in found)


def sizes(batches: Iterator[PageBatch]) -> list[int]:
    return [len(batch.addresses) for batch in batches]


def test_batches_are_neither_large_nor_many() -> None:
    """Long runs are looked at where they lie, in batches; short ones are copied together."""
    assert sizes(in_buffer(*world("a batch and one more")).page_batches()) == [BATCH, 1]
    assert sizes(in_buffer(*world("many short runs")).page_batches()) == [100]
    assert sizes(in_buffer(*world("63, 64 and 65 pages")).page_batches()) == [63, 64, 65, 1]
    short = sizes(in_buffer(*world("short runs of more than a batch")).page_batches())
    assert short == [BATCH // 33 * 33, 2 * 33]
    exact = [Bank(at * 3 * PAGE, memoryview(bytes(32 * PAGE))) for at in range(0, 32 * 65, 32)]
    assert sizes(in_buffers(exact, [Extent(0, 1 << 40)])) == [BATCH, 32]
    singles = [Bank(at * 2 * PAGE, memoryview(bytes(PAGE))) for at in range(2 * BATCH + 1)]
    assert sizes(in_buffers(singles, [Extent(0, 1 << 40)])) == [BATCH, BATCH, 1]
    apart = fetched([(at * 2 * PAGE, bytes(PAGE)) for at in range(513)], [Extent(0, 1 << 40)])
    assert sizes(apart.page_batches()) == [256, 256, 1]
    banks = [Bank(0, memoryview(bytes(400 * PAGE)))]
    for length, expected in ((63, [64]), (64, [1, 64])):
        written = [Extent(0, PAGE), Extent(9 * PAGE, (9 + length) * PAGE)]
        assert sizes(in_buffers(banks, written)) == expected
    assert sizes(fetched(*world("many short runs")).page_batches()) == [100]
    assert sizes(fetched(*world("a step of reading and one more")).page_batches()) == [256, 256, 2]
    assert sizes(fetched(*world("63, 64 and 65 pages")).page_batches()) == [193]


def test_long_runs_are_not_copied() -> None:
    data = bytearray(64 * PAGE)
    (batch,) = in_buffers([Bank(0, memoryview(data))], [Extent(0, 64 * PAGE)])
    assert np.shares_memory(batch.rows, np.frombuffer(data, np.uint8))


@pytest.mark.parametrize("name", WORLDS)
def test_beginnings(name: str) -> None:
    banks, written = world(name)
    wanted = [pa for pa, data in every_page(banks, written).items() if data.startswith(HEAD)]
    assert list(in_buffer(banks, written).pages_that_begin(HEAD)) == wanted


@pytest.mark.parametrize(
    "name", ["63, 64 and 65 pages", "a batch and one more", "three with holes", "a step of reading and one more"]
)
def test_beginnings_of_fetched_pages(name: str) -> None:
    banks, written = world(name)
    wanted = [pa for pa, data in every_page(banks, written).items() if data.startswith(HEAD)]
    assert len(wanted) > 10
    assert list(fetched(banks, written).pages_that_begin(HEAD)) == wanted


@pytest.mark.parametrize("name", [name for name in WORLDS if "batch" not in name])
def test_the_size_of_steps_changes_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    banks, written = world(name)
    expected = every_page(banks, written)
    for module, step, value in (
        (page_batches, "BATCH", 3),
        (page_batches, "_LONG", 2),
        (page_batches, "_STEP", 2 * PAGE),
        (page_heads, "_PAGES", 2),
        (page_heads, "_STEP", 2 * PAGE),
    ):
        monkeypatch.setattr(module, step, value)
    for make in (in_buffer, fetched):
        batches = list(make(banks, written).page_batches())
        assert [pa for batch in batches for pa in batch.addresses.tolist()] == sorted(expected)
        assert all(len(batch.addresses) <= 3 for batch in batches)
    wanted = [pa for pa, data in expected.items() if data.startswith(HEAD)]
    assert list(in_buffer(banks, written).pages_that_begin(HEAD)) == wanted
    if all(run.start % PAGE == run.end % PAGE == 0 and set(range(*run, PAGE)) <= expected.keys() for run in written):
        assert list(fetched(banks, written).pages_that_begin(HEAD)) == wanted


def test_parts_of_nothing() -> None:
    assert list(parts_of(0x1000, 0, [Extent(0, 0x9000)])) == []
    assert list(parts_of(0x1000, 2, [])) == []


def test_parts_that_cannot_be_read_are_left_out() -> None:
    """A page that fails is told and is in no batch; the others around it are."""
    bad = {3 * PAGE, 4 * PAGE, 8 * PAGE}

    def fetch(pa: int, size: int) -> bytes:
        if any(pa <= at < pa + size or at <= pa < at + PAGE for at in bad):
            raise FormatError("damaged")
        return b"".join(bytes([at // PAGE]) * PAGE for at in range(pa, pa + size, PAGE))

    memory = PagedMemory([Extent(0, 9 * PAGE)], fetch, "test")
    found = {
        pa: int(row[0]) & 0xFF
        for batch in memory.page_batches()
        for pa, row in zip(batch.addresses.tolist(), batch.rows, strict=True)
    }
    assert found == {at * PAGE: at for at in (0, 1, 2, 5, 6, 7)}
    assert sorted(memory.left_out) == sorted(bad)


@pytest.mark.parametrize(
    ("start", "size", "pages"),
    [(0x1001, 20, []), (0x1001, 0xFFF, []), (0x1001, 0x1FFE, []), (0x1001, 0x1FFF, [0x2000]), (0x1000, 0xFFF, []),
     (0x1000, 0x1000, [0x1000]), (0x1000, 0x2FFF, [0x1000, 0x2000])],
)  # fmt: skip
def test_banks_that_hold_no_whole_page(start: int, size: int, pages: list[int]) -> None:
    batches = list(in_buffers([Bank(start, memoryview(bytes(size)))], [Extent(start, start + size)]))
    assert [int(address) for batch in batches for address in batch.addresses] == pages

"""Reads across banks that touch, and never across a hole."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fivefold.errors import DamagedPageError, FormatError, MachineError, MemoryReadError
from fivefold.memory import Bank, BankedMemory, Extent, PagedMemory
from fivefold.units import PhysAddr

WHOLE = bytes(range(1, 201))


def banked() -> BankedMemory:
    """Bytes 0x1001.. say their own address's low byte; a hole from 0x1032 to 0x1064."""
    cuts = ((0, 20), (20, 50), (100, 200))
    return BankedMemory([Bank(0x1001 + a, memoryview(WHOLE[a:b])) for a, b in reversed(cuts)], "demo")


def paged() -> PagedMemory:
    def fetch(pa: int, size: int) -> bytes:
        return WHOLE[pa - 0x1001 : pa - 0x1001 + size]

    return PagedMemory([Extent(0x1001, 0x1033), Extent(0x1065, 0x10C9)], fetch, "demo", max_copy=150)


@pytest.mark.parametrize("build", [banked, paged])
@given(start=st.integers(0xFF0, 0x10E0), size=st.integers(1, 120))
def test_read_is_all_or_nothing(build, start: int, size: int) -> None:
    want = WHOLE[start - 0x1001 :][:size] if start >= 0x1001 else b""
    inside = any(a <= start and start + size <= b for a, b in ((0x1001, 0x1033), (0x1065, 0x10C9)))
    with build() as memory:
        if inside:
            assert memory.read(PhysAddr(start), size) == want
        else:
            with pytest.raises(MemoryReadError) as error:
                memory.read(PhysAddr(start), size)
            assert (error.value.pa, error.value.size) == (start, size)


@pytest.mark.parametrize("build", [banked, paged])
def test_extents_and_banks(build) -> None:
    memory = build()

    assert memory.extents == [(0x1001, 0x1033), (0x1065, 0x10C9)]
    assert b"".join(bank.data for bank in memory.banks()) == WHOLE[:50] + WHOLE[100:]
    assert all(bank.data.readonly for bank in memory.banks())


@pytest.mark.parametrize("build", [banked, paged])
def test_closed_memory_is_a_hole(build) -> None:
    calls: list[str] = []
    memory = build()
    memory.when_closed(lambda: calls.append("first"))
    memory.when_closed(lambda: calls.append("second"))
    memory.close()
    memory.close()

    assert calls == ["second", "first"]
    assert memory.extents == []
    with pytest.raises(MemoryReadError, match=r"^demo has no memory at 0x0000000000001001 \(\+1 bytes\)$"):
        memory.read(PhysAddr(0x1001), 1)


def test_overlapping_banks_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^banks overlap at 0x1004$"):
        BankedMemory([Bank(0x1000, memoryview(bytes(8))), Bank(0x1004, memoryview(bytes(8)))], "demo")


def test_memory_without_any_extent() -> None:
    memory = PagedMemory([], lambda pa, size: bytes(size), "nothing")
    assert memory.banks() == [] == memory.extents
    with pytest.raises(MemoryReadError):
        memory.read(PhysAddr(0), 1)


def test_copies_are_bounded() -> None:
    memory = PagedMemory([Extent(0x1000, 1 << 52)], lambda pa, size: bytes(size), "huge", max_copy=1 << 20)
    with pytest.raises(MachineError) as error:
        memory.banks()
    assert str(error.value) == "cannot copy huge: 4503599627366400 bytes, at most 1048576 are allowed"


def test_check_runs_before_every_access() -> None:
    def check() -> None:
        raise FormatError("gone")

    memory = BankedMemory([Bank(0x1000, memoryview(bytes(8)))], "demo", check=check)
    for access in (memory.banks, lambda: memory.read(PhysAddr(0x1000), 1)):
        with pytest.raises(FormatError, match=r"^gone$"):
            access()


def test_pages_that_cannot_be_read_are_holes_of_the_copy() -> None:
    damaged = {0x2000, 0x5000, 0x9000}

    def fetch(pa: int, size: int) -> bytes:
        if any(pa <= page < pa + size for page in damaged):
            raise FormatError("damaged")
        return b"".join((page >> 12).to_bytes(1, "little") * 0x1000 for page in range(pa, pa + size, 0x1000))

    memory = PagedMemory([Extent(0x2000, 0x7000), Extent(0x9000, 0xA000), Extent(0xC000, 0xE000)], fetch, "demo")
    copies = memory.banks()
    assert [(bank.start, bank.end) for bank in copies] == [(0x3000, 0x5000), (0x6000, 0x7000), (0xC000, 0xE000)]
    for bank in copies:
        assert all(bank.data[at] == bank.start + at >> 12 for at in range(0, len(bank.data), 0x1000))
    assert sorted(damaged) == list(memory.left_out)
    assert list(memory.pages_that_begin(b"\x06" * 16)) == [0x6000]
    assert list(memory.pages_that_begin(b"\x05" * 16)) == []
    with pytest.raises(DamagedPageError) as error:
        memory.read(PhysAddr(0x4000), 0x2000)
    assert (error.value.pa, error.value.size) == (0x5000, 0x1000)
    assert memory.read(PhysAddr(0x4000), 0x1000) == b"\x04" * 0x1000


def test_a_copy_of_very_many_runs() -> None:
    """A process may have some 65,000 mappings, which was the end of a dump with more runs."""
    runs = [Extent(number << 13, (number << 13) + 0x1000) for number in range(70_000)]
    memory = PagedMemory(runs, lambda pa, size: pa.to_bytes(8, "little") + bytes(size - 8), "demo", max_written=1 << 30)
    copies = memory.banks()
    assert len(copies) == 70_000
    assert all(bytes(bank.data[:8]) == bank.start.to_bytes(8, "little") for bank in copies[::1000])
    memory.close()


def test_a_copy_of_more_than_there_is_cause_for() -> None:
    memory = PagedMemory([Extent(0, 1 << 22)], lambda pa, size: b"x" * size, "demo", max_written=1 << 21)
    with pytest.raises(MachineError, match=r"^demo unpacks to more than 2097152 bytes$"):
        memory.banks()
    zeros = PagedMemory([Extent(0, 1 << 22)], lambda pa, size: bytes(size), "demo", max_written=1 << 21)
    assert [len(bank.data) for bank in zeros.banks()] == [1 << 22]


def test_what_is_known_to_be_zeros_is_not_read() -> None:
    """A tebibyte, of which three pages are said to be written: only those are fetched, copied and counted."""
    asked: list[tuple[int, int]] = []

    def fetch(pa: int, size: int) -> bytes:
        asked.append((pa, size))
        return (pa >> 12).to_bytes(8, "little") * (size // 8)

    extents = [Extent(0x1000, 0x9000), Extent(1 << 30, 1 << 40)]
    written = [Extent(0x3000, 0x4000), Extent(1 << 30, (1 << 30) + 0x1000), Extent((1 << 40) - 0x1000, 1 << 40)]
    memory = PagedMemory(extents, fetch, "huge", max_copy=0x3000, written=lambda: written)
    low, high = memory.banks()
    assert asked == [(run.start, run.end - run.start) for run in written]
    assert (low.start, low.end, high.start, high.end) == (*extents[0], *extents[1])
    assert bytes(low.data[0x1000:0x3008]) == bytes(0x1000) + (3).to_bytes(8, "little") * 512 + bytes(0x1008 - 0x1000)
    assert high.data[:2] == b"\0\0" and high.data[2] == 4 and high.data[0x1000:0x2000] == bytes(0x1000)
    assert high.data[-8:] == ((1 << 28) - 1).to_bytes(8, "little") and high.data[1 << 35] == 0
    memory.close()
    small = PagedMemory(extents, fetch, "huge", max_copy=0x2FFF, written=lambda: written)
    with pytest.raises(MachineError, match="cannot copy huge: 12288 bytes, at most 12287 are allowed"):
        small.banks()


BASE = 0x10_0000


def damaged(*pages: int, end: int = 6) -> PagedMemory:
    """Six pages, each full of its number, of which *pages* cannot be read."""

    def fetch(pa: int, size: int) -> bytes:
        if any(pa < BASE + 0x1000 * (page + 1) and BASE + 0x1000 * page < pa + size for page in pages):
            raise FormatError("damaged")
        return bytes((at - BASE) >> 12 for at in range(pa, pa + size))

    return PagedMemory([Extent(BASE, BASE + 0x1000 * end)], fetch, "demo")


@pytest.mark.parametrize(
    ("pages", "start", "size", "runs"),
    [
        ((), 0x10, 0x2FF0, [(0x10, 0x2FF0)]),
        ((1,), 0, 0x6000, [(0, 0x1000), (0x2000, 0x4000)]),
        ((1, 3), 0x800, 0x3800, [(0x800, 0x800), (0x2000, 0x1000)]),
        ((0,), 0, 0x1800, [(0x1000, 0x800)]),
        ((0, 5), 0xFFF, 0x4002, [(0x1000, 0x4000)]),
        ((1, 2), 0x1000, 0x2000, []),
        ((4,), 0x3FFF, 2, [(0x3FFF, 1)]),
    ],
)
def test_what_can_be_read_around_damage(
    pages: tuple[int, ...], start: int, size: int, runs: list[tuple[int, int]]
) -> None:
    memory = damaged(*pages)
    found = list(memory.readable(PhysAddr(BASE + start), size))
    assert [(at - BASE, len(data)) for at, data in found] == runs
    assert all(data == bytes((at + i - BASE) >> 12 for i in range(len(data))) for at, data in found)
    assert set(memory.left_out) <= {BASE + 0x1000 * page for page in pages}
    with pytest.raises(MemoryReadError):
        next(memory.readable(PhysAddr(BASE + 0x5800), 0x801))

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fivefold.arch import (
    LA48,
    LA57,
    TABLE,
    AddressSpace,
    Content,
    Cpu,
    Entry,
    Frames,
    Level,
    Mapped,
    PageRun,
    Scan,
    TooManyRuns,
    distinct_tables,
    map_page,
    map_range,
    regions,
    scan,
    translate,
)
from fivefold.errors import MemoryReadError
from fivefold.memory import Ram
from fivefold.units import MASK64, PhysAddr, VirtAddr

MODES = {"la48": (LA48, PhysAddr(0x2000)), "la57": (LA57, PhysAddr(0x1000))}


def test_regions(tree: Ram, vectors: dict[str, list[list[str]]]) -> None:
    wanted: dict[tuple[str, str], list[str]] = {}
    for mode, window, run in vectors["regions"]:
        wanted.setdefault((mode, window), []).extend([] if run == "-" else [run])
    for (name, window), runs in wanted.items():
        mode, root = MODES[name]
        first, last = (int(end, 16) for end in window.split())
        space = AddressSpace(tree, root, mode, Cpu(phys_bits=42))

        assert [str(run) for run in regions(space, range(first, last + 1))] == runs


class Counting:
    """Memory that counts how often each table is read."""

    def __init__(self, ram: Ram) -> None:
        self.ram = ram
        self.reads: Counter[int] = Counter()

    def read(self, pa: PhysAddr, size: int, /) -> bytes:
        self.reads[pa & ~0xFFF] += 1
        return self.ram.read(pa, size)


def shared_page_tables() -> tuple[Counting, AddressSpace]:
    """4 PiB in the upper half, all of it one zero page through one table a level: a KASAN shadow."""
    ram = Ram.of_size(0x8000, start=0x1000)
    for level in range(1, 5):
        target = 0x9000 if level == 1 else 0x1000 * (level - 1)
        ram.write(PhysAddr(0x1000 * level), (target | TABLE | 1 << 63).to_bytes(8, "little") * 512)
    for slot in range(480, 496):
        ram.write(PhysAddr(0x5000 + 8 * slot), (0x4000 | TABLE).to_bytes(8, "little"))
    memory = Counting(ram)
    return memory, AddressSpace(memory, PhysAddr(0x5000), LA57, Cpu(phys_bits=46))


def test_a_shared_table_is_walked_once_and_nothing_is_lost() -> None:
    memory, space = shared_page_tables()

    assert [str(run) for run in regions(space)] == [
        "0xffe0000000000000-0xffefffffffffffff PT   rw-u 0x0000000000009000 0x8000000000000007"
    ]
    # Once with NX unmet at its own level and above; from below, NX has been met.
    assert all(memory.reads[0x1000 * level] == 1 for level in range(1, 5))
    assert {level.name: len(tables) for level, tables in distinct_tables(space).items()} == {
        "PML5": 1, "PML4": 1, "PDPT": 1, "PD": 1, "PT": 1,
    }  # fmt: skip


def test_a_run_that_touches_both_halves_is_two() -> None:
    ram = Ram.of_size(0x8000, start=0x1000)
    space = AddressSpace(ram, PhysAddr(0x1000), LA48)
    frames = Frames(ram, PhysAddr(0x2000), 4)
    low, high = VirtAddr(0x7FFF_C000_0000), VirtAddr(0xFFFF_8000_0000_0000)
    map_page(ram, space, low, Entry(0x4000_0083, Level.PDPT), frames)
    map_page(ram, space, high, Entry(0x8000_0083, Level.PDPT), frames)

    assert [str(run) for run in regions(space)] == [
        "0x00007fffc0000000-0x00007fffffffffff PDPT rwx- 0x0000000040000000 0x83",
        "0xffff800000000000-0xffff80003fffffff PDPT rwx- 0x0000000080000000 0x83",
    ]


def test_contiguous_runs_break_where_memory_does() -> None:
    ram = Ram.of_size(0x8000, start=0x1000)
    space = AddressSpace(ram, PhysAddr(0x1000), LA57)
    frames = Frames(ram, PhysAddr(0x2000), 5)
    base = 0xFF11_0000_0000_0000
    map_range(ram, space, range(base, base + 0x3000), 0x9003, frames)
    map_range(ram, space, range(base + 0x3000, base + 0x5000), 0xF003, frames)

    assert [(run.size, run.phys) for run in regions(space)] == [(0x5000, 0x9000)]
    assert [(run.size, run.phys) for run in regions(space, contiguous=True)] == [(0x3000, 0x9000), (0x2000, 0xF000)]
    window = range(base + 0x4000, base + 0x5000)
    assert [run.phys for run in regions(space, window)] == [0x10000]


def test_a_hole_ends_a_run() -> None:
    ram = Ram.of_size(0x8000, start=0x1000)
    space = AddressSpace(ram, PhysAddr(0x1000), LA57)
    frames = Frames(ram, PhysAddr(0x2000), 5)
    map_page(ram, space, VirtAddr(0x1000), Entry(0x9003, Level.PT), frames)
    map_page(ram, space, VirtAddr(0x3000), Entry(0xA003, Level.PT), frames)

    assert [(run.start, run.end) for run in regions(space)] == [(0x1000, 0x2000), (0x3000, 0x4000)]


def test_accessed_and_dirty_break_runs_only_when_asked() -> None:
    ram = Ram.of_size(0x8000, start=0x1000)
    space = AddressSpace(ram, PhysAddr(0x1000), LA57)
    frames = Frames(ram, PhysAddr(0x2000), 5)
    map_page(ram, space, VirtAddr(0x1000), Entry(0x9003, Level.PT), frames)
    map_page(ram, space, VirtAddr(0x2000), Entry(0xA063, Level.PT), frames)

    assert [run.flags for run in regions(space)] == [0x3]
    assert [run.flags for run in regions(space, ignore=0)] == [0x3, 0x63]


def test_an_unreadable_root_raises() -> None:
    space = AddressSpace(Ram.of_size(0x1000, start=0x1000), PhysAddr(0x9000), LA57)
    with pytest.raises(MemoryReadError, match=r"^ram has no memory at 0x0000000000009000 \(\+4096 bytes\)$"):
        next(regions(space))


def test_hostile_tables_stop_at_the_limit() -> None:
    """One table of alternating entries that points at itself unfolds into 2**40 runs."""
    ram = Ram.of_size(0x1000, start=0x1000)
    ram.write(PhysAddr(0x1000), b"".join((0x1000 | (7 if i % 2 else 5)).to_bytes(8, "little") for i in range(512)))
    space = AddressSpace(ram, PhysAddr(0x1000), LA57)
    with pytest.raises(TooManyRuns, match=r"^the tables at 0x0000000000001000 unfold into more than 5000 runs$"):
        list(scan(Scan(space, limit=5000)))

    assert {level: len(tables) for level, tables in distinct_tables(space).items()} == dict.fromkeys(Level, 1)


def probe(space: AddressSpace, run: PageRun, va: int) -> None:
    """One address of a run, translated."""
    try:
        found = translate(space, VirtAddr(va))
    except MemoryReadError:
        assert run.content is Content.UNREADABLE
        return
    if not isinstance(found, Mapped):
        assert run.content is Content.MALFORMED
        assert (found.cause.name, found.steps[-1].entry.level) == ("RESERVED", run.level)
        return
    assert run.content is Content.MAPPED
    assert (found.page, found.rights, found.pa) == (run.level, run.rights, run.phys + va - run.start)


SLOW_DATA = settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.too_slow])


@SLOW_DATA
@given(st.data())
def test_regions_say_what_translate_says(
    spaces: st.SearchStrategy[AddressSpace], places: st.SearchStrategy[VirtAddr], data: st.DataObject
) -> None:
    """Inside a run as translate says; between runs nothing; ascending and apart."""
    space = data.draw(spaces)
    runs = list(regions(space, contiguous=True, ignore=0))
    for run in runs[:200]:
        probe(space, run, run.start)
        probe(space, run, run.end - 1)
    for one, other in pairwise(runs):
        assert one.end <= other.start
    va = space.mode.sign_extend(data.draw(places))
    inside = [run for run in runs if run.start <= va < run.end]
    if inside:
        probe(space, inside[0], va)
    else:
        found = translate(space, va)

        assert not isinstance(found, Mapped)
        assert found.cause.name == "NOT_PRESENT"


@SLOW_DATA
@given(st.data())
def test_a_window_is_a_cut_of_the_whole(spaces: st.SearchStrategy[AddressSpace], data: st.DataObject) -> None:
    space = data.draw(spaces)
    ends = sorted((data.draw(st.integers(0, MASK64)), data.draw(st.integers(0, MASK64))))
    window = range(ends[0], ends[1] + 1)
    whole = [run for run in regions(space) if run.end > window.start and run.start < window.stop]
    cut = list(regions(space, window))

    assert [(max(run.start, window.start), min(run.end, window.stop), *run[2:5]) for run in whole] == [
        (run.start, run.end, *run[2:5]) for run in cut
    ]

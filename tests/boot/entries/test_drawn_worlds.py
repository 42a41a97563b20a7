"""Boots in drawn worlds of a loader, one for each habit that hurts: `bench/hostile_loader.py` leaves them in a machine.

`bench/hostile_loader.py --worlds 1000` and `bench/soak.py` boot more of them than there is time for here.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fivefold.arch import LA57
from fivefold.boot import BootOptions, Image, Run
from fivefold.machine import Exit, Guest, start
from fivefold.units import GIB

BENCH = Path(__file__).parents[3] / "bench"
MCE, PGE = 1 << 6, 1 << 7
WP = 1 << 16


@pytest.fixture
def hostile(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """`bench/hostile_loader.py`."""
    monkeypatch.syspath_prepend(str(BENCH))
    import hostile_loader

    yield hostile_loader
    for name in ("hostile_loader", "loader_worlds"):
        del sys.modules[name]


Draw = Callable[..., Any]


@pytest.fixture
def first_world(hostile: Any, image: Image) -> Draw:
    """The first world, from seed *first* on, that is booted with *words* and has a property."""

    def find(wanted: Callable[[Any], bool], words: str, first: int = 0, **wish: Any) -> Any:
        seeds = range(first, 5000)
        drawn = (hostile.bootable(seed, hostile.Wish(image.size, words, **wish), "la57") for seed in seeds)
        return next(world for world in drawn if world is not None and wanted(world))

    return find


HABITS: dict[str, Callable[[Any], bool]] = {
    "NXE and WP off, MCE and PGE on": lambda w: (
        not w.registers.nxe and not w.registers.cr0 & WP and w.registers.cr4 & (MCE | PGE) == MCE | PGE
    ),
    "511 rows": lambda w: len(w.rows) > 500,
    "rows of one page, unsorted, overlapping": lambda w: w.rows != sorted(w.rows) and small_rows(w) > 3,
    "all above 4 GiB": lambda w: min(w.info, w.root) > 4 * GIB,
    "tables just above the image": lambda w: 0 <= w.root - w.image_end < 0x1000,
    "a hundred tables": lambda w: len(w.tables) > 90,
    "information in a ROM": lambda w: any(kind == 2 and low <= w.info < low + size for low, size, kind in w.rows),
    "a table that maps tables, where pages are borrowed": lambda w: maps_a_table(w),
    "modules where there is no memory": lambda w: (
        any(low > 4 * GIB for low, _, what in w.used if what == "a module")
        and not any(low == 4 * GIB for low, _, _ in w.rows)
    ),
}


def maps_a_table(world: Any) -> bool:
    """Whether the highest low pages that hold nothing else are a table of small pages that maps one of larger ones."""
    pairs = (at for at in range(0x9D000, 0, -0x1000) if not world.why_not(at, at + 0x2000))
    place = next(pairs, 0)
    mapped = [first for at, first in world.tables if place <= at < place + 0x2000]
    above = [low for low, _, what in world.used if what == "a page table"]
    return world.mode is not LA57 and any(first <= at < first + (2 << 20) for first in mapped for at in above)


def small_rows(world: Any) -> int:
    return sum(size == 4096 and kind == 1 for _, size, kind in world.rows)


@pytest.mark.qemu
@pytest.mark.parametrize("habit", HABITS)
def test_a_world_with(hostile: Any, first_world: Draw, image: Image, habit: str) -> None:
    words = "kaslr=3"
    first = 2290 if "borrowed" in habit else 0  # which few worlds have
    world = first_world(HABITS[habit], words, first, high="4 GiB" in habit or "no memory" in habit, largest=GIB)
    run: Run = hostile.boot_world(world, image, "la57", options(hostile, world, words, "qemu"))
    assert run.ok, [run.event, *(check for check in run.checks if not check.ok)]


def options(hostile: Any, world: Any, words: str, engine: str, **more: Any) -> BootOptions:
    return BootOptions(engine=engine, entry=hostile.entry_of(world, engine), cmdline=words, timeout=60, **more)


def test_a_world_on_unicorn(hostile: Any, first_world: Draw, image: Image) -> None:
    world = first_world(lambda w: w.tables and w.mode is LA57, "kaslr=5 no5lvl")
    run: Run = hostile.boot_world(world, image, "la57", options(hostile, world, "kaslr=5 no5lvl", "unicorn"))
    assert run.ok, [run.event, *(check for check in run.checks if not check.ok)]


@pytest.mark.qemu
@pytest.mark.parametrize("words", ["kaslr=7 smp=2", "kaslr=8 no5lvl smp=2"])
def test_a_world_on_qemu_with_two_cpus(hostile: Any, first_world: Draw, image: Image, words: str) -> None:
    world = first_world(lambda w: w.mode is LA57, words, largest=GIB)
    given = options(hostile, world, words.removesuffix(" smp=2"), "qemu", smp=2)
    run: Run = hostile.boot_world(world, image, "la57", given)
    assert run.ok, [run.event, *(check for check in run.checks if not check.ok)]


@pytest.mark.bochs
def test_a_world_on_bochs(hostile: Any, first_world: Draw, image: Image) -> None:
    """Its loader has global entries, which a CR3 load there does not drop."""
    words = "kaslr=9 no5lvl smp=2"
    world = first_world(lambda w: w.mode is LA57 and w.registers.cr4 & PGE, words)
    given = options(hostile, world, words.removesuffix(" smp=2"), "bochs", smp=2)
    run: Run = hostile.boot_world(world, image, "la57", given)
    assert run.ok, [run.event, *(check for check in run.checks if not check.ok)]


def stop(hostile: Any, image: Image, world: Any, more_cr4: int = 0) -> tuple[Any, bytes]:
    """How a run in *world* ends, and what it writes."""
    file, memory = hostile.loader_file(world, image, more_cr4)
    guest = Guest(image=file, cpu="la57", memory=memory, sites=image.sites(world.load))
    with start("unicorn", guest) as machine:
        return machine.run(30.0), machine.output


def test_a_world_with_pcid_on_is_refused_in_one_line(hostile: Any, first_world: Draw, image: Image) -> None:
    world = first_world(lambda w: True, "kaslr=3")
    event, said = stop(hostile, image, world, hostile.PCIDE)
    assert (event, said) == (Exit(18), b"Bail out! fivefold: CR4.PCIDE is on; the 64-bit entry expects it off\n")


def test_a_second_kernel_where_the_map_has_no_memory_is_refused(hostile: Any, first_world: Draw, image: Image) -> None:
    words = "kexec -- no5lvl"
    world = first_world(HABITS["modules where there is no memory"], words, high=True, module=image.place())
    event, said = stop(hostile, image, world)
    assert event == Exit(17)
    assert b"\n# kexec: the module lies where the map has no memory\n" in said

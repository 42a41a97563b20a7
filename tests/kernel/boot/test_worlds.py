"""Nothing in use is written: whatever is chosen, in a thousand random worlds, meets nothing that the world has."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[3] / "bench"
WORLDS = 1000


@pytest.fixture
def wrong_answer(monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """The first that `bench/worlds.py` finds wrong with a kernel in *count* worlds."""
    monkeypatch.syspath_prepend(str(BENCH))
    import loader_worlds
    import worlds

    def find(package: str, count: int) -> str:
        kernel = worlds.Kernel(package)
        drawn = loader_worlds.worlds(1, count)
        wrong = (f"world {seed}: {problem}" for seed, world in drawn for problem in kernel.wrong(world, seed))
        return next(wrong, "")

    return find


def test_nothing_in_use_is_written_in_random_worlds(wrong_answer: Callable[..., str]) -> None:
    assert wrong_answer("fivefold.kernel", WORLDS) == ""


MENDS = [
    (
        "in_use.py",
        "        if at < end and start < at + PAGE_SIZE:\n            return 0\n",
        "",
        "a table of the place itself",
    ),
    (
        "in_use.py",
        "    reserve_tables(load, image_end)\n",
        "    reserve_path(load, EVERYWHERE)\n",
        "tables in the image's middle",
    ),
    ("in_use.py", "(3 + 9 * max(level, 2))", "(12 + 9 * level)", "small pages beside large ones"),
    ("in_use.py", "    reserve_tables(info, info + start_info.SIZE)\n", "", "the information's tables"),
    ("in_use.py", "    memblock.reserve(load, image_end - load)\n", "", "the image"),
    ("in_use.py", "    start_info.reserve_memory(info)\n", "", "the information"),
    ("startup.py", "    in_use.note_low_tables()\n", "", "tables that map memory, when two pages are borrowed"),
    ("in_use.py", "    reserve_earlier_kernels(cmdline)\n", "", "earlier kernels"),
    ("start_info.py", "        memblock.reserve(list_at, modules * MODULE_ENTRY_SIZE)\n", "", "the list of modules"),
    ("memblock.py", "MAX_RANGES: Final = 512", "MAX_RANGES: Final = 128", "maps of many rows"),
    ("memblock.py", "    reserve(place, size)\n    if overflowed", "    if overflowed", "handed out once"),
]


@pytest.mark.parametrize(("file", "old", "new"), [row[:3] for row in MENDS], ids=[row[3] for row in MENDS])
def test_each_part_of_the_answer_is_needed(
    wrong_answer: Callable[..., str], mutated: Callable[..., str], file: str, old: str, new: str
) -> None:
    assert wrong_answer(mutated(file, (old, new)), 150), "no world notices"


def test_the_world_generator_is_unkind(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the issue names occurs: tables beside the image and high, unsorted and long maps, rows of one page."""
    monkeypatch.syspath_prepend(str(BENCH))
    import loader_worlds

    drawn = [world for _, world in loader_worlds.worlds(1, 200)]
    assert any(len(world.rows) > 500 for world in drawn)
    assert any(world.rows != sorted(world.rows) for world in drawn)
    assert any(size == 4096 for world in drawn for _, size, kind in world.rows if kind == 1)
    assert any(world.image_end <= at < world.image_end + 8192 for world in drawn for at in world.memory)
    assert any(world.load - 8192 <= at < world.load for world in drawn for at in world.memory)
    assert {4, 5} == {len(world.mode.levels) for world in drawn}
    assert sys.modules["loader_worlds"]

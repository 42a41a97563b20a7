"""Captures of real guests, and small spaces that are built page by page."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from fivefold.arch import AddressSpace, Entry, Frames, Level, PagingMode, map_page
from fivefold.memory import Bank, BankedMemory, CpuState, Ram, Source
from fivefold.survey.space import Space, open_space
from fivefold.units import MIB, PhysAddr, VirtAddr

GUESTS = Path(__file__).parents[1] / "data" / "guests"
NAMES = sorted(path.name.removesuffix(".facts.json") for path in GUESTS.glob("*.facts.json"))
VECTORS = Path(__file__).parent / "vectors"
ROOT = 0x10_0000
LA57_BIT = 1 << 12

Page = tuple[int, int, Level]
"""Address, raw entry without the page-size bit, level."""


@cache
def facts_of(name: str) -> Any:
    return json.loads((GUESTS / f"{name}.facts.json").read_text())


@cache
def guest(name: str, cr3: int | None = None) -> Space:
    """The space of a capture; one for all tests, since it is only read."""
    return open_space(str(GUESTS / f"{name}.elf.xz"), cr3=cr3)


def rows(name: str) -> list[list[str]]:
    text = (VECTORS / f"{name}.txt").read_text(encoding="utf-8")
    lines = (line.partition("#")[0].strip() for line in text.splitlines())
    found = [[column.strip() for column in line.split("|")] for line in lines if line]
    assert found, f"{name}.txt has no vectors"
    return found


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    for fixture in metafunc.fixturenames:
        if fixture.endswith("_row"):
            found = rows(fixture.removesuffix("_row"))
            metafunc.parametrize(fixture, found, ids=[" ".join(row)[:60] for row in found])
        elif fixture == "name" and "captures" in metafunc.fixturenames:
            metafunc.parametrize("name", NAMES)


@pytest.fixture
def captures() -> Path:
    return GUESTS


@pytest.fixture
def look() -> Callable[..., Space]:
    return guest


@pytest.fixture
def facts() -> Callable[[str], Any]:
    return facts_of


def source_of(ram: Ram, cpus: tuple[CpuState, ...] = (), **about: Any) -> Source:
    """A source over *ram*; the banks are shared, so writing to *ram* shows."""
    memory = BankedMemory([Bank(start, memoryview(data)) for start, data in ram.banks()], ram.name)
    return Source(memory, "test memory", cpus, **about)


@pytest.fixture
def sourced() -> Callable[..., Source]:
    return source_of


@pytest.fixture
def built() -> Iterator[Callable[..., Ram]]:
    """Build tables for *pages* under a root at 0x100000, in 4 MiB of memory from 1 MiB."""

    def build(mode: PagingMode, pages: Iterable[Page], root: int = ROOT) -> Ram:
        ram = Ram.of_size(4 * MIB, start=1 * MIB, name="toy")
        space = AddressSpace(ram, PhysAddr(root), mode)
        frames = Frames(ram, PhysAddr(root + 0x1000), 512)
        for va, raw, level in pages:
            map_page(ram, space, VirtAddr(va), Entry(raw | (0x80 if level > 1 else 0), level), frames)
        return ram

    yield build

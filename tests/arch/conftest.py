"""Vectors in text: a test that takes `NAME_vector` runs once for each line of vectors/NAME.txt."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import strategies as st

from fivefold.arch import LA48, LA57, AddressSpace, Cpu
from fivefold.memory import Ram
from fivefold.units import PhysAddr, VirtAddr

VECTORS = Path(__file__).parent / "vectors"


def rows(name: str) -> list[list[str]]:
    """The lines of a vector file as their columns, which ``|`` separates."""
    text = (VECTORS / f"{name}.txt").read_text(encoding="utf-8")
    lines = (line.partition("#")[0].strip() for line in text.splitlines())
    found = [[column.strip() for column in line.split("|")] for line in lines if line]
    assert found, f"{name}.txt has no vectors"
    return found


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    for fixture in metafunc.fixturenames:
        if fixture.endswith("_vector"):
            found = rows(fixture.removesuffix("_vector"))
            metafunc.parametrize(fixture, found, ids=[" ".join(row)[:60] for row in found])


@pytest.fixture
def tree() -> Ram:
    """The tree of tree.txt: a PML5 at 0x1000, which serves as one with its PML4 at 0x2000 too."""
    ram = Ram.of_size(0x5000, start=0x1000, name="tree")
    for at, raw, _ in rows("tree"):
        ram.write(PhysAddr(int(at, 16)), int(raw, 16).to_bytes(8, "little"))
    return ram


@st.composite
def small_trees(draw: st.DrawFn) -> AddressSpace:
    """Six frames from 0x1000 that point at each other, at pages and at nothing, in either mode."""
    frames = [0x1000 * number for number in range(1, 7)]
    ram = Ram.of_size(0x6000, start=0x1000, name="small tree")
    slots = st.sampled_from([0, 1, 2, 255, 256, 510, 511])
    targets = st.sampled_from([*frames, 0x4000_0000, 0x9000_0000])
    flags = st.sampled_from([7, 7, 7, 5, 3, 1, 0x87, 0x83, 0x8000_0000_0000_0007, 6, 1 << 46 | 7, 0x107])
    for at, target, flag in draw(
        st.lists(st.tuples(st.tuples(st.sampled_from(frames), slots), targets, flags), min_size=4, max_size=24)
    ):
        ram.write(PhysAddr(at[0] + 8 * at[1]), (target | flag).to_bytes(8, "little"))
    mode = draw(st.sampled_from([LA48, LA57]))
    return AddressSpace(ram, PhysAddr(0x1000), mode, Cpu(phys_bits=46), nxe=draw(st.booleans()))


@st.composite
def addresses(draw: st.DrawFn) -> VirtAddr:
    """Addresses whose indices are those that `small_trees` fills, canonical in both modes or in one."""
    slot = st.sampled_from([0, 1, 2, 3, 255, 256, 510, 511])
    indices = (draw(slot), draw(slot), draw(slot), draw(slot), draw(slot))
    return VirtAddr(LA57.base_of(indices) | draw(st.integers(0, 0xFFF)))


@pytest.fixture(scope="session")
def spaces() -> st.SearchStrategy[AddressSpace]:
    """Strategy of `small_trees`."""
    return small_trees()


@pytest.fixture(scope="session")
def places() -> st.SearchStrategy[VirtAddr]:
    """Strategy of `addresses`."""
    return addresses()


@pytest.fixture(scope="session")
def vectors() -> dict[str, list[list[str]]]:
    """Every vector file as rows, for tests that need a whole table at once."""
    return {path.stem: rows(path.stem) for path in VECTORS.glob("*.txt")}

"""The random place that the image runs at: free by the loader's map, aligned, and shown at itself by the tables."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import pytest

from fivefold.arch import LA57, PagingMode
from fivefold.units import GIB, MIB

Guards = Callable[..., None]
KERNEL = "fivefold.kernel"
PAGE = 4096
INFO, ROWS, CMDLINE, MODULES = 0x1_0000, 0x1_0100, 0x1_0800, 0x1_2000
ROOT = 0x2_0000
LOAD, END = 16 * MIB, 16 * MIB + 0x41000
ALIGN = 2 * MIB
PC = [(0, 0x9_F000, 1), (MIB, 63 * MIB, 1)]


class Loaded:
    """The boot code where a loader left it: start information, and tables that show the first GiB at itself."""

    def __init__(
        self,
        code: Any,
        processor: Any,
        mode: PagingMode,
        cmdline: bytes,
        rows: list[tuple[int, int, int]],
        modules: list[tuple[int, int]],
        package: str,
    ) -> None:
        cpu = processor(cr3=ROOT, cr4=0x20 | (mode is LA57) << 12)
        cpu.rdtsc = lambda: 0x1234_5678
        self.helpers = code(None, "move", package=package, extents=[(0x1000, 0xA_0000)], window=0, processor=cpu)
        write = self.helpers.ram.write
        head = struct.pack("<IIIIQQQQII", 0x336E_C578, 1, 0, len(modules), MODULES, CMDLINE, 0, ROWS, len(rows), 0)
        write(INFO, head)
        write(ROWS, b"".join(struct.pack("<QQII", *row, 0) for row in rows))
        write(CMDLINE, cmdline + b"\0")
        write(MODULES, b"".join(struct.pack("<QQQQ", *module, 0, 0) for module in modules))
        depth = len(mode.levels) - 2
        for i in range(depth):
            write(ROOT + i * PAGE, ((ROOT + (i + 1) * PAGE) | 0x67).to_bytes(8, "little").ljust(PAGE, b"\0"))
        write(ROOT + depth * PAGE, b"".join((i << 21 | 0x1E7).to_bytes(8, "little") for i in range(512)))

    def place(self) -> int:
        return int(self.helpers.call("move.choose_place", INFO, LOAD, END))


@pytest.fixture
def loaded(code: Any, processor: Any) -> Callable[..., Loaded]:
    def make(
        mode: PagingMode,
        cmdline: str = "kaslr=7",
        rows: list[tuple[int, int, int]] | None = None,
        modules: list[tuple[int, int]] | None = None,
        package: str = KERNEL,
    ) -> Loaded:
        return Loaded(code, processor, mode, cmdline.encode(), rows or PC, modules or [], package)

    return make


def places(loaded: Callable[..., Loaded], mode: PagingMode, count: int = 60, **more: Any) -> set[int]:
    """Where *count* seeds lead to."""
    one = loaded(mode, "kaslr=1", **more)
    found = set()
    for seed in range(count):
        one.helpers.ram.write(CMDLINE, f"kaslr={seed}\0".encode())
        found.add(one.place())
    return found


def test_places_are_free_and_differ(loaded: Callable[..., Loaded], mode: PagingMode) -> None:
    found = places(loaded, mode)
    assert len(found) > 10
    for at in found:
        assert at % ALIGN == 0
        assert 16 * MIB <= at <= 64 * MIB - (END - LOAD)
        assert at >= END or at + END - LOAD <= LOAD, "a copy over itself"


def test_the_same_seed_gives_the_same_place(loaded: Callable[..., Loaded], mode: PagingMode) -> None:
    assert len({loaded(mode, "kaslr=7").place() for _ in range(3)}) == 1
    assert loaded(mode, "kaslr").place() != LOAD, "without a seed the time-stamp counter is one"


@pytest.mark.parametrize(
    "cmdline", ["", "nokaslr", "kaslr=x", "kaslr=", "kaslr=7 hibernate=resume", "-- kaslr=7", "xkaslr=7", "kaslrx"]
)
def test_it_stays_where_nobody_asks(loaded: Callable[..., Loaded], mode: PagingMode, cmdline: str) -> None:
    assert loaded(mode, cmdline).place() == LOAD


def test_without_start_information_it_stays(loaded: Callable[..., Loaded], mode: PagingMode) -> None:
    one = loaded(mode)
    one.helpers.ram.write(INFO, bytes(4))
    assert one.place() == LOAD


def test_no_room_at_all_is_no_move(loaded: Callable[..., Loaded], mode: PagingMode) -> None:
    assert loaded(mode, rows=[(0, 0x9_F000, 1), (MIB, 17 * MIB, 1)]).place() == LOAD


TAKEN = (20 * MIB, 60 * MIB)


def beside(loaded: Callable[..., Loaded], mode: PagingMode, package: str, **more: Any) -> None:
    """No place in `TAKEN` is chosen, and some other is."""
    found = places(loaded, mode, package=package, **more)
    assert found
    assert all(at + END - LOAD <= TAKEN[0] or at >= TAKEN[1] for at in found)


def test_a_module_is_left_alone(loaded: Callable[..., Loaded], guards: Guards, mode: PagingMode) -> None:
    """The saved kernel or the next one lies there."""
    guards(
        lambda package: beside(loaded, mode, package, modules=[(TAKEN[0], TAKEN[1] - TAKEN[0])]),
        "move.py",
        (
            "field64(module, 0), start_info.field64(module, 8)):\n            return False",
            "field64(module, 0), 0):\n            return False",
        ),
    )


@pytest.mark.parametrize("size", [TAKEN[1] - TAKEN[0], (1 << 64) - MIB], ids=["overlaps", "wraps"])
def test_memory_that_the_map_also_calls_reserved_is_left_alone(
    loaded: Callable[..., Loaded], guards: Guards, size: int
) -> None:
    """Firmware lies; memblock takes such memory out again, and the image would not be in the direct map."""
    rows = [*PC, (TAKEN[0], size, 2)]

    def check(package: str) -> None:
        found = places(loaded, LA57, package=package, rows=rows)
        assert all(at + END - LOAD <= TAKEN[0] or (at >= TAKEN[1] and size < GIB) for at in found)

    guards(check, "move.py", (" or is_disputed(info, start, end):", ":"))


def test_only_what_the_tables_show_at_itself(loaded: Callable[..., Loaded], guards: Guards, mode: PagingMode) -> None:
    """The loader's tables may end before memory does, or show something else."""

    def check(package: str) -> None:
        one = loaded(mode, rows=[(0, 0x9_F000, 1), (MIB, 159 * MIB, 1)], package=package)
        last = ROOT + (len(mode.levels) - 2) * PAGE
        one.helpers.ram.write(last + 8 * 14, (99 << 21 | 0x1E7).to_bytes(8, "little"))
        one.helpers.ram.write(last + 8 * 40, bytes(4056 - 8 * 40 + 40))
        for seed in range(12):
            one.helpers.ram.write(CMDLINE, f"kaslr={seed}\0".encode())
            at = one.place()
            assert LOAD <= at < 80 * MIB
            assert at != 28 * MIB

    guards(
        check,
        "move.py",
        (
            "    return is_free_of_modules(info, start, end) and is_identity(start) and is_identity(end - 1)",
            "    return is_free_of_modules(info, start, end)",
        ),
    )


def test_identity_is_read_at_the_depth_of_cr4(loaded: Callable[..., Loaded], mode: PagingMode, guards: Guards) -> None:
    """INV-1: not at the depth that the image will choose."""

    def check(package: str) -> None:
        one = loaded(mode, package=package)
        last = ROOT + (len(mode.levels) - 2) * PAGE
        one.helpers.ram.write(last + 8 * 14, (99 << 21 | 0x1E7).to_bytes(8, "little"))
        for address, want in ((28 * MIB, 0), (16 * MIB, 1), (GIB - 1, 1), (GIB, 0), (1 << 47, 0)):
            assert one.helpers.call("move.is_identity", address) == want

    wrong = "False" if mode is LA57 else "True"
    guards(check, "move.py", ("pgtable_levels_of(read_cr4() & CR4_LA57 != 0)", f"pgtable_levels_of({wrong})"))

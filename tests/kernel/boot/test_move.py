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
RAM = [(0x1000, 0xA_0000), (16 * MIB, 160 * MIB)]
"""What is there: a place is asked whether it keeps what is written."""


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
        self.helpers = code(None, "move", package=package, extents=RAM, window=0, processor=cpu)
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


def test_without_start_information_it_stops(loaded: Callable[..., Loaded], mode: PagingMode, stopped: Any) -> None:
    one = loaded(mode)
    one.helpers.ram.write(INFO, bytes(4))
    with pytest.raises(stopped, match="Bail out! fivefold: "):
        one.place()


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
        "start_info.py",
        ("memblock.reserve(PhysAddr(field64(module, 0)), field64(module, 8))", "pass"),
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

    guards(check, "start_info.py", ("if field32(entry, MAP_TYPE) != TYPE_RAM:", "if entry == 1:"))


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

    guards(check, "move.py", ("if in_use.can_run_at(at, at + size):", "if at != 0:"))


def test_identity_is_read_at_the_depth_of_cr4(loaded: Callable[..., Loaded], mode: PagingMode, guards: Guards) -> None:
    """INV-1: not at the depth that the image will choose."""

    def check(package: str) -> None:
        one = loaded(mode, package=package)
        last = ROOT + (len(mode.levels) - 2) * PAGE
        one.helpers.ram.write(last + 8 * 14, (99 << 21 | 0x1E7).to_bytes(8, "little"))
        for address, want in ((28 * MIB, 0), (16 * MIB, 1), (GIB - 1, 1), (GIB, 0), (1 << 47, 0)):
            assert one.helpers.call("in_use.can_run_at", address, address + 1) == want

    wrong = "False" if mode is LA57 else "True"
    guards(check, "in_use.py", ("pgtable_levels_of(read_cr4() & CR4_LA57 != 0)", f"pgtable_levels_of({wrong})"))


def test_every_page_must_be_writable_and_executable(
    loaded: Callable[..., Loaded], guards: Guards, mode: PagingMode
) -> None:
    """At its first and its last byte a place may look well that the copy, or the first call in it, dies of."""
    middle = 2 * MIB + END - LOAD

    def check(package: str) -> None:
        one = loaded(mode, package=package)
        last = ROOT + (len(mode.levels) - 2) * PAGE
        can = one.helpers.call("in_use.can_run_at", 30 * MIB, 34 * MIB + middle)
        assert can == 1
        for wrong in (0x1E5, 1 << 63 | 0x1E7, 0x1E6):  # not writable, not executable, not present
            one.helpers.ram.write(last + 8 * 16, (32 * MIB | wrong).to_bytes(8, "little"))
            assert one.helpers.call("in_use.can_run_at", 30 * MIB, 34 * MIB + middle) == 0, hex(wrong)
        one.helpers.ram.write(last + 8 * 16, (32 * MIB | 0x1E7).to_bytes(8, "little"))
        one.helpers.ram.write(ROOT, (one.helpers.ram.read(ROOT, 8)[0] & ~2).to_bytes(1, "little"))
        assert one.helpers.call("in_use.can_run_at", 30 * MIB, 34 * MIB) == 0, "a right that is lost at the top"

    guards(check, "in_use.py", ("entry & (PRESENT | RW) != PRESENT | RW", "entry & PRESENT == 0"))
    guards(check, "in_use.py", (" or entry & NX != 0:", ":"))
    guards(
        check,
        "in_use.py",
        ("(va & ~(span - 1)) + span\n    return True", "end - 1 if va < end - 1 else end\n    return True"),
    )


@pytest.mark.parametrize("bit", [20, 21], ids=["SMEP", "SMAP"])
def test_a_page_of_ring_3_is_no_place_under_smep_and_smap(
    loaded: Callable[..., Loaded], guards: Guards, mode: PagingMode, bit: int
) -> None:
    def check(package: str) -> None:
        one = loaded(mode, package=package)
        assert one.helpers.call("in_use.can_run_at", 30 * MIB, 34 * MIB) == 1
        one.helpers.processor.cr4 |= 1 << bit
        assert one.helpers.call("in_use.can_run_at", 30 * MIB, 34 * MIB) == 0

    guards(check, "in_use.py", ("read_cr4() & (CR4_SMEP | CR4_SMAP) != 0", f"read_cr4() & (1 << {41 - bit}) != 0"))


def test_an_earlier_kernel_is_left_alone(loaded: Callable[..., Loaded], guards: Guards, mode: PagingMode) -> None:
    """The first kernel's report is read after the second has ended; a chain of kernels names all of them."""

    def check(package: str) -> None:
        one = loaded(mode, package=package)
        words = "previous=0x1400000 previous_end=0x2400000 previous=0x2800000 previous_end=0x3c00000"
        found = set()
        for seed in range(40):
            one.helpers.ram.write(CMDLINE, f"{words} kaslr={seed}\0".encode())
            found.add(one.place())
        assert found
        for at in found:
            assert at >= 0x3C0_0000 or at + END - LOAD <= 0x140_0000 or 0x240_0000 <= at <= 0x280_0000 - (END - LOAD)

    guards(
        check,
        "in_use.py",
        ("            memblock.reserve(PhysAddr(load), params.number_at(upto) - load)\n", "            pass\n"),
    )
    guards(check, "in_use.py", ('at = params.find_option(VirtAddr(at), "previous=")', "return"))

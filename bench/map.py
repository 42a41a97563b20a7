"""Map a million separate pages with the kernel's `map_page`, and with the same algorithm in C.

Both fill the same memory and must leave the same bytes in it; what counts is the time of
the processor that they take. Then the direct map of 4 PiB, and the memory of its tables.
"""

from __future__ import annotations

import ctypes
import mmap
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from fivefold.kernel.modes import mode_bindings
from fivefold.metal.extents import attach, check_misses
from fivefold.metal.program import Program
from fivefold.metal.run import host
from measure import Claim, Row, arguments, gcc_version, ratio, take_turns, tell

KERNEL: Final = "fivefold.kernel"
KERNEL_RW: Final = 1 << 63 | 0x163
PAGES: Final = 1 << 20
VA: Final = 0xFFA0_0000_0000_0000
FIRST: Final = 0x10_0000
"""Physical address of the top table; the others follow it."""
SHAPES: Final = {
    "every second page, ascending": (2, PAGES * 2),
    "scattered over 8,192 tables": (0x9E37_79B1, 1 << 22),
}
"""Step and slots: an odd step visits each slot once."""
PIB: Final = 1 << 50


def program(*roots: str, modules: tuple[str, ...] = ()) -> Program:
    """The kernel of five levels for memory in this process."""
    return Program(
        modules,
        bindings=mode_bindings(5),
        replace={f"{KERNEL}.paging.phys.phys_to_virt": "fivefold.metal.extents.phys_to_virt"},
        roots=tuple(f"{KERNEL}.{root}" for root in roots),
    )


class Python:
    """The kernel's mapping code."""

    def __init__(self, memory: mmap.mmap) -> None:
        self.memory = memory
        self.native = host.load(program("paging.memblock.add", "paging.memblock.reserve", modules=("map_loop",)))
        self.top = attach(self.native, [(FIRST, self.memory)]).addresses[0]

    def map(self, step: int, slots: int) -> float:
        """Start with empty tables and map all pages; return the seconds of the latter."""
        for name in ("memory_count", "reserved_count", "pool_next", "pool_end", "table_pages", "allocated_bytes"):
            self.native.set(f"memblock.{name}", 0)
        self.memory[:4096] = bytes(4096)
        self.native.call("memblock.add", FIRST, len(self.memory))
        self.native.call("memblock.reserve", FIRST, 4096)
        began = time.thread_time()
        done = self.native.call("map_loop.map_pages", self.top, VA, PAGES, step, slots, KERNEL_RW)
        seconds = time.thread_time() - began
        check_misses(self.native)
        return checked(done, seconds)

    def tables(self) -> bytes:
        """All tables that were made, the top one first."""
        return self.memory[: 4096 * (1 + self.native.get("memblock.table_pages"))]


class C:
    """The same in C, compiled now."""

    def __init__(self, memory: mmap.mmap, place: Path) -> None:
        self.memory = memory
        library = place / "map.so"
        source = Path(__file__).with_name("map.c")
        subprocess.run(["gcc", "-O2", "-shared", "-fPIC", "-Wall", "-Werror", "-o", library, source], check=True)
        self.native = ctypes.CDLL(str(library))
        self.native.start.argtypes = [ctypes.c_void_p, ctypes.c_uint64, ctypes.c_uint64]
        self.native.map_pages.argtypes = [ctypes.c_uint64] * 6
        self.native.map_pages.restype = self.native.taken.restype = ctypes.c_uint64

    def map(self, step: int, slots: int) -> float:
        """As `Python.map`."""
        base = ctypes.addressof(ctypes.c_char.from_buffer(self.memory)) - FIRST
        self.memory[:4096] = bytes(4096)
        self.native.start(base, FIRST + 4096, FIRST + len(self.memory))
        began = time.thread_time()
        done = self.native.map_pages(FIRST, VA, PAGES, step, slots, KERNEL_RW)
        return checked(done, time.thread_time() - began)

    def tables(self) -> bytes:
        """As `Python.tables`."""
        return self.memory[: self.native.taken() - FIRST]


def checked(done: int, seconds: float) -> float:
    """Return *seconds*, if all pages were mapped in them."""
    if done != PAGES:
        raise SystemExit(f"mapped {done} pages of {PAGES}")
    return seconds


def turn(side: Python | C, step: int, slots: int) -> Callable[[], float]:
    """One side as `take_turns` wants it."""
    return lambda: side.map(step, slots)


def tables_after(side: Python | C, step: int, slots: int) -> bytes:
    """What one side leaves in memory."""
    side.map(step, slots)
    return side.tables()


def compare(shape: str, ours: bytes, theirs: bytes) -> None:
    """Refuse to time two different things."""
    if ours != theirs:
        raise SystemExit(f"{shape}: the two sides left different tables, {len(ours)} and {len(theirs)} bytes")


def map_pages(rounds: int, place: Path) -> tuple[dict[str, Row | int | str], list[Claim]]:
    """Both sides on each shape of work."""
    rows: dict[str, Row | int | str] = {}
    claims = []
    for shape, (step, slots) in SHAPES.items():
        # The same memory for both: which physical pages a process gets alone moves the ratio by a tenth.
        memory = mmap.mmap(-1, 4096 * (slots // 512 + 64))
        ours, theirs = Python(memory), C(memory, place)
        compare(shape, tables_after(ours, step, slots), tables_after(theirs, step, slots))
        found = take_turns({"python": turn(ours, step, slots), "C -O2": turn(theirs, step, slots)}, rounds)
        rows |= {f"{shape}: {name}": sample for name, sample in found.items()}
        claims.append(Claim(f"1 M pages, {shape}", ratio(*found.values()), 1.25, "x C"))
    return rows, claims


def direct_map(rounds: int) -> tuple[dict[str, Row | int | str], list[Claim]]:
    """4 PiB in pages of 1 GiB, whose tables are all of the memory that there really is."""
    needed = 4 * PIB >> 48, 4 * PIB >> 39
    tables = 1 + sum(needed)
    size = 4096 * (tables + 15)  # Tables are taken 16 at a time.
    memory = mmap.mmap(-1, size)
    native = host.load(program("paging.memblock.add", "paging.memblock.reserve", "areas.direct_map.direct_map_init"))
    top = attach(native, [(FIRST, memory)]).addresses[0]

    def run() -> float:
        for name in ("memory_count", "reserved_count", "pool_next", "pool_end", "table_pages", "allocated_bytes"):
            native.set(f"memblock.{name}", 0)
        native.set("layout.page_offset_base", 0xFF11_0000_0000_0000)
        memory[:4096] = bytes(4096)
        native.call("memblock.add", 0, 4 * PIB)
        native.call("memblock.reserve", 0, FIRST + 4096)
        began = time.thread_time()
        failed = native.call("direct_map.direct_map_init", top, 3, 0, 0)
        seconds = time.thread_time() - began
        check_misses(native)
        if failed:
            raise SystemExit(f"{failed:#x} bytes of 4 PiB could not be mapped")
        return seconds

    found = take_turns({"run": run}, rounds)["run"]
    taken = native.get("memblock.allocated_bytes") // 4096
    made = 1 + native.get("memblock.table_pages")
    shares = f"1 top, {needed[0]} P4D, {needed[1]} PUD"
    rows: dict[str, Row | int | str] = {
        "direct map of 4 PiB, five levels, 1 GiB pages": found,
        "  tables": f"{made} of {tables} needed ({shares}), {made * 4096 / 2**20:.1f} MiB",
        "  pages taken for them": 1 + taken,
    }
    return rows, [
        Claim("direct map of 4 PiB", found.median, 1.0, "s"),
        Claim("its tables", made, tables, "pages"),
        Claim("memory taken for them", 1 + taken, tables + 15, "pages"),
    ]


def main() -> int:
    """Run both parts."""
    options = arguments("Map pages natively, and in C.", rounds=7)
    with tempfile.TemporaryDirectory() as place:
        rows, claims = map_pages(options.rounds, Path(place))
    more_rows, more_claims = direct_map(options.rounds)
    return tell(
        "fivefold.bench.map/1",
        rows | more_rows,
        claims + more_claims,
        options.json,
        gcc=gcc_version(),
        clock="processor",
    )


if __name__ == "__main__":
    sys.exit(main())

"""Time the scan of page tables against `numpy.sum` over the same tables, in turns, by the processor's time.

What the scan finds is compared with what was written before anything is timed. The KASAN
guest is a capture of a real one: 3,330 tables, some of them mapped thousands of times; its leaves and the walks that
they need are counted by other code.
"""

from __future__ import annotations

import mmap
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

import dump_images
from dump_images import BASE, Image
from fivefold.arch import FRAME_BITS, AddressSpace, Flag
from fivefold.memory import Bank
from fivefold.metal.run import host
from fivefold.survey.scan import split_scan
from fivefold.survey.scan.leaves import Leaves
from fivefold.survey.scan.programs import scan_program
from fivefold.survey.scan.scan import TableScanner, leaves_of
from fivefold.survey.scan.scan_result import Contiguity, ScanResult, ScanSettings
from fivefold.survey.space import open_space
from fivefold.units import PhysAddr
from measure import Claim, Row, Sample, arguments, ratio, take_turns, tell

Rows = dict[str, Row | int | str]
GUEST: Final = Path(__file__).parent.parent / "tests" / "data" / "guests" / "kasan-la57-nokaslr.elf.xz"
REPEAT_ABOVE: Final = 64
ALL_CORES: Final = split_scan.cores

HOW: Final = {
    "merge by rights and flags": ScanSettings(contiguity=Contiguity.IGNORE),
    "and note physical jumps": ScanSettings(contiguity=Contiguity.NOTE),
    "and break at them": ScanSettings(contiguity=Contiguity.BREAK),
}


def timed(run: Callable[[], object]) -> Callable[[], float]:
    """*run* as `take_turns` wants it; what it returns is let go of outside the time."""

    def measured() -> float:
        began = time.thread_time()
        kept = run()
        seconds = time.thread_time() - began
        del kept
        return seconds

    return measured


def check(image: Image, result: ScanResult) -> None:
    """Refuse to time a wrong answer."""
    found = (result.counts.mapped_bytes // 4096, len(result))
    if found != (image.leaves, image.ranges):
        raise SystemExit(f"found {found[0]} leaves in {found[1]} ranges, not {image.leaves} in {image.ranges}")


def on_one_core() -> int:
    """In place of `split_scan.cores`: times are those of one thread."""
    return 1


def scans(image: Image, how: dict[str, ScanSettings], rounds: int) -> dict[str, Sample]:
    """The sum of the tables, and a scan for each of *how*, in turns, on one core."""
    split_scan.cores = on_one_core
    scanner = TableScanner(image.banks)
    sides: dict[str, Callable[[], float]] = {"sum": timed(image.tables.sum)}
    for name, settings in how.items():
        check(image, scanner.scan(image.root, 5, settings))
        sides[name] = timed(lambda settings=settings: scanner.scan(image.root, 5, settings))
    return take_turns(sides, rounds)


def in_order_and_shuffled(rounds: int) -> tuple[Rows, list[Claim]]:
    """27 M leaves in 214,000 ranges, in 65,536 tables that lie in order or anywhere."""
    rows: Rows = {}
    claims = []
    for shape, shuffled, limit in (("in order", False, 1.5), ("shuffled", True, 2.4)):
        image = dump_images.runs(shuffled=shuffled)
        found = scans(image, HOW, rounds)
        rows |= {f"65,536 tables {shape}: {name}": told(sample, found["sum"]) for name, sample in found.items()}
        rows[f"65,536 tables {shape}: found"] = f"{image.leaves} leaves in {image.ranges} ranges"
        claims += [Claim(f"{shape}, {name}", ratio(found[name], found["sum"]), limit, "x sum") for name in HOW]
    return rows, claims


def on_two_cores(rounds: int) -> tuple[Rows, list[Claim]]:
    """The same tables in order by the wall clock, on as many cores as the process may use, and summed on one."""
    split_scan.cores = ALL_CORES
    image = dump_images.runs()
    scanner = TableScanner(image.banks)
    check(image, scanner.scan(image.root, 5, HOW["and note physical jumps"]))

    def by(clock: Callable[[], float], run: Callable[[], object]) -> Callable[[], float]:
        def measured() -> float:
            began = clock()
            kept = run()
            seconds = clock() - began
            del kept
            return seconds

        return measured

    def scan() -> ScanResult:
        return scanner.scan(image.root, 5, HOW["and note physical jumps"])

    sides = {
        "sum": by(time.perf_counter, image.tables.sum),
        "scan": by(time.perf_counter, scan),
        "processor time of all threads": by(time.process_time, scan),
    }
    found = take_turns(sides, rounds)
    cores = ALL_CORES()
    rows: Rows = {f"in order on {cores} cores: {name}": told(sample, found["sum"]) for name, sample in found.items()}
    if cores < 2:
        return rows, []
    return rows, [Claim(f"in order, jumps noted, {cores} cores", ratio(found["scan"], found["sum"]), 1.1, "x sum")]


def told(sample: Sample, base: Sample) -> str:
    """A time, and how many times the sum it is."""
    return f"{sample}, {ratio(sample, base):.2f} x sum"


def ranges(rounds: int) -> tuple[Rows, list[Claim]]:
    """A million leaves that do not merge: what a range costs beyond twice the sum."""
    rows: Rows = {}
    claims = []
    shapes = {
        "1 M leaves in 65,536 tables": lambda: dump_images.scattered(65_536),
        "1 M leaves in 8,192 tables": lambda: dump_images.scattered(8_192),
        "1 M leaves with alternating flags": dump_images.alternating,
    }
    for shape, make in shapes.items():
        image = make()
        found = scans(image, {"scan": HOW["and break at them"]}, rounds)
        beyond = Sample(tuple(a - 2 * b for a, b in zip(*(found[n].seconds for n in ("scan", "sum")), strict=True)))
        rows |= {f"{shape}: {name}": told(sample, found["sum"]) for name, sample in found.items()}
        claims.append(Claim(shape, 1e9 * beyond.median / image.ranges, 12.0, "ns a range beyond 2 x sum"))
    return rows, claims


def cold(rounds: int, place: Path) -> tuple[Rows, list[Claim]]:
    """The tables in a file that the system has in memory and this process has not mapped yet."""
    image = dump_images.runs()
    path = place / "tables"
    image.tables.tofile(path)

    def fresh(read: Callable[[mmap.mmap], object]) -> Callable[[], float]:
        def measured() -> float:
            with path.open("rb") as file:
                began = time.thread_time()
                mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
                kept = read(mapped)
                seconds = time.thread_time() - began
                del kept
                return seconds

        return measured

    code = host.load(scan_program(5, prefetch=False))

    def scan(mapped: mmap.mmap) -> ScanResult:
        with TableScanner([(BASE, mapped)], load=lambda _: code) as scanner:
            return scanner.scan(image.root, 5, HOW["merge by rights and flags"])

    sides = {"sum": fresh(lambda mapped: np.frombuffer(mapped, "<u8").sum()), "scan": fresh(scan)}
    found = take_turns(sides, rounds)
    rows: Rows = {f"fresh mapping of a file: {name}": told(sample, found["sum"]) for name, sample in found.items()}
    return rows, [Claim("fresh mapping of a file", ratio(found["scan"], found["sum"]), 2.0, "x sum")]


def kasan(rounds: int) -> tuple[Rows, list[Claim]]:
    """The capture of a guest with KASAN, long shared tables told as repeats or unfolded."""
    with open_space(str(GUEST)) as space:
        tables, banks = together(space.source.memory.banks())
        scanner = TableScanner(banks)
        settings = {"repeats": ScanSettings(repeat_above=REPEAT_ABOVE), "unfolded": ScanSettings()}
        first = {name: scanner.scan(space.root.value, 5, how) for name, how in settings.items()}
        check_shared(space.tables, first["repeats"], first["unfolded"])
        sides = {
            "sum": timed(tables.sum),
            **{name: timed(lambda how=how: scanner.scan(space.root.value, 5, how)) for name, how in settings.items()},
        }
        found = take_turns(sides, 20 * rounds)
    met = first["repeats"].counts.tables_met
    rows: Rows = {f"KASAN guest: {name}": told(sample, found["sum"]) for name, sample in found.items()}
    rows |= {f"KASAN guest: {name} found": repr(result) for name, result in first.items()}
    return rows, [
        Claim("KASAN guest", ratio(found["repeats"], found["sum"]), 3.0, "x sum of its tables"),
        Claim("KASAN guest, a table", 1e9 * found["repeats"].median / met, 250.0, "ns"),
    ]


def together(banks: Sequence[Bank]) -> tuple[Any, list[Bank]]:
    """All words of *banks* in one array, and banks that are parts of it: both sides read the same memory."""
    words = np.concatenate([np.frombuffer(bank.data, "<u8") for bank in banks])
    ends = np.cumsum([len(bank.data) for bank in banks]).tolist()
    view = memoryview(words).cast("B")
    return words, [Bank(bank.start, view[end - len(bank.data) : end]) for bank, end in zip(banks, ends, strict=True)]


def check_shared(tables: AddressSpace, repeats: ScanResult, unfolded: ScanResult) -> None:
    """Refuse to time shared tables that are not exact, or that were walked twice for the same rights."""
    leaves = Leaves(tables).count()
    if leaves_of(unfolded) != leaves or repeats.counts.mapped_bytes != unfolded.counts.mapped_bytes:
        raise SystemExit(f"found {leaves_of(unfolded)} leaves of {leaves}, and as repeats {repeats!r}")
    ways = ways_in(tables)
    if {repeats.counts.tables_walked, unfolded.counts.tables_walked} != {ways}:
        raise SystemExit(f"walked {repeats.counts.tables_walked} tables, not {ways}")


def ways_in(tables: AddressSpace) -> int:
    """How many tables there are, one that is met with other rights or at another level counted again."""
    met = set()
    todo = [(int(tables.root), int(tables.mode.top), 1, 1, 1)]
    while todo:
        way = todo.pop()
        if way in met:
            continue
        met.add(way)
        table, level, write, user, execute = way
        words = np.frombuffer(tables.memory.read(PhysAddr(table), 4096), "<u8")
        below = words[words & np.uint64(Flag.P | Flag.BIT7) == np.uint64(Flag.P)] if level > 1 else words[:0]
        for entry in np.unique(below).tolist():
            rights = write & entry >> 1, user & entry >> 2, execute & ~entry >> 63
            todo.append((entry & FRAME_BITS, level - 1, *rights))
    return len(met)


def main() -> int:
    """Run all parts."""
    options = arguments("Scan page tables, and sum them.", rounds=9)
    with tempfile.TemporaryDirectory() as place:
        parts = [
            on_two_cores(options.rounds),
            in_order_and_shuffled(options.rounds),
            ranges(options.rounds),
            cold(options.rounds, Path(place)),
            kasan(options.rounds),
        ]
    rows = {name: row for found, _ in parts for name, row in found.items()}
    claims = [claim for _, made in parts for claim in made]
    return tell("fivefold.bench.dump/1", rows, claims, options.json)


if __name__ == "__main__":
    sys.exit(main())

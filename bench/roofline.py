"""What limits a scan of page tables on this machine: each thing that a reader cannot do without, alone and in C.

The tables are those of dump.py: 65,536 leaf tables, 27 M leaves in 214,000 ranges, 268 MB, in order and shuffled.
Sides: the sum of all words; each entry compared with the one before; runs written down, which ends with a branch that
nothing predicts at each end; and our scan. All on one core, by the processor's time, the least of all rounds: what
disturbs a round only adds to it. `roofline.c` is compiled now by `gcc -O3 -march=native`: it may use what our code,
which runs on every x86-64, does not.
"""

from __future__ import annotations

import ctypes
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np

import dump_images
from dump import HOW, check, on_one_core
from fivefold.survey.scan import split_scan
from fivefold.survey.scan.scan import TableScanner
from measure import Row, parser_of, tell

HERE: Final = Path(__file__).parent
TABLES: Final = 65_536
MOST_RUNS: Final = 1 << 20


def compiled(place: Path) -> Any:
    """The C side."""
    words = ["gcc", "-O3", "-march=native", "-shared", "-fPIC", "-o", str(place / "roofline.so")]
    subprocess.run([*words, str(HERE / "roofline.c")], check=True)
    library = ctypes.CDLL(str(place / "roofline.so"))
    for name in ("sum", "sum_ahead", "compare", "merge"):
        getattr(library, name).restype = ctypes.c_uint64
    return library


def at(array: Any) -> ctypes.c_void_p:
    """Where an array lies."""
    return ctypes.c_void_p(array.ctypes.data)


def sides(library: Any, tables: Any, order: Any, runs: Any) -> dict[str, Callable[[], int]]:
    """The C side's functions over *tables* in *order*."""
    count = ctypes.c_uint64(len(order))
    return {
        "sum": lambda: library.sum(at(tables), at(order), count),
        "sum, the next table asked for": lambda: library.sum_ahead(at(tables), at(order), count),
        "entries compared": lambda: library.compare(at(tables), at(order), count),
        "runs written down": lambda: library.merge(at(tables), at(order), count, at(runs)),
    }


def least(run: Callable[[], object], before: float) -> float:
    """The seconds of one round, or *before* if that was less."""
    began = time.thread_time()
    kept = run()
    seconds = time.thread_time() - began
    del kept
    return min(seconds, before)


def measured(library: Any, shuffled: bool, rounds: int) -> dict[str, float]:
    """Seconds of each side."""
    image = dump_images.runs(shuffled=shuffled)
    order = np.random.default_rng(5).permutation(TABLES) if shuffled else np.arange(TABLES)
    runs = np.zeros((MOST_RUNS, 2), np.uint64)
    scanner = TableScanner(image.banks)
    all_sides: dict[str, Callable[[], object]] = {"numpy.sum, in the tables' own order": image.tables.sum}
    all_sides |= sides(library, image.tables, order.astype(np.uint32), runs)
    for name, how in HOW.items():
        check(image, scanner.scan(image.root, 5, how))
        all_sides[f"our scan, {name}"] = lambda how=how: scanner.scan(image.root, 5, how)  # type: ignore[misc]
    found = dict.fromkeys(all_sides, 9e9)
    for _ in range(rounds):
        for name, side in all_sides.items():
            found[name] = least(side, found[name])
    return found


def main() -> int:
    """Both orders."""
    parser = parser_of((__doc__ or "").split("\n")[0], rounds=15)
    asked = parser.parse_args()
    split_scan.cores = on_one_core
    rows: dict[str, Row | int | str] = {}
    with tempfile.TemporaryDirectory() as place:
        library = compiled(Path(place))
        for shuffled in (False, True):
            found = measured(library, shuffled, asked.rounds)
            base = next(iter(found.values()))
            for name, seconds in found.items():
                gigabytes = TABLES * 4096 / seconds / 1e9
                told = f"{1e3 * seconds:.1f} ms, {seconds / base:.2f} x numpy.sum, {gigabytes:.1f} GB/s"
                rows[f"{'shuffled' if shuffled else 'in order'}: {name}"] = told
    return tell("fivefold.bench.roofline/1", rows, [], asked.json)


if __name__ == "__main__":
    sys.exit(main())

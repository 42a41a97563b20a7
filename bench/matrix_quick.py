"""How long the four cells of the preset `quick` take on two cores, to which `fivefold matrix` is held here.

    python bench/matrix_quick.py vmlinuz-6.1… [--most 60]

Ends with 1 where a cell is not as promised, or where it takes longer than *most* seconds: which, on a machine that has
other work to do, says something about that.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time

MAIN = "from fivefold.cli.main import main; main()"
CORES = 2


def main() -> None:
    """Boot them, and print how long it took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kernel")
    parser.add_argument("--most", type=float, default=60.0)
    given = parser.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
    load = os.getloadavg()[0]
    began = time.monotonic()
    words = ["matrix", given.kernel, "--preset", "quick", "--json"]
    done = subprocess.run([sys.executable, "-c", MAIN, *words], stdout=subprocess.PIPE, check=False)
    took = time.monotonic() - began
    if not done.stdout:
        sys.exit(2)
    table = json.loads(done.stdout)
    cores = len(os.sched_getaffinity(0))
    kernel = table["kernels"][0]["release"]
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(
        f"{kernel}: {len(table['cells'])} cells on {cores} cores in {took:.1f} s, "
        f"{used.ru_utime + used.ru_stime:.1f} s of CPU time (the load before was {load:.1f})"
    )
    sys.exit(0 if table["ok"] and took < given.most else 1)


if __name__ == "__main__":
    main()

"""The kernel under a debugger, as docs/teach.md shows it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/teach.md").read_text()


def test_the_debugger_stops_in_the_kernel() -> None:
    typed = re.findall(r"^\(Pdb\) (.*)", PAGE, re.M)
    run = [sys.executable, "-m", "pdb", "examples/step_through_the_kernel.py"]
    done = subprocess.run(
        run,
        input="\n".join([*typed, "q"]),
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": "src"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "fivefold.kernel.paging.pgtable.pgd_index()" in done.stdout
    assert "-> return va >> pgdir_shift & 511" in done.stdout and str(0xFF11 << 48) in done.stdout

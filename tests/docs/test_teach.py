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
    shown = re.findall(r"^> \S+\)(\S+)$|^(->.*)|^('0x.*')$", PAGE, re.M)
    assert len(shown) == 5 and all("".join(one) in done.stdout for one in shown)

"""A log is explained where there is no numpy, no terminal library and no disassembler, as in a browser."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import io, sys
for name in ("numpy", "rich", "typer", "unicorn", "llvmlite"):
    sys.modules[name] = None
import fivefold.explain
assert "capstone" not in sys.modules
log = "BUG: kernel NULL pointer dereference, address: 0000000000000058\\n#PF: error_code(0x0000) - not-present page\\n"
print(fivefold.explain.explain(io.BytesIO(log.encode())).headline)
"""


def test_explains_without_numpy() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "Null pointer dereference: read at offset 0x58 (likely)\n"

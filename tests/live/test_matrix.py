"""Debian's kernel through `fivefold matrix`: the cells that each commit is worth."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from fivefold.machine import available

pytestmark = pytest.mark.qemu

MAIN = "from fivefold.cli.main import main; main()"


@pytest.fixture(scope="module", autouse=True)
def _engine() -> None:
    if (reason := available("qemu")) is not None:
        pytest.skip(reason)


def matrix(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", MAIN, "matrix", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)


def test_quick(package: Any) -> None:
    """Four cells, each in the mode that is promised, with every check."""
    done = matrix(str(package.kernel), "--preset", "quick", "--json")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    found = json.loads(done.stdout)
    assert found["schema"] == "fivefold.matrix/1" and found["ok"]
    assert [(cell["id"], cell["mode"], cell["outcome"]) for cell in found["cells"]] == [
        ("la57", "la57", "ready"),
        ("la48", "la48", "ready"),
        ("la57-no5lvl", "la48", "ready"),
        ("la57-nokaslr", "la57", "ready"),
    ]
    for cell in found["cells"]:
        names = {check["name"] for check in cell["checks"] if check["ok"]}
        assert {"mode", "areas", "kallsyms-page_offset_base", "dump-against-info-tlb", "audit", "stats"} <= names
        assert cell["qemu"].startswith("qemu-system-x86_64 ")

"""The steps of integrations/ci on Debian's kernel: booted in both modes, audited, reported."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

CI = Path(__file__).parents[2] / "integrations" / "ci"


def audit_boot(kernel: Path, place: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    fivefold = str(Path(sys.executable).with_name("fivefold"))
    return subprocess.run(
        ["sh", str(CI / "audit_boot.sh"), str(kernel), str(place / "out")],
        capture_output=True,
        text=True,
        env=os.environ | {"FIVEFOLD": fivefold, "TMPDIR": str(place), "URI": ".config"} | environment,
        timeout=400,
    )


@pytest.mark.qemu
def test_both_modes_are_audited(package, tmp_path):
    done = audit_boot(package.kernel, tmp_path)
    out = tmp_path / "out"

    assert done.returncode == 0, done.stdout + done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    for mode, levels in (("la57", "la57, 5 levels"), ("la48", "la48, 4 levels")):
        sarif = json.loads((out / f"{mode}.sarif").read_text())
        assert sarif["version"] == "2.1.0"
        assert len(sarif["runs"][0]["tool"]["driver"]["rules"]) >= 20
        assert ElementTree.parse(out / f"{mode}.xml").getroot().tag == "testsuite"
        assert levels in (out / f"{mode}.txt").read_text()


@pytest.mark.qemu
def test_a_kernel_that_does_not_come_up_shows_its_console(package, tmp_path):
    done = audit_boot(package.kernel, tmp_path, TIMEOUT="1")

    assert done.returncode == 2
    assert done.stderr.count("did not come to its end") == 2
    assert [path.name for path in tmp_path.iterdir()] == ["out"]

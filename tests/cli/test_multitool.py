"""SARIF files are what code scanning takes, by the word of Microsoft's checker of them (Sarif.Multitool).

FIVEFOLD_MULTITOOL is its path; `.ci/run` installs it by hash, from `.ci/multitool`, and requires it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

TOOL = os.environ.get("FIVEFOLD_MULTITOOL") or shutil.which("Sarif.Multitool")
GUESTS = Path(__file__).parents[1] / "data" / "guests"

pytestmark = pytest.mark.skipif(
    TOOL is None and not os.environ.get("FIVEFOLD_REQUIRE_MULTITOOL"),
    reason="Sarif.Multitool is not here; FIVEFOLD_MULTITOOL may say where (npm ci in .ci/multitool)",
)


def complaints(folder: Path, *names: str) -> list[str]:
    """What the checker says about the files *names*: lines that have a severity."""
    assert TOOL is not None, "FIVEFOLD_MULTITOOL is required here"
    done = subprocess.run(
        [TOOL, "validate", *names, "--rule-kind", "Sarif;Gh;Ghas"],
        cwd=folder,
        env=os.environ | {"DOTNET_SYSTEM_GLOBALIZATION_INVARIANT": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert f"Done. {len(names)} files scanned." in done.stdout, done.stdout + done.stderr
    return [line for line in done.stdout.splitlines() if ": error " in line or ": warning " in line]


def test_the_checker_has_nothing_to_say(fivefold: Callable[..., Any], tmp_path: Path) -> None:
    """Of findings, exceptions, rules that were not asked, a strange name; of a file without help it has."""
    odd = tmp_path / "gäst \x1b[31m%41 <&>.elf.xz"
    shutil.copy(GUESTS / "plain-la57-kaslr.elf.xz", odd)
    policy = tmp_path / "policy.toml"
    policy.write_text('schema = "fivefold.policy/1"\n[rules]\nsmep-off = "note"\nwx-user = "off"\n')
    runs = {
        "all.sarif": [GUESTS / "kasan-la57-nokaslr.elf.xz", "--all-roots"],
        "policy.sarif": [odd, "--policy", policy],
        "named.sarif": [odd, "--sarif-uri", "kernel/con fig 5%", "--as-if", "smep=1,smap=1,wp=0,nxe=0"],
    }
    for name, words in runs.items():
        done = fivefold("audit", *words, "--format", "sarif")
        assert done.status in (0, 1), done.err
        (tmp_path / name).write_text(done.out)
    (tmp_path / "broken.sarif").write_text((tmp_path / "all.sarif").read_text().replace('"help"', '"hlp"'))
    told = complaints(tmp_path, *runs, "broken.sarif")
    assert [line for line in told if "broken.sarif" not in line] == []
    assert any("error GH2012" in line for line in told)

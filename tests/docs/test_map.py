"""Every file of the package is in a map: docs/map.md, or docs/kernel.md for the kernel's."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

ROOT = Path(__file__).parents[2]
KERNEL = ROOT / "src" / "fivefold" / "kernel"


def run_map(root: Path, *words: str) -> int:
    return subprocess.run([sys.executable, root / ".ci" / "map", *words], check=False).returncode


def test_the_map_is_up_to_date() -> None:
    assert run_map(ROOT, "--check") == 0, "run .ci/map"


def test_a_file_without_a_line_is_noticed(tmp_path: Path) -> None:
    for folder in (".ci", "docs", "src", "bench"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "src" / "fivefold" / "survey" / "guest" / "new.py").write_text('"""Something new."""\n')
    assert run_map(tmp_path, "--check") == 1
    assert run_map(tmp_path) == 0
    assert "| `new.py` | Something new |" in (tmp_path / "docs" / "map.md").read_text()


def test_every_file_says_what_it_is_for() -> None:
    text = (ROOT / "docs" / "map.md").read_text(encoding="utf-8")
    assert not re.findall(r"^\| `[^`]+` \|  \|$|^\.$", text, re.MULTILINE)


def test_the_kernel_s_map_names_every_file() -> None:
    text = (ROOT / "docs" / "kernel.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`([\w/*]+\.(?:py|S))`", text))
    files = {path.relative_to(KERNEL).as_posix() for path in KERNEL.rglob("*.[pS]*") if path.suffix in (".py", ".S")}
    missing = {file for file in files if not any(fnmatch(file, name) for name in named)}
    assert {file for file in missing if not file.endswith("__init__.py")} == set()

"""The table of mistakes in the docs names tests that exist, and no test named after a mistake is missing there."""

from __future__ import annotations

import re
from pathlib import Path

TESTS = Path(__file__).parents[1]
TABLE = (TESTS.parent / "docs" / "mistakes.md").read_text(encoding="utf-8")
DEFINED = re.compile(r"^def (test_\w+)", re.MULTILINE)


def defined(*files: str) -> set[str]:
    texts = (path.read_text(encoding="utf-8") for file in files for path in TESTS.glob(file))
    return {name for text in texts for name in DEFINED.findall(text)}


def test_every_test_in_the_table_exists() -> None:
    files = [
        str(path.relative_to(TESTS)) for folder in ("kernel", "boot") for path in (TESTS / folder).rglob("test_*.py")
    ]
    named = set(re.findall(r"`(test_\w+)`", TABLE))
    assert len(named) > 40
    assert named <= defined(*files)


def test_every_test_of_a_mistake_is_in_the_table() -> None:
    parts = ("kaslr", "move", "kasan", "sync", "user", "free", "syscall", "ident_map", "kexec", "hibernate", "mistakes")
    files = [*(f"kernel/**/test_{part}.py" for part in parts), "kernel/test_invariants.py"]
    mistakes = defined(*files, "boot/test_mistakes.py", "boot/options/test_kexec.py")
    assert {name for name in mistakes if re.match(r"test_(rfc|rs|inv)_", name)} <= set(
        re.findall(r"`(test_\w+)`", TABLE)
    )

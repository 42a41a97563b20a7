from __future__ import annotations

import doctest
from importlib import import_module
from pathlib import Path

import pytest

from fivefold.arch.registers.control import _ADDRESS_RULES, _RULES_OF

PAGE = Path(__file__).parents[2] / "docs" / "arch.md"
MODULES = (
    *("access", "accesses", "build", "cpu", "entry", "exceptions", "history", "linear", "modes", "regions", "state"),
    *("walk", "registers.control", "registers.msrs", "registers.names"),
)


def test_the_page_runs_as_shown() -> None:
    failed, tried = doctest.testfile(str(PAGE), module_relative=False)

    assert (failed, tried > 10) == (0, True)


def test_the_page_names_every_rule() -> None:
    text = PAGE.read_text(encoding="utf-8")
    names = {rule.name for rules in (*_RULES_OF.values(), _ADDRESS_RULES) for rule in rules}

    assert [name for name in sorted(names) if name not in text] == []


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings(name: str) -> None:
    failed, _ = doctest.testmod(import_module(f"fivefold.arch.{name}"))

    assert failed == 0

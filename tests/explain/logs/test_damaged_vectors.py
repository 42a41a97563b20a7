"""The vectors, damaged at random: a few of what ``bench/damaged_logs.py`` does for long."""

from __future__ import annotations

import importlib.util
import random
import sys
from pathlib import Path
from typing import Any

import pytest

PATH = Path(__file__).parents[3] / "bench" / "damaged_logs.py"
ROUNDS = 5


def load() -> Any:
    spec = importlib.util.spec_from_file_location("damaged_logs", PATH)
    assert spec and spec.loader
    module = sys.modules.setdefault("damaged_logs", importlib.util.module_from_spec(spec))
    spec.loader.exec_module(module)
    return module


bench = load()
vectors = bench.test_vectors.vectors()


@pytest.mark.parametrize("vector", vectors[::2], ids=lambda vector: vector.name)
def test_nothing_wrong_is_said_of_a_damaged_log(vector: Any) -> None:
    truth = bench.truth_of(vector.name, vector.text)
    if truth is None or vector.name.startswith(bench.UNFIT):
        return
    chance = random.Random(vector.name)
    for _ in range(ROUNDS):
        text, how = bench.damaged(chance, truth)
        wrong = bench.check(text, (truth,))
        assert wrong is None, f"{wrong} [{how}]\n{text}"


def test_what_is_wrong() -> None:
    """The judge itself: another mode, rule, level or address, and more certainty, are wrong."""
    text = next(one.text for one in vectors if one.name == "the kernel says NX")
    truth = bench.truth_of("NX", text)
    assert bench.check(text, (truth,)) is None
    for name, value in (("rule", "smep"), ("address", 0x1000), ("confidence", "likely")):
        assert bench.check(text, (truth._replace(**{name: value}),))
    assert bench.check(text, (truth._replace(rule="smep"), truth)) is None

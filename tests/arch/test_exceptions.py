from __future__ import annotations

import pytest

from fivefold.arch import HAS_ERROR_CODE, Escalation, Vector, escalate

CLASSES: dict[str, tuple[int | None, ...]] = {
    "none": (None,),
    "benign": (1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 28, 32, 255),
    "contributory": (0, 10, 11, 12, 13, 21, 29, 30),
    "page": (14, 20),
    "double": (8,),
}


def test_escalation(escalation_vector: list[str]) -> None:
    first_class, second_class, want = escalation_vector
    for first in CLASSES[first_class]:
        for second in CLASSES[second_class]:
            assert second is not None
            assert escalate(first, second) is Escalation[want], (first, second)


def test_every_pair_of_classes_has_a_vector() -> None:
    named = {vector for members in CLASSES.values() for vector in members if vector is not None and vector < 32}

    assert named == set(Vector)


def test_a_triple_fault_step_by_step() -> None:
    """A page fault whose handler page-faults, and whose double-fault handler does too."""
    assert escalate(None, Vector.PF) is Escalation.SERIAL
    assert escalate(Vector.PF, Vector.PF) is Escalation.DOUBLE
    assert escalate(Vector.DF, Vector.PF) is Escalation.TRIPLE


def test_a_double_fault_does_not_strike() -> None:
    with pytest.raises(ValueError, match=r"^a double fault is not raised on its own; give the exception"):
        escalate(None, 8)


def test_error_codes() -> None:
    assert {vector.name for vector in HAS_ERROR_CODE} == {
        "DF", "TS", "NP", "SS", "GP", "PF", "AC", "CP", "VC", "SX",
    }  # fmt: skip

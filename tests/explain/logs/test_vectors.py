"""Each kind of log, by the vectors in ``tests/data/logs/vectors.txt``."""

from __future__ import annotations

import io
from pathlib import Path
from typing import NamedTuple

import pytest

from fivefold.errors import FormatError
from fivefold.explain import explain

VECTORS = Path(__file__).parents[2] / "data" / "logs" / "vectors.txt"


class LogVector(NamedTuple):
    """A log and what is to be said of it."""

    name: str
    expected: list[str]
    words: str
    text: str


def vectors() -> list[LogVector]:
    found = []
    for part in VECTORS.read_text().split("\n=== ")[1:]:
        head, _, text = part.partition("\n")
        name, expected, words = (field.strip() for field in head.split("|"))
        found.append(LogVector(name, expected.split(), words, text.strip("\n") + "\n"))
    return found


@pytest.mark.parametrize("vector", vectors(), ids=lambda vector: vector.name)
def test_vector(vector: LogVector) -> None:
    if vector.expected == ["refused"]:
        with pytest.raises(FormatError) as caught:
            explain(io.BytesIO(vector.text.encode()))
        assert vector.words in str(caught.value)
        return
    found = explain(io.BytesIO(vector.text.encode()))
    cause = found.cause
    access = found.guilty.access if found.guilty else None
    address = None if cause.address is None else f"{cause.address:016x}"
    level = cause.level.name if cause.level else None
    got = [found.mode, found.outcome, cause.rule, level, address, access, cause.confidence]
    wanted = [None if field == "-" else field for field in vector.expected]
    assert [None if w == "*" else g for g, w in zip(got, wanted, strict=True)] == [
        None if w == "*" else w for w in wanted
    ]
    stories = [one.finding.sentence for one in found.exceptions] + [one.delivery or "" for one in found.exceptions]
    said = "\n".join(
        (found.headline, cause.sentence, *cause.evidence, *cause.legal, *found.unknown, *found.remarks, *stories)
    )
    assert vector.words.lower() in said.lower(), said

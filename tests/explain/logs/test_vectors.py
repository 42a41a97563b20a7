"""Each kind of log, by the vectors in ``tests/data/logs/vectors.txt``.

``reports.txt`` beside them pins what is printed of each with ``--verbose``. After a change of words that was meant,
``python tests/explain/logs/test_vectors.py`` writes it again; the difference is then to be read, line by line.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import NamedTuple

import pytest

from fivefold.errors import FormatError
from fivefold.explain import explain
from fivefold.report.text.explain import explanation_lines

VECTORS = Path(__file__).parents[2] / "data" / "logs" / "vectors.txt"
REPORTS = VECTORS.with_name("reports.txt")


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


def reports() -> dict[str, str]:
    parts = REPORTS.read_text().split("\n=== ")[1:]
    return {name: text.strip("\n") for name, _, text in (part.partition("\n") for part in parts)}


def report(vector: LogVector) -> str:
    try:
        found = explain(io.BytesIO(vector.text.encode()))
    except FormatError as error:
        return f"refused: {error}"
    raised = [
        f"{one.name} line {one.raised.line} cpl {one.raised.cpl} user {one.raised.by_user} during {one.raised.during}"
        for one in found.exceptions
    ]
    lines = "\n".join(line.rstrip() for line in explanation_lines(found, verbose=True))
    return "\n".join((lines, "", f"area {found.cause.area}", *raised))


@pytest.mark.parametrize("vector", vectors(), ids=lambda vector: vector.name)
def test_report(vector: LogVector) -> None:
    assert report(vector) == reports()[vector.name]


if __name__ == "__main__":
    texts = "\n".join(f"=== {vector.name}\n{report(vector)}\n" for vector in vectors())
    REPORTS.write_text(f"# What is printed of each vector with --verbose; written by test_vectors.py.\n\n{texts}")

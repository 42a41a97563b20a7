"""What is read of each log in ``tests/data/logs/vectors.txt``, number by number: a report shows a part of it only.

``read.txt`` beside them pins it. After a change that was meant, ``python tests/explain/logs/test_traces.py`` writes it
again; the difference is then to be read, line by line, with the log beside it.
"""

from __future__ import annotations

import dataclasses
import enum
import io
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from fivefold.errors import FormatError
from fivefold.explain.logs.read_log import read_log

VECTORS = Path(__file__).parents[2] / "data" / "logs" / "vectors.txt"
READ = VECTORS.with_name("read.txt")


class Log(NamedTuple):
    """A log that is no vector of refusal."""

    name: str
    text: str


def logs() -> list[Log]:
    parts = (part.partition("\n") for part in VECTORS.read_text().split("\n=== ")[1:])
    split = [(head.split("|"), text) for head, _, text in parts]
    return [Log(head[0].strip(), text.strip("\n") + "\n") for head, text in split if head[1].strip() != "refused"]


def shown(value: object) -> str:
    """*value* on one line, without what is as always."""
    if value is None or isinstance(value, bool | str | enum.Enum):
        return str(value)
    if isinstance(value, int):
        return hex(value)
    if isinstance(value, bytes):
        return value.hex(" ")
    if isinstance(value, dict):
        return " ".join(f"{key}={shown(each)}" for key, each in sorted(value.items()))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return f"({' '.join(f'{name}={text}' for name, text in fields(value))})"
    if isinstance(value, tuple):
        return f"[{', '.join(map(shown, value))}]"
    return str(value)


def fields(value: object) -> Iterator[tuple[str, str]]:
    """What *value* says, by the names of its fields."""
    assert dataclasses.is_dataclass(value)
    for field in dataclasses.fields(value):
        got = getattr(value, field.name)
        if got is not None and got is not False and got not in (field.default, (), {}):
            yield field.name, shown(got)


def read(log: Log) -> str:
    """Everything that is read of *log*, a field on each line."""
    try:
        trace = read_log(io.BytesIO(log.text.encode()), "the log")
    except FormatError as error:
        return f"refused: {error}"
    lines = [f"{name} {text}" for name, text in fields(trace) if name not in ("source", "exceptions")]
    for one in trace.exceptions:
        is_at_end = one.cpu is not None and one.cpu is trace.cpu
        own = dataclasses.replace(one, cpu=None) if is_at_end else one
        words = [*(f"{name}={text}" for name, text in fields(own)), *["cpu=that at the end"] * is_at_end]
        lines.append(f"exception {' '.join(words)}")
    return "\n".join(lines)


def pinned() -> dict[str, str]:
    parts = READ.read_text().split("\n=== ")[1:]
    return {name: text.strip("\n") for name, _, text in (part.partition("\n") for part in parts)}


@pytest.mark.parametrize("log", logs(), ids=lambda log: log.name)
def test_read(log: Log) -> None:
    assert read(log) == pinned()[log.name]


if __name__ == "__main__":
    texts = "\n".join(f"=== {log.name}\n{read(log)}\n" for log in logs())
    READ.write_text(f"# What is read of each vector; written by test_traces.py.\n\n{texts}")

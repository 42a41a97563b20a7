"""What a peer is asked about vectors and how it answers; runs in the Python that has the peer, and needs no more.

A request is a JSON file: ``raw`` and ``core`` are files of the same zeros, in which physical address n is byte n and
byte ``core_head`` + n; ``tables`` are the vectors, each with the words of its memory, its root, levels and addresses.
The words of one vector are in the file while it is asked, and no other's.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

Answer = int | str | None
"""A physical address; None where the walker finds none; text where it refuses to look."""


def request() -> dict[str, Any]:
    """The questions, from the file that the first argument names."""
    with open(sys.argv[1]) as file:  # noqa: PTH123 - the peer's Python is to load as little as may be
        asked: dict[str, Any] = json.load(file)
    return asked


@contextmanager
def written(path: str, words: list[list[int]], head: int = 0) -> Iterator[None]:
    """The file at *path* with *words* of (address, value) in it, and zeros there again afterwards."""
    file = os.open(path, os.O_WRONLY)
    try:
        for at, value in words:
            os.pwrite(file, value.to_bytes(8, "little"), head + at)
        yield
        for at, _ in words:
            os.pwrite(file, bytes(8), head + at)
    finally:
        os.close(file)


def answer(one: Callable[[], int | None], none: type[Exception] | tuple[type[Exception], ...]) -> Answer:
    """What *one* returns; None where it raises *none*, and the words of any other exception of the peer's."""
    try:
        return one()
    except none:
        return None
    except Exception as error:  # noqa: BLE001 - a peer may raise anything of its own: that is what is compared
        return f"{type(error).__name__}: {error}".splitlines()[0][:100]


def tell(version: str, answers: list[list[Answer]]) -> None:
    """Print the answers on one line: for each vector one for each address."""
    print(json.dumps({"version": version, "answers": answers}))

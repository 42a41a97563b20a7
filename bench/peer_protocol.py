"""What a peer is asked and how it answers; runs in the Python that has the peer, so it needs nothing but Python.

A request is a JSON file (see `peer_images.Image.request`), an answer the last line on the standard output. Each
question is asked once, since some remember their answers, and timed by the processor time of all threads of the
process; opening is not counted.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any


def request() -> dict[str, Any]:
    """The questions, from the file that the first argument names."""
    with open(sys.argv[1]) as file:  # noqa: PTH123 - the peer's Python is to load as little as may be
        asked: dict[str, Any] = json.load(file)
    return asked


class Answers:
    """The answers and times of one peer, printed by `tell`."""

    def __init__(self, version: str) -> None:
        self._told: dict[str, Any] = {"version": version, "seconds": {}}

    def ask(self, question: str, run: Callable[[], Any]) -> None:
        """Keep what *run* says to *question*, and its time."""
        began = time.process_time()
        self._told[question] = run()
        self._told["seconds"][question] = time.process_time() - began

    def note(self, text: str) -> None:
        """Something to be told beside the answers."""
        self._told["note"] = text

    def tell(self) -> None:
        """Print all of it on one line."""
        print(json.dumps(self._told))


def each(
    addresses: list[int], one: Callable[[int], int | None], refusals: type[Exception] | tuple[type[Exception], ...]
) -> list[int | None]:
    """What *one* says of each address; None where it refuses."""
    found: list[int | None] = []
    for va in addresses:
        try:
            found.append(one(va))
        except refusals:
            found.append(None)
    return found


def word(data: bytes) -> int | None:
    """Eight bytes as a number, None if there are fewer."""
    return int.from_bytes(data, "little") if len(data) == 8 else None

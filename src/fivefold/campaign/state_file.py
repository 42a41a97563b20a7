"""The state of a campaign in a file: a line of JSON for the plan, then one for each part that is done.

Lines are only added, so that a stop at any moment costs at most the last one, which the next run cuts off.
"""

from __future__ import annotations

import fcntl
import json
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Final

from fivefold.campaign.parts import CampaignError, PartDone
from fivefold.errors import cannot

SCHEMA: Final = "fivefold.campaign/1"


class StateFile:
    """What is done of one plan. Only the file holds it: `done` reads it part by part."""

    def __init__(self, path: Path, file: IO[bytes]) -> None:
        self._path, self._file = path, file

    def done(self) -> Iterator[PartDone]:
        """The parts that the file has. Raises `CampaignError` where a line is none of a state."""
        self._file.seek(0)
        self._file.readline()
        for line in self._file:
            yield self._part(line)

    def add(self, part: PartDone) -> None:
        """Write a part that is done."""
        self._file.seek(0, os.SEEK_END)
        self._line({"part": part.name, "result": part.result})

    def begin(self, plan: Mapping[str, Any]) -> None:
        """Write the plan into an empty file, or compare it with the file's; cut a last line that has no end."""
        self._file.seek(0)
        first = self._file.readline()
        if not first.endswith(b"\n"):
            if first and not self._head(plan).startswith(first):
                raise CampaignError(f"{self._path} is no state of a campaign")
            self._file.truncate(0)
            self._file.seek(0)
            self._file.write(self._head(plan))
            self._file.flush()
            return
        self._compare(first, plan)
        self._cut()

    def _compare(self, first: bytes, plan: Mapping[str, Any]) -> None:
        try:
            found = json.loads(first)
            schema, kept = found["schema"], found["plan"]
        except (ValueError, KeyError, TypeError) as error:
            raise CampaignError(f"{self._path} is no state of a campaign") from error
        if schema != SCHEMA:
            raise CampaignError(f"{self._path} is no state of a campaign: its schema is {schema!r}, not {SCHEMA}")
        wanted = json.loads(json.dumps(dict(plan)))
        if kept != wanted:
            names = [name for name in {**kept, **wanted} if kept.get(name) != wanted.get(name)]
            raise CampaignError(f"{self._path} is the state of another campaign: {', '.join(names)} differ")

    def _cut(self) -> None:
        """Cut off a last line that was not written to its end."""
        end = 0
        self._file.seek(0)
        for line in self._file:
            end += len(line) if line.endswith(b"\n") else 0
        self._file.truncate(end)

    def _part(self, line: bytes) -> PartDone:
        try:
            found = json.loads(line)
            return PartDone(found["part"], found["result"])
        except (ValueError, KeyError, TypeError) as error:
            raise CampaignError(f"{self._path} is damaged: a line is no part of a campaign") from error

    @staticmethod
    def _head(plan: Mapping[str, Any]) -> bytes:
        return json.dumps({"schema": SCHEMA, "plan": dict(plan)}).encode() + b"\n"

    def _line(self, value: object) -> None:
        self._file.write(json.dumps(value).encode() + b"\n")
        self._file.flush()


class NoState(StateFile):
    """A campaign that keeps nothing."""

    def __init__(self) -> None:
        """Nothing to open."""

    def done(self) -> Iterator[PartDone]:
        """No part."""
        return iter(())

    def add(self, part: PartDone) -> None:
        """Forget it."""


@contextmanager
def open_state(path: Path | None, plan: Mapping[str, Any]) -> Iterator[StateFile]:
    """The state of *plan* in *path*, which one campaign at a time may have open; without *path* nothing is kept."""
    if path is None:
        yield NoState()
        return
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise cannot("open", str(path), error) from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise CampaignError(f"{path} is no file that can keep a state")
    with os.fdopen(descriptor, "r+b") as file:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise CampaignError(f"another campaign has {path} open") from error
        state = StateFile(path, file)
        state.begin(plan)
        yield state

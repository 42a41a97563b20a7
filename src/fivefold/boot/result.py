"""What a boot comes to: values that the library returns and the command line prints."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from fivefold.notebook import html_table
from fivefold.units import hex64

SCHEMA = "fivefold.boot/1"


class Check(NamedTuple):
    """One thing that was checked, by the guest itself or from outside; *detail* says more, mostly when it failed."""

    name: str
    by: Literal["guest", "outside"]
    ok: bool
    detail: str = ""

    @classmethod
    def outside(cls, name: str, problem: str) -> Check:
        """A check from outside, which passed if *problem* is empty."""
        return cls(name, "outside", not problem, problem)


class Skipped(NamedTuple):
    """What an engine or CPU cannot do, and why."""

    name: str
    reason: str


class Bounds(NamedTuple):
    """Where an area lies: *start* inclusive, *end* exclusive."""

    start: int
    end: int


@dataclass(frozen=True)
class Run:
    """One boot on one CPU. *mode* is None when the guest did not get far enough to have one."""

    cpu: str
    engine: str
    entry: str
    mode: str | None
    levels: int | None
    reason: str
    event: str
    areas: Mapping[str, Bounds]
    variables: Mapping[str, int]
    facts: Mapping[str, int]
    checks: tuple[Check, ...]
    skipped: tuple[Skipped, ...]
    instructions: int | None
    seconds: float
    output: str = field(repr=False, default="")
    story: str = field(repr=False, default="")
    """Why the guest did not come to its end, where an explanation was requested."""
    engine_reason: str = ""
    """Why this engine was chosen, where none was named and it is not the usual one."""

    @property
    def ok(self) -> bool:
        """Whether every check passed."""
        return bool(self.checks) and all(check.ok for check in self.checks)

    def to_json(self) -> dict[str, object]:
        """The run as the schema `fivefold.boot/1` has it."""
        plain = ("pgdir_shift", "ptrs_per_p4d")
        return {
            "cpu": self.cpu,
            "engine": self.engine,
            **({"engine_reason": self.engine_reason} if self.engine_reason else {}),
            "entry": self.entry,
            "mode": self.mode,
            "levels": self.levels,
            "reason": self.reason,
            "ok": self.ok,
            "areas": {name: {"start": hex64(a.start), "end": hex64(a.end)} for name, a in self.areas.items()},
            "variables": {k: v if k in plain else hex64(v) for k, v in self.variables.items()},
            "facts": dict(self.facts),
            "checks": [check._asdict() for check in self.checks],
            "instructions": self.instructions,
            "skipped": [item._asdict() for item in self.skipped],
            "event": self.event,
            "seconds": round(self.seconds, 3),
            **({"story": self.story} if self.story else {}),
        }


@dataclass(frozen=True)
class BootReport:
    """All runs of one command, in the order asked for, and the runs that were left out."""

    runs: tuple[Run, ...]
    skipped: tuple[Skipped, ...]

    def _repr_html_(self) -> str:
        rows = [
            (
                one.cpu,
                one.engine,
                one.mode,
                one.levels,
                sum(check.ok for check in one.checks),
                len(one.checks),
                one.event,
            )
            for one in self.runs
        ]
        columns = ("CPU", "engine", "mode", "levels", "checks passed", "of", "how it ended")
        return html_table("one image, booted", columns, rows)

    @property
    def ok(self) -> bool:
        """Whether something ran, and all of it passed."""
        return bool(self.runs) and all(run.ok for run in self.runs)

    def to_json(self) -> dict[str, object]:
        """The whole as the schema `fivefold.boot/1` has it."""
        return {
            "schema": SCHEMA,
            "ok": self.ok,
            "runs": [run.to_json() for run in self.runs],
            "skipped": [item._asdict() for item in self.skipped],
        }

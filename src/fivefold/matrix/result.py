"""What a matrix comes to, as values that travel as JSON: runs of cells, and the whole table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, Self

SCHEMA: Final = "fivefold.matrix/1"

Outcome = Literal[
    "ready", "worker-lost", "triple-fault", "reset", "panic", "hang", "wrong-mode", "not-a-kernel"
]  # fmt: skip
OUTCOMES: Final[tuple[Outcome, ...]] = (
    "ready", "worker-lost", "triple-fault", "reset", "panic", "hang", "wrong-mode", "not-a-kernel",
)  # fmt: skip


@dataclass(frozen=True)
class CellCheck:
    """Something that was looked at, by name."""

    name: str
    ok: bool
    detail: str = ""

    def to_json(self) -> dict[str, object]:
        """As the schema has it."""
        return {"name": self.name, "ok": self.ok, "detail": self.detail}


@dataclass(frozen=True)
class RunCause:
    """Why a run failed: a rule of `explain`, or ``panic``, ``oops`` and the like; the symbol is the guilty code's."""

    rule: str
    sentence: str
    symbol: str | None = None

    def to_json(self) -> dict[str, object]:
        """As the schema has it."""
        return {"rule": self.rule, "sentence": self.sentence, "symbol": self.symbol}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """The way back."""
        return cls(data["rule"], data["sentence"], data["symbol"])

    @property
    def story(self) -> tuple[str, str | None, str]:
        """What makes two failures the same: the rule, the symbol, and the sentence without its numbers."""
        words = [word for word in self.sentence.split() if not any(c.isdigit() for c in word)]
        return self.rule, self.symbol, " ".join(words)


@dataclass(frozen=True)
class CellRun:
    """One run of one cell. *ok*: it is ready, in the mode that was promised, and all checks hold."""

    outcome: Outcome
    mode: str | None
    checks: tuple[CellCheck, ...] = ()
    cause: RunCause | None = None
    seconds: float = 0.0
    release: str | None = None
    engine: str | None = None
    kept: str | None = None

    @property
    def ok(self) -> bool:
        """Whether all is as promised."""
        return self.outcome == "ready" and all(check.ok for check in self.checks)

    def to_json(self) -> dict[str, Any]:
        """For the way between processes, and for the state file."""
        return {
            "outcome": self.outcome, "mode": self.mode, "checks": [check.to_json() for check in self.checks],
            "cause": self.cause and self.cause.to_json(), "seconds": self.seconds, "release": self.release,
            "engine": self.engine, "kept": self.kept,
        }  # fmt: skip

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """The way back; `KeyError`, `TypeError` or `ValueError` for what is no run."""
        if data["outcome"] not in OUTCOMES:
            raise ValueError(f"unknown outcome {data['outcome']!r}")
        return cls(
            data["outcome"],
            data["mode"],
            tuple(CellCheck(row["name"], bool(row["ok"]), row["detail"]) for row in data["checks"]),
            RunCause.from_json(data["cause"]) if data["cause"] else None,
            float(data["seconds"]),
            data["release"],
            data["engine"],
            data["kept"],
        )


def lost(sentence: str, rule: str = "worker-lost") -> CellRun:
    """A run that what ran it did not live to tell of."""
    return CellRun("worker-lost", None, cause=RunCause(rule, sentence))


@dataclass(frozen=True)
class KernelRow:
    """A kernel of the table."""

    path: str
    release: str | None
    sha256: str | None

    def to_json(self) -> dict[str, object]:
        """As the schema has it."""
        return {"path": self.path, "release": self.release, "sha256": self.sha256}


def grouped_causes(runs: Iterable[CellRun]) -> list[tuple[RunCause, int]]:
    """The causes of failures with how many runs each has, the commonest first; causes with one story are one."""
    first: dict[object, RunCause] = {}
    count: dict[object, int] = {}
    for run in runs:
        if run.cause is not None and not run.ok:
            first.setdefault(run.cause.story, run.cause)
            count[run.cause.story] = count.get(run.cause.story, 0) + 1
    return sorted(((first[story], count[story]) for story in first), key=lambda row: (-row[1], row[0].sentence))


def kept_at(run: CellRun, folder: str) -> CellRun:
    """The same, with what was kept of it in *folder*."""
    return replace(run, kept=folder)

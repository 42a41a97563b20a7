"""The answer, as values: what `fivefold.explain` returns and what ``--json`` prints."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from fivefold.arch import Level, Step
from fivefold.arch.walk import STEP_COLUMNS, step_cells
from fivefold.explain.address_area import AddressArea
from fivefold.explain.faults.finding import Certainty, FaultFinding
from fivefold.explain.logs.trace import Outcome, RaisedException
from fivefold.explain.rules.error_codes import decode_error
from fivefold.explain.rules.ruling import MANUAL, RuleName, is_unplaced
from fivefold.notebook import html_table
from fivefold.units import hex64

SCHEMA: Final = "fivefold.explain/1"


def _hex(value: int | None) -> str | None:
    return None if value is None else hex64(value)


def step_json(step: Step) -> dict[str, object]:
    """One entry of a walk, as the schema has it."""
    entry = step.entry
    return {
        "level": entry.level.name,
        "index": (step.at & 0xFFF) >> 3,
        "at": None if is_unplaced(step) else hex64(step.at),
        "entry": hex64(entry.raw),
        "present": entry.is_present,
        "leaf": entry.is_present and entry.is_leaf,
        "rights": "".join(letter if right else "-" for letter, right in zip("wux", step.rights, strict=True)),
    }


@dataclass(frozen=True, slots=True)
class ExplainedException:
    """One exception of the story. *delivery* says why its handler could not run, or how it did."""

    raised: RaisedException
    finding: FaultFinding
    place: AddressArea | None
    delivery: str | None = None

    @property
    def name(self) -> str:
        """The manual's mnemonic."""
        return self.raised.name

    @property
    def address(self) -> int | None:
        """The linear address that was refused."""
        return self.finding.va if self.finding.va is not None else self.raised.cr2

    @property
    def access(self) -> str | None:
        """``read``, ``write`` or ``fetch``; None where it is not known."""
        return self.finding.how.kind.value if self.finding.how else None

    def to_json(self) -> dict[str, object]:
        """The exception as the schema has it."""
        raised, finding = self.raised, self.finding
        code = raised.error_code
        return {
            "vector": raised.vector,
            "name": self.name,
            "during": raised.during,
            "address": _hex(self.address),
            "access": self.access,
            "error_code": None if code is None else f"{code:#x}",
            "error_bits": [] if code is None else list(decode_error(raised.vector, code, raised.by_tcg)),
            "error_code_agrees": finding.agrees,
            "cpl": raised.cpl,
            "rip": _hex(raised.rip),
            "symbol": raised.symbol,
            "rsp": _hex(raised.rsp),
            "instruction": finding.instruction.text if finding.instruction else None,
            "operand": finding.use.text if finding.use else None,
            "software": raised.software,
            "repeats": raised.repeats,
            "rule": finding.rule,
            "level": finding.level.name if finding.level else None,
            "area": self.place.area if self.place else None,
            "place": self.place.sentence if self.place else None,
            "sentence": finding.sentence,
            "steps": [step_json(step) for step in finding.steps],
            "delivery": self.delivery,
            "remarks": list(finding.remarks),
            "line": raised.line or None,
        }


@dataclass(frozen=True, slots=True)
class FaultCause:
    """The first thing that went wrong. *legal* says what would have been legal, smallest change first."""

    rule: RuleName
    level: Level | None
    address: int | None
    area: str | None
    sentence: str
    confidence: Certainty
    evidence: tuple[str, ...] = ()
    legal: tuple[str, ...] = ()

    @property
    def manual(self) -> str:
        """The rule in the manual's words."""
        is_no_rule = self.rule == "unknown" and self.confidence == "certain"
        return "no rule of the page tables" if is_no_rule else MANUAL[self.rule]

    def to_json(self) -> dict[str, object]:
        """The cause as the schema has it."""
        return {
            "rule": self.rule,
            "level": self.level.name if self.level else None,
            "address": _hex(self.address),
            "area": self.area,
            "sentence": self.sentence,
            "confidence": self.confidence,
            "manual": self.manual,
            "evidence": list(self.evidence),
            "legal": list(self.legal),
        }


class WhatIf(NamedTuple):
    """The same access under one change. *allowed* is None where that is not known; *sentence* gives the verdict."""

    change: str
    allowed: bool | None
    sentence: str
    steps: tuple[Step, ...] = ()

    def to_json(self) -> dict[str, object]:
        """The answer as the schema has it."""
        steps = [step_json(step) for step in self.steps]
        return {"change": self.change, "allowed": self.allowed, "sentence": self.sentence, "steps": steps}


@dataclass(frozen=True, slots=True)
class Explanation:
    """Everything that was found out. Prints well through `fivefold.report.text.explain`.

    *mode* is ``la57``, ``la48``, another paging mode's name, or None where it is not known.
    *unknown* lists what neither log nor memory says, and what was taken in its place.
    """

    source: str
    dialect: str
    mode: str | None
    outcome: Outcome
    exceptions: tuple[ExplainedException, ...]
    cause: FaultCause
    unknown: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()
    guilty: ExplainedException | None = None
    """The exception that the cause is about, None where there is none."""
    headline: str = ""
    """One sentence: what happened, where, why."""
    places: tuple[AddressArea, ...] = ()
    what_if: tuple[WhatIf, ...] = ()
    symbols_known_from: str | None = None
    """What names were taken from, besides those that the log prints; None where nothing more is known."""
    frames: tuple[str, ...] = ()
    """The functions of the log's call trace, innermost first, as numbers where nothing names them."""

    def _repr_html_(self) -> str:
        rows = [("cause", f"{self.cause.rule}, {self.cause.confidence}"), ("mode", self.mode or "not known")]
        rows += [("outcome", self.outcome)]
        rows += [("evidence", text) for text in (*self.cause.evidence, *self.remarks)]
        rows += [("legal", text) for text in self.cause.legal]
        rows += [("not known", text) for text in self.unknown]
        steps = self.guilty.finding.steps if self.guilty is not None else ()
        walk = html_table("the walk", STEP_COLUMNS, [step_cells(step) for step in steps]) if steps else ""
        return html_table(self.headline, ("what", "value"), rows) + walk

    def to_json(self) -> dict[str, Any]:
        """The whole as the schema `fivefold.explain/1` has it."""
        return {
            "schema": SCHEMA,
            "source": self.source,
            "dialect": self.dialect,
            "mode": self.mode,
            "outcome": self.outcome,
            "headline": self.headline,
            "exceptions": [explained.to_json() for explained in self.exceptions],
            "cause": self.cause.to_json(),
            "unknown": list(self.unknown),
            "remarks": list(self.remarks),
            "addresses": [
                {"address": hex64(place.address), "area": place.area, "sentence": place.sentence}
                for place in self.places
            ],
            "what_if": [answer.to_json() for answer in self.what_if],
            "symbols_known_from": self.symbols_known_from,
            "frames": list(self.frames),
        }

    def __getitem__(self, key: str) -> Any:
        """A value of the JSON form: ``explanation["cause"]["rule"]``."""
        return self.to_json()[key]

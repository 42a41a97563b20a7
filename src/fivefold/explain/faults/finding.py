"""What was found out about one exception, and the instruction that made it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from fivefold.arch import Access, Level, Step, Vector
from fivefold.explain.logs.trace import Code, RaisedException
from fivefold.explain.rules.instruction import LONGEST, Instruction, Use, decode
from fivefold.explain.rules.ruling import RuleName, read_virtual
from fivefold.explain.rules.situation import Situation
from fivefold.units import MASK64

_INT3: Final = 0xCC

Certainty = Literal["certain", "likely", "guess"]
"""``certain``: source and rules leave nothing else. ``likely``: the evidence speaks for it, something is
inferred. ``guess``: one of several readings."""


@dataclass(frozen=True, slots=True)
class FaultFinding:
    """The refused access behind an exception. *sentence* says what was done to which address and who refused.

    *culprit* is the entry to blame, *pointer* that it leads to a missing table. *agrees* says whether
    the reported error code is the one that the tables give; None where there is nothing to compare.
    *legitimate*: raised on purpose, or without paging having a part in it. *remarks* are
    quirks and inferences, *here* is the CPU with what was inferred.
    """

    rule: RuleName
    sentence: str
    confidence: Certainty
    here: Situation
    va: int | None = None
    how: Access | None = None
    culprit: Step | None = None
    steps: tuple[Step, ...] = ()
    instruction: Instruction | None = None
    use: Use | None = None
    agrees: bool | None = None
    legitimate: bool = False
    remarks: tuple[str, ...] = ()
    named_level: Level | None = None
    """The level that the source names, where the entry itself is not known."""
    subject: str | None = None
    """What the fault is in the words of a kernel developer (``null pointer``), where it is more than its rule."""
    advice: tuple[str, ...] = ()
    """What to change, where it is not an entry or a register."""

    @property
    def level(self) -> Level | None:
        """The level of the entry to blame."""
        return self.culprit.entry.level if self.culprit else self.named_level


def _breakpoint(here: Situation, rip: int | None, printed: Code | None) -> Instruction | None:
    """The INT3 of a #BP: before RIP, which a trap leaves after its instruction; QEMU's log has RIP at it."""
    before = None if rip is None else read_virtual(here, rip - 1 & MASK64, 2)
    if before is None and printed is not None:
        before = printed.data[max(printed.at - 1, 0) : printed.at + 1] if printed.at else b"\0" + printed.data[:1]
    if before is None or _INT3 not in before:
        return None
    at = None if rip is None else rip - 1 + before.rindex(_INT3) & MASK64
    return decode(bytes([_INT3]), at, here.registers, lambda va, size: None, here.code_bits)


def instruction_at(here: Situation, raised: RaisedException, fallback: Code | None = None) -> Instruction | None:
    """The instruction at the RIP of *raised*, from memory or from what the log printed; None where neither has it."""
    rip = raised.rip if raised.rip is not None else here.registers.rip
    printed = raised.code or fallback
    if raised.vector == Vector.BP:
        return _breakpoint(here, rip, printed)
    code = None if rip is None else read_virtual(here, rip, LONGEST)
    if code is None and printed is not None:
        code = printed.from_rip
    if not code:
        return None

    def load(va: int, size: int) -> int | None:
        raw = read_virtual(here, va, size)
        return int.from_bytes(raw, "little") if raw is not None and len(raw) == size else None

    return decode(code, rip, here.registers, load, here.code_bits)

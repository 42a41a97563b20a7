"""The path of one address: every entry that the CPU reads for it, and where that ends."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace

from fivefold.arch import AddressSpace, Cause, Mapped, Rights, Step, Translation, translate, walk
from fivefold.arch.walk import STEP_COLUMNS, step_cells
from fivefold.errors import MemoryReadError
from fivefold.notebook import html_table
from fivefold.survey.guest.cpu.controls import Controls
from fivefold.units import PhysAddr, VirtAddr, hex64


@dataclass(frozen=True, slots=True, repr=False)
class Path:
    """What was read for *va*, from the root down, and what came of it.

    *by_entries* are the rights of a mapped page as the entries have them, whatever control registers make of them.
    *end* is None where the walk came to a table that is not in memory: *missing* says which.
    """

    va: VirtAddr
    steps: tuple[Step, ...]
    end: Translation | None
    missing: PhysAddr | None
    area: str | None
    by_entries: Rights | None = None

    @property
    def cause(self) -> str | None:
        """Why there is no translation, in words; None where there is one."""
        if self.end is None:
            return "table not in memory"
        return None if isinstance(self.end, Mapped) else self.end.cause.value

    @property
    def is_finding(self) -> bool:
        """Whether something is wrong with the tables, rather than nothing mapped."""
        return self.end is None or (not isinstance(self.end, Mapped) and self.end.cause is Cause.RESERVED)

    def __repr__(self) -> str:
        """The address, its area and what came of it, on one line."""
        answer = f"{hex64(self.va)}: the table at {hex64(self.missing or 0)} is not in memory"
        return f"<Path to {answer if self.end is None else self.end}{f', {self.area}' if self.area else ''}>"

    def _repr_html_(self) -> str:
        rows = [step_cells(step) for step in self.steps]
        answer = f"the table at {hex64(self.missing or 0)} is not in memory" if self.end is None else str(self.end)
        caption = f"{hex64(self.va)}{f', {self.area}' if self.area else ''}"
        return html_table(caption, STEP_COLUMNS, rows, left_out=answer)


def path_of(tables: AddressSpace, va: VirtAddr, area: str | None = None, controls: Controls | None = None) -> Path:
    """Walk to *va*; never raises for what the tables are like. Its root can be read.

    The rights of each step are what the CPU grants down to there: *controls* count, where they are given.
    """
    try:
        end = translate(tables, va)
    except MemoryReadError as error:
        steps = _granted(_readable_steps(tables, va), controls)
        return Path(va, steps, None, PhysAddr(error.pa & ~0xFFF), area)
    rights = end.rights if isinstance(end, Mapped) else None
    end = replace(end, steps=_granted(end.steps, controls))
    return Path(va, end.steps, end, None, area, rights)


def _granted(steps: tuple[Step, ...], controls: Controls | None) -> tuple[Step, ...]:
    if controls is None:
        return steps
    return tuple(step._replace(rights=controls.granted(step.rights)) for step in steps)


def _readable_steps(tables: AddressSpace, va: VirtAddr) -> tuple[Step, ...]:
    steps: list[Step] = []
    with suppress(MemoryReadError):
        steps.extend(walk(tables, va))
    return tuple(steps)

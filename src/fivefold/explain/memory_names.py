"""What a memory knows of names: the symbols that its kernel carries, its slide, and where its CPUs are."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

from fivefold.errors import FivefoldError
from fivefold.explain.logs.trace import Trace
from fivefold.explain.naming import Naming
from fivefold.explain.whereabouts import whereabouts
from fivefold.memory import CpuState, Source
from fivefold.symbols import Symbols

if TYPE_CHECKING:
    from fivefold.survey.space import Space


def seen_in(
    space: Space | None, source: Source | None, cpus: Sequence[CpuState], naming: Naming | None
) -> tuple[str, ...]:
    """Where the CPUs of a memory are, by function, and what is on their stacks."""
    if naming is None or not cpus or (space is None and source is None):
        return ()
    from fivefold.survey.space import Space

    try:
        space = space or Space(cast("Source", source))
        return whereabouts(cpus, space.names.memory.read, naming)
    except (FivefoldError, OSError):
        return ()  # no root, or tables that cannot be read


def carried_symbols(
    space: Space | None, source: Source | None, trace: Trace, cpus: Sequence[CpuState]
) -> Symbols | None:
    """The kallsyms of the kernel in memory, where an exception or a CPU at an address of a kernel could have a name."""
    rips = [raised.rip for raised in trace.exceptions] + [cpu.rip for cpu in cpus]
    if not any(rip is not None and rip >> 63 for rip in rips):
        return None
    try:
        if space is None and source is not None:
            from fivefold.survey.space import Space

            space = Space(source)
        known = None if space is None else space.symbols
        return Symbols(known.spans, known.how, is_running=True) if known else None
    except (FivefoldError, OSError):
        return None  # no root, or tables that cannot be read: nothing is named


def slide_in(space: Space | None, source: Source | None) -> int | None:
    """The slide that VMCOREINFO in memory says; None without memory, or where it does not say it."""
    if space is None and source is not None:
        from fivefold.survey.space import Space

        try:
            space = Space(source)
        except (FivefoldError, OSError):
            return None
    text = None if space is None else space.notes.facts.get("KERNELOFFSET")
    return int(text, 16) if text and re.fullmatch("[0-9a-f]{1,16}", text) else None

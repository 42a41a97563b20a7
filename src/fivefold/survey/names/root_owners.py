"""Who owns each root that was found in a memory: processes by pid and name, and the kernel's own address spaces."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Final

import numpy as np

from fivefold.arch import TABLE_SIZE, TooManyRuns
from fivefold.errors import MemoryReadError
from fivefold.memory import Source
from fivefold.survey.guest.evidence import Found
from fivefold.survey.guest.identify import MODES
from fivefold.survey.guest.roots import Confidence, Root
from fivefold.survey.names.kernel_names import KernelNames
from fivefold.survey.names.processes import Process
from fivefold.survey.space import PTI_USER_BIT, Space
from fivefold.units import PhysAddr

MOST_KERNELS: Final = 8
"""Groups of roots that are looked into: memory may hold forged ones without end."""


@dataclass(frozen=True, slots=True)
class RootOwners:
    """*processes* in the kernel's order, *labels* of roots; *symbols_known_from* and *how* say from what, or why not.

    *symbols_known_from* is None where no symbols are known.
    """

    processes: tuple[Process, ...]
    labels: dict[PhysAddr, str]
    symbols_known_from: str | None
    how: str

    def of(self, root: Root) -> tuple[Process, ...]:
        """The processes of *root*: an isolated pair has one owner. Kernel threads that borrow it come last."""
        kernel_half = root.root & ~PTI_USER_BIT if root.is_user_half else root.root
        found = [process for process in self.processes if process.root == kernel_half]
        return tuple(sorted(found, key=lambda process: process.borrowed))


def root_owners(source: Source, roots: Sequence[Root], symbol_file: str | None = None) -> RootOwners:
    """Ask the kernel behind each group of *roots* who owns them. Errors of *symbol_file* are raised."""
    known: list[KernelNames] = []
    why: list[str] = []
    for names in _kernels(source, roots, symbol_file, why):
        known.append(names)
    told = [names for names in known if names.kernel]
    labels = {root: label for names in told for root, label in names.processes.labels.items()}
    everyone = tuple(process for names in told for process in names.processes.processes)
    hows = [names.processes.how for names in told] or [names.processes.how for names in known] or why
    symbols = "; ".join(names.symbols.how for names in told) or None
    return RootOwners(everyone, labels, symbols, "; ".join(dict.fromkeys(hows)) or "no processes: no kernel's root")


def _kernels(source: Source, roots: Sequence[Root], symbol_file: str | None, why: list[str]) -> Iterable[KernelNames]:
    sure = sorted((one for one in roots if one.confidence > Confidence.LOW), key=lambda one: one.group)
    groups = [list(members) for _, members in groupby(sure, key=lambda one: one.group)]
    for members in groups[:MOST_KERNELS]:
        best = max(members, key=lambda root: _entries_of_kernel(source, root))
        space = Space(
            source, root=Found(best.root, "; ".join(best.reasons)), mode=Found(MODES[best.levels], "the root's own")
        )
        space.symbol_file = symbol_file
        try:
            yield space.names
        except (TooManyRuns, MemoryReadError) as error:
            why.append(f"no processes: {error}")


def _entries_of_kernel(source: Source, root: Root) -> int:
    """How much of the kernel a root maps: the real-mode trampoline's shares its last entry, but not the direct map."""
    try:
        table = np.frombuffer(source.memory.read(root.root, TABLE_SIZE), "<u8")
    except MemoryReadError:
        return 0
    return int(np.count_nonzero(table[256:] & np.uint64(1)))

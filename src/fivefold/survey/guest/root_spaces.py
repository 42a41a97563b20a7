"""Every address space in a memory: a `Space` for each root that is found, for questions over all of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from fivefold import _arguments
from fivefold.memory import Source
from fivefold.memory.source import Progress
from fivefold.survey.guest.evidence import Found
from fivefold.survey.guest.identify import MODES, GivenPaging
from fivefold.survey.guest.roots import Confidence, Root, find_roots
from fivefold.survey.space import Space


@dataclass(frozen=True, slots=True)
class RootSpaces:
    """Roots of *source*, and how many more there are that are too unsure to ask."""

    source: Source
    given: GivenPaging
    roots: tuple[Root, ...]
    unsure: int
    symbol_file: str | None = None

    def spaces(self) -> Iterator[Space]:
        """A space for each root, in turn; closing one closes the source."""
        shared: Space | None = None
        for root in self.roots:
            how = "; ".join(root.reasons)
            space = Space(
                self.source, self.given, root=Found(root.root, how), mode=Found(MODES[root.levels], "the root's own")
            )
            space.symbol_file = self.symbol_file
            shared = shared or space
            space.scanner = shared.scanner
            yield space


def root_spaces(
    source: Source, given: GivenPaging, symbol_file: str | None = None, *, progress: Progress | None = None
) -> RootSpaces:
    """All roots of at least medium confidence; only the one that *given* names by CR3 or CPU.

    *progress* as for `find_roots`.
    """
    _arguments.opened("source", source, Source)
    _arguments.instance("given", given, GivenPaging)
    if given.cr3 is not None or given.cpu is not None:
        space = Space(source, given)
        why = (space.root.how, space.mode.evidence) if space.mode.against else (space.root.how,)
        only = Root(space.root.value, space.levels, Confidence.HIGH, why, 0)
        return RootSpaces(source, given, (only,), 0, symbol_file)
    found = find_roots(source, given.levels, given.phys_bits, given.c_bit, progress=progress)
    sure = tuple(root for root in found if root.confidence >= Confidence.MEDIUM)
    return RootSpaces(source, given, sure, len(found) - len(sure), symbol_file)

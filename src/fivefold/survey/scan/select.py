"""Which regions are wanted: by address, by half of the space, by rights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Self

from fivefold.survey.scan.regions import Region
from fivefold.survey.scan.scan_result import RegionKind

HALF: Final = 1 << 63
USER_HALF: Final = range(HALF)
KERNEL_HALF: Final = range(HALF, 1 << 64)
_LETTERS: Final = "wxu"


@dataclass(frozen=True, slots=True)
class RightsFilter:
    """Rights that must be there and rights that must not; *of_leaf* asks the leaf entry instead of the whole path.

    >>> RightsFilter.parse("x-w")
    RightsFilter(wanted=frozenset({'x'}), barred=frozenset({'w'}), of_leaf=False)
    """

    wanted: frozenset[str] = frozenset()
    barred: frozenset[str] = frozenset()
    of_leaf: bool = False

    @classmethod
    def parse(cls, text: str, *, of_leaf: bool = False) -> Self:
        """Letters ``w``, ``x``, ``u``; those after a dash are barred. `ValueError` for anything else."""
        wanted, _, barred = text.partition("-")
        if not (wanted or barred) or set(wanted + barred) - set(_LETTERS + "r") or "r" in barred:
            raise ValueError(f"{text!r} are no rights; expected letters of w, x and u, barred ones after a dash: x-w")
        return cls(frozenset(wanted) - {"r"}, frozenset(barred), of_leaf)

    def lets(self, region: Region) -> bool:
        """Whether *region* is wanted; what is not mapped always is, for it may hide anything."""
        if region.kind in (RegionKind.MALFORMED, RegionKind.UNREADABLE):
            return True
        rights = region.leaf if self.of_leaf else region.effective
        letters = zip(_LETTERS, (rights.write, rights.execute, rights.user), strict=True)
        has = {letter for letter, right in letters if right}
        # What a shared table holds may allow less than the path to it does.
        return self.wanted <= has and (region.kind is RegionKind.REPEAT or not self.barred & has)


def meet(one: range | None, other: range | None) -> range | None:
    """The addresses in both windows, None for all; empty where they have none in common."""
    if one is None or other is None:
        return other if one is None else one
    return range(max(one.start, other.start), max(min(one.stop, other.stop), max(one.start, other.start)))

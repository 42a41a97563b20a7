"""Regions that say what they map also where shared tables unfold into too many to list one by one.

What lies behind a table that is mapped again and again is listed once for each run of places, with how often
it is there and how far apart: regions in regions, as deep as tables share tables.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice, pairwise
from typing import Final

import numpy as np

from fivefold import _arguments
from fivefold.arch import TooManyRuns
from fivefold.survey.scan.regions import Region, Stride, regions_of
from fivefold.survey.scan.scan_result import ALL_FLAGS, DEFAULT_FLAGS, Contiguity, RegionKind, ScanResult
from fivefold.survey.space import REPEAT_ABOVE, Space
from fivefold.units import MASK64, VirtAddr

MAX_TOLD: Final = 1 << 19
"""Regions that are listed where tables are shared in no order, so that they repeat in short runs only."""


def regions_with_repeats(
    space: Space,
    window: range | None = None,
    *,
    all_bits: bool = True,
    contiguous: bool = False,
    repeat_above: int | None = None,
) -> Iterator[Region]:
    """What `Space.regions` gives, with `RegionKind.REPEAT` replaced by what is mapped there; see `Region.strides`.

    The sizes of regions, each times its repeats, add up to all that is mapped. *repeat_above* as in `Space.scan`.
    `TooManyRuns`, before the first region, where that takes more than `MAX_TOLD`.
    """
    _arguments.opened("space", space, Space)
    _arguments.instance("window", window, range, type(None))
    unfolding = _Unfolding(space, all_bits, contiguous, REPEAT_ABOVE if repeat_above is None else repeat_above)
    result = unfolding.scan(window, repeat_above)
    if not np.any(result.kind == RegionKind.REPEAT):
        return regions_of(result, window, space.areas)
    told = list(islice(unfolding.told(result, window), MAX_TOLD + 1))
    if len(told) > MAX_TOLD:
        raise TooManyRuns(space.root.value, MAX_TOLD)
    return iter(told)


class _Unfolding:
    """The contents of shared tables, each looked at once for each set of rights it is met under."""

    def __init__(self, space: Space, all_bits: bool, contiguous: bool, repeat_above: int) -> None:
        self._space = space
        self._flags = ALL_FLAGS if all_bits else DEFAULT_FLAGS
        self._contiguity = Contiguity.BREAK if contiguous else Contiguity.NOTE
        self._repeat_above = repeat_above
        self._borders = space.areas.borders()
        self._known: dict[tuple[object, ...], tuple[int, list[Region]]] = {}
        self._held = 0

    def scan(self, window: range | None, repeat_above: int | None) -> ScanResult:
        """A part of the space; a table is never a repeat where it is met first."""
        return self._space.scan(
            flags=self._flags, contiguity=self._contiguity, window=window, repeat_above=repeat_above
        )

    def told(self, result: ScanResult, window: range | None) -> Iterator[Region]:
        """The rows of *result*, its repeats unfolded and cut to *window*."""
        for region in regions_of(result, window, self._space.areas):
            if region.kind is not RegionKind.REPEAT:
                yield region
                continue
            low, high = (region.start, region.end) if window is None else (window.start, window.stop)
            low, high = max(low, region.start), min(high, region.end)
            inside = [border for border in self._borders if low < border < high]
            for start, end in pairwise((low, *inside, high)):
                yield from self._piece(region, start, end)

    def _part(self, start: int, end: int) -> Iterator[Region]:
        window = range(start, end)
        return self.told(self.scan(window, self._repeat_above), window) if window else iter(())

    def _piece(self, region: Region, start: int, end: int) -> Iterator[Region]:
        """The part of a run of repeats from *start* to *end*, where names do not change: whole places, and ends."""
        span = region.size // region.repeats
        first = region.start + -(-(start - region.start) // span) * span
        last = region.start + (end - region.start) // span * span
        if first >= last:
            yield from self._part(start, end)
            return
        yield from self._part(start, first)
        yield from self._places(region, first, (last - first) // span, span)
        yield from self._part(last, end)

    def _places(self, region: Region, first: int, times: int, span: int) -> Iterator[Region]:
        key = (region.phys, region.level, region.effective)
        if key not in self._known:
            content = list(islice(self._part(first, first + span), MAX_TOLD + 1))
            self._held += len(content)
            if self._held > MAX_TOLD:
                raise TooManyRuns(self._space.root.value, MAX_TOLD)
            self._known[key] = first, content
        base, content = self._known[key]
        area = self._space.areas.name_at(first)
        for inner in content:
            yield inner._replace(
                start=VirtAddr(inner.start + first - base & MASK64),
                end=inner.end + first - base,
                area=area,
                repeats=max(inner.repeats, 1) * times if times > 1 else inner.repeats,
                strides=(*inner.strides, Stride(times, span)) if times > 1 else inner.strides,
            )

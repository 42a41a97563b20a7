"""What the rules of an audit look at: scans of one space, each made once and when first asked for.

A shared table is looked at once for each set of rights it is met under, so the cost follows the number of
tables; halves are scanned apart, so that a table shared between them is seen in both.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Final

import numpy as np

from fivefold.arch import TooManyRuns
from fivefold.survey.scan.frame_sets import LeafRuns
from fivefold.survey.scan.info_word import level_of
from fivefold.survey.scan.regions import Region, regions_of
from fivefold.survey.scan.scan import MAX_RANGES
from fivefold.survey.scan.scan_result import (
    DEFAULT_FLAGS,
    Contiguity,
    Flags,
    RegionKind,
    ScanResult,
    ScanSettings,
    Words,
    column,
)
from fivefold.survey.scan.select import KERNEL_HALF, USER_HALF
from fivefold.survey.scan.table_census import table_frames
from fivefold.survey.space import Space

MAX_UNFOLDED_TABLES: Final = 4096
"""Shared tables of which a second place is looked at; further ones are counted in `Views.limits`."""

MAX_LEAVES: Final = 1 << 23
"""Runs of leaves that aliases are looked for among, those at second places with them: tables that share each other
have as many as all of them for each of them."""

ALWAYS_REPEAT: Final = 0


class Views:
    """The scans of *space* that rules share."""

    def __init__(self, space: Space, *, user_half_only: bool = False) -> None:
        """*user_half_only* leaves out what is the same under another root that was looked at."""
        self.space = space
        self.user_half_only = user_half_only
        self.limits: list[str] = []
        """What was left out, in words."""

    @cached_property
    def user(self) -> ScanResult:
        """The user half, merged."""
        return self.window(USER_HALF)

    @cached_property
    def kernel(self) -> ScanResult:
        """The kernel half, merged; empty where only the user half is asked for."""
        if self.user_half_only:
            user = self.user
            return ScanResult(user.root, user.levels, user.settings, user.rows[:0], user.counts)
        return self.window(KERNEL_HALF)

    def window(self, window: range) -> ScanResult:
        """A part of the space, merged; a table that is shared inside it once."""
        return self.space.scan(window=window, repeat_above=ALWAYS_REPEAT)

    @cached_property
    def apart(self) -> ScanResult:
        """The space in runs that are contiguous in physical memory."""
        return self._apart(0, (USER_HALF.stop if self.user_half_only else KERNEL_HALF.stop) - 1)

    def _apart(self, first: int, last: int) -> ScanResult:
        settings = ScanSettings.for_cpu(
            self.space.cpu,
            self.space.tables.nxe,
            flags=DEFAULT_FLAGS,
            contiguity=Contiguity.BREAK,
            first=first,
            last=last,
            repeat_above=ALWAYS_REPEAT,
        )
        space = self.space
        return space.run(settings, MAX_RANGES)

    @cached_property
    def leaves(self) -> LeafRuns:
        """All leaves; what lies behind a shared table is there twice, however often it is mapped."""
        return LeafRuns.of(self.apart).and_also(list(self._second()))

    def _second(self) -> Iterator[LeafRuns]:
        """What lies behind each shared table at its second place, while there is room."""
        total = len(self.apart)
        for first, last in self._second_places():
            found = self._apart(first, last)
            total += len(found)
            if total > MAX_LEAVES:
                raise TooManyRuns(self.space.root.value, MAX_LEAVES)
            yield LeafRuns.of(found)

    def _second_places(self) -> list[tuple[int, int]]:
        """The first place where each shared table is met again; *last* inclusive."""
        rows = self.apart.rows[self.apart.kind == RegionKind.REPEAT]
        keys = np.stack([column(rows, "phys"), column(rows, "info")], 1)
        _, chosen = np.unique(keys, axis=0, return_index=True)
        if len(chosen) > MAX_UNFOLDED_TABLES:
            self.limits.append(f"aliases through {len(chosen) - MAX_UNFOLDED_TABLES} of the shared tables")
            chosen = chosen[:MAX_UNFOLDED_TABLES]
        found = []
        for start, info in zip(
            column(rows, "start")[chosen].tolist(), column(rows, "info")[chosen].tolist(), strict=True
        ):
            level = level_of(info)
            found.append((start, start + (1 << 12 + 9 * level) - 1))
        return found

    @cached_property
    def table_frames(self) -> Words:
        """The frames that are page tables, ascending."""
        return table_frames(self.space)

    def regions(self, result: ScanResult, chosen: Flags, limit: int) -> Iterator[Region]:
        """The first *limit* of the *chosen* rows, with names, cut at the borders of areas."""
        rows = result.rows[np.flatnonzero(chosen)[:limit]]
        part = ScanResult(result.root, result.levels, result.settings, rows, result.counts)
        return regions_of(part, None, self.space.areas)

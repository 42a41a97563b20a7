"""The kernel's own text of its page tables, ``/sys/kernel/debug/page_tables/kernel``, held against our scan.

Only the direct map and the kernel's image are compared: other areas go on changing after the text was made. Source:
Linux, *arch/x86/mm/dump_pagetables.c*: a line has a range, its size, the bits that are set, and the level's name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

from fivefold.survey.scan.scan_result import ALL_FLAGS, Contiguity, expand_leaves
from fivefold.survey.space import Space

_LINE: Final = re.compile(r"^0x([0-9a-f]{16})-0x([0-9a-f]{16}) +\d+[KMGTPE] (.*)$")
_AREAS: Final = ("direct_map", "kernel_image")
_LEVELS: Final = {"pte": 1 << 12, "pmd": 1 << 21, "pud": 1 << 30}


class Stretch(NamedTuple):
    """Mapped addresses with the same bits; *end* exclusive, *page* in bytes."""

    start: int
    end: int
    writable: bool
    user: bool
    is_global: bool
    executable: bool
    page: int

    @property
    def bits(self) -> tuple[object, ...]:
        """All but where."""
        return self[2:]


def told_stretches(text: str) -> Iterator[Stretch]:
    """What the kernel's text says is mapped."""
    for line in text.splitlines():
        match = _LINE.match(line)
        words = set(match[3].split()) if match else set()
        level = words & _LEVELS.keys()
        if match is None or not level or not words & {"RW", "ro"}:
            continue
        yield Stretch(
            int(match[1], 16), int(match[2], 16), "RW" in words, "USR" in words, "GLB" in words, "NX" not in words,
            _LEVELS[level.pop()],
        )  # fmt: skip


def found_stretches(space: Space, window: range) -> Iterator[Stretch]:
    """What our scan of *window* found."""
    scan = space.scan(flags=ALL_FLAGS, contiguity=Contiguity.BREAK, window=window)
    for va, _, flags, level in expand_leaves(scan).tolist():
        size = 1 << 3 + 9 * level
        yield Stretch(
            va, va + size, bool(flags >> 1 & 1), bool(flags >> 2 & 1), bool(flags >> 8 & 1), not flags >> 63, size
        )


def joined(stretches: Iterable[Stretch], window: range) -> list[Stretch]:
    """Neighbours with the same bits as one, cut to *window*."""
    found: list[Stretch] = []
    for one in stretches:
        start, end = max(one.start, window.start), min(one.end, window.stop)
        if start >= end:
            continue
        if found and found[-1].end == start and found[-1].bits == one.bits:
            found[-1] = found[-1]._replace(end=end)
        else:
            found.append(one._replace(start=start, end=end))
    return found


def compare_text(space: Space, text: str) -> tuple[int | None, int]:
    """The first address where the two differ, None if nowhere; and how many stretches were compared."""
    told = list(told_stretches(text))
    count = 0
    for area in space.areas.areas:
        if area.name not in _AREAS:
            continue
        window = range(area.start, area.end)
        theirs, ours = joined(told, window), joined(found_stretches(space, window), window)
        count += len(ours)
        if theirs != ours:
            pairs = zip([*theirs, None], [*ours, None], strict=False)
            one, other = next((one, other) for one, other in pairs if one != other)
            return min(stretch.start for stretch in (one, other) if stretch is not None), count
    return None, count

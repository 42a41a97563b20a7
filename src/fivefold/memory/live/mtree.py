"""Guest-physical RAM as QEMU's monitor prints it: ``info mtree -f``."""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from fivefold.errors import FormatError
from fivefold.memory.spans import MAX_SPANS


class RamRange(NamedTuple):
    """Guest-physical *start* to *end* (exclusive) is *region* from *offset* on."""

    start: int
    end: int
    region: str
    offset: int


# A line of a flat view, such as
#   0000000100000000-000000017fffffff (prio 0, ram): pc.ram @0000000080000000 KVM
_LINE: Final = re.compile(
    r"\s*([0-9a-f]{16})-([0-9a-f]{16}) \(prio -?\d+, (ram|rom|nv-ram)\): (.+?)(?: @([0-9a-f]{16}))?(?: KVM| HVF)?"
)
_VIEW: Final = re.compile(r"^FlatView #\d+\s*$", re.M)
_SYSTEM: Final = re.compile(r'^ AS "memory",', re.M)


def ram_ranges(text: str) -> list[RamRange]:
    """RAM and ROM in the flat view of the system's memory, ascending; devices' registers are left out.

    Neighbours of one region whose offsets run on are joined. `FormatError` when *text* has no such view.
    """
    text = text.replace("\r", "")
    for view in _VIEW.split(text)[1:]:
        if _SYSTEM.search(view):
            ranges = _joined(view)
            if ranges:
                return ranges
    raise FormatError("'info mtree -f' shows no RAM in the system's memory; expected lines with 'ram'")


def _joined(view: str) -> list[RamRange]:
    ranges: list[RamRange] = []
    for line in view.splitlines():
        match = _LINE.fullmatch(line)
        if match is None:
            continue
        start, last, _, region, offset = match.groups()
        found = RamRange(int(start, 16), int(last, 16) + 1, region, int(offset or "0", 16))
        if ranges and found.start < ranges[-1].end:
            raise FormatError(f"'info mtree -f' is not ascending at {found.start:#x}")
        before = ranges[-1] if ranges else None
        if (
            before
            and (before.end, before.region) == (found.start, region)
            and (before.offset + before.end - before.start == found.offset)
        ):
            ranges[-1] = before._replace(end=found.end)
        else:
            ranges.append(found)
        if len(ranges) > MAX_SPANS:
            raise FormatError(f"'info mtree -f' shows more than {MAX_SPANS} ranges of RAM")
    return ranges

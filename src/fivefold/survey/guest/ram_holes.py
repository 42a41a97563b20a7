"""Where a raw image of a machine's RAM has its hole: most machines leave addresses below 4 GiB to devices.

A file that QEMU keeps RAM in, or that a debugger wrote, holds what is below the hole and what is from 4 GiB on without
a gap. A kernel's direct map says where memory ends, so the split follows from it: it is the file's size less what lies
from 4 GiB on. To get at a direct map a root is needed, which may lie above the hole: known splits are tried for that.
Sources: QEMU 7.2, `pc_init1`, `pc_q35_init`, `microvm_memory_init`; their option ``max-ram-below-4g``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Final

from fivefold.errors import FivefoldError
from fivefold.memory import Bank, BankedMemory, Extent, Source
from fivefold.memory.formats.raw_image import NO_MAP
from fivefold.survey.guest.bases import find_bases
from fivefold.survey.guest.identify import GivenPaging
from fivefold.survey.guest.roots import Confidence, find_roots
from fivefold.survey.guest.vmcoreinfo import KernelNotes, is_confirmed, texts
from fivefold.survey.space import Space
from fivefold.units import GIB, MIB, PAGE, format_size, hex64

FOUR_GIB: Final = 4 * GIB
SPLITS: Final = (2 * GIB, 2816 * MIB, 3 * GIB, 3328 * MIB, 3584 * MIB)
"""q35 with much memory and with little, pc, microvm and Cloud Hypervisor with much, Firecracker, pc with little."""

FIRMWARE: Final = 64 * MIB
"""Less than this of memory without a hole is kept from the kernel at its end, for tables of the firmware."""

MAX_SEARCHED: Final = 16 * GIB
"""A larger file is not searched for roots under every split: that reads all of it each time."""


@dataclass(frozen=True, slots=True)
class _Reading:
    """The file as memory with a hole from *split* to 4 GiB; None is without one."""

    split: int | None
    source: Source

    @property
    def ram_map(self) -> str:
        """What `--ram-map` takes for it."""
        size = sum(extent.end - extent.start for extent in self.source.extents)
        if self.split is None:
            return f"0-{size:#x}"
        low = format_size(self.split)
        return f"0-{low},4G-{format_size(FOUR_GIB + size - self.split)}={low}"


def with_hole(source: Source, given: GivenPaging | None = None) -> Source:
    """*source*, or where it is a raw image without a map the reading of it that fits its tables, if only one does.

    What was taken, or that something is missing, stands in the notes. Closing either closes both.
    """
    if NO_MAP not in source.notes or not isinstance(source.memory, BankedMemory):
        return source
    given = given or GivenPaging()
    flat = _Reading(None, source)
    readings = [flat, *(_Reading(split, _split(source, split)) for split in SPLITS if split < _size(source))]
    ends = [(reading, end) for reading in readings if (end := _memory_end(reading, source, given)) is not None]
    for split in {_size(source) - end + FOUR_GIB for _, end in ends if end > FOUR_GIB}:
        if 0 < split < _size(source) and split % PAGE == 0 and split not in {one.split for one in readings}:
            reading = _Reading(split, _split(source, split))
            readings.append(reading)
            if (end := _memory_end(reading, source, given)) is not None:
                ends.append((reading, end))
    fitting = [reading for reading, end in ends if _fits(reading, end, _size(source))]
    if not ends and flat.source.extents[0].end > min(SPLITS):
        fitting = _with_most_roots(readings, given)
    return _chosen(flat, fitting, max((end for _, end in ends), default=0))


def _chosen(flat: _Reading, fitting: list[_Reading], end: int) -> Source:
    if len(fitting) == 1 and fitting[0].split is not None:
        (found,) = fitting
        note = f"no header was recognised: the only hole that its tables fit is as by --ram-map {found.ram_map}"
        return replace(found.source, notes=(note, *flat.source.notes[1:]))
    if len(fitting) > 1:
        maps = " or ".join(reading.ram_map for reading in fitting)
        return replace(flat.source, notes=(*flat.source.notes, f"its tables fit more than one split: --ram-map {maps}"))
    if not fitting and end > _size(flat.source):
        note = (
            f"its tables map memory up to {hex64(end)}, past the end of the file: give --ram-map if memory has a hole"
        )
        return replace(flat.source, notes=(*flat.source.notes, note))
    return flat.source


def _size(source: Source) -> int:
    return source.extents[0].end


def _split(source: Source, split: int) -> Source:
    """The memory of *source*, one run from 0 on, with what is above *split* from 4 GiB on."""
    memory = source.memory
    assert isinstance(memory, BankedMemory)
    (whole,) = memory.banks()

    def written() -> list[Extent]:
        found = memory.written()
        low = [Extent(one.start, min(one.end, split)) for one in found if one.start < split]
        by = FOUR_GIB - split
        return low + [Extent(max(one.start, split) + by, one.end + by) for one in found if one.end > split]

    banks = [Bank(0, whole.data[:split]), Bank(FOUR_GIB, whole.data[split:])]
    parts = BankedMemory(banks, source.name, on_close=memory.close, check=memory.check, written=written)
    return replace(source, memory=parts)


def _memory_end(reading: _Reading, flat: Source, given: GivenPaging) -> int | None:
    """Where memory ends by the direct map of a kernel that *reading* shows; None where it shows none."""
    for space in _spaces(reading, flat, given):
        with suppress(FivefoldError):
            bases = find_bases(space.overview)
            if bases.page_offset.value is not None and bases.direct_map_end is not None:
                return bases.direct_map_end - bases.page_offset.value
    return None


def _spaces(reading: _Reading, flat: Source, given: GivenPaging) -> Iterator[Space]:
    """Spaces of roots that the caller gives, or that a text of VMCOREINFO names and a walk confirms."""
    if given.cr3 is not None:
        with suppress(FivefoldError):
            yield Space(reading.source, given)
        return
    for _, facts in texts(flat.memory):
        notes = KernelNotes(facts, "VMCOREINFO")
        if notes.root is not None and is_confirmed(notes, reading.source.memory):
            with suppress(FivefoldError):
                yield Space(replace(reading.source, vmcoreinfo=facts), given)


def _fits(reading: _Reading, end: int, size: int) -> bool:
    """Whether memory ends where the file does."""
    return size - FIRMWARE < end <= size if reading.split is None else end == FOUR_GIB + size - reading.split


def _with_most_roots(readings: list[_Reading], given: GivenPaging) -> list[_Reading]:
    """The readings that show the most roots of a kernel; none where all show none."""
    if _size(readings[0].source) > MAX_SEARCHED:
        return []
    counted = []
    for reading in readings:
        with suppress(FivefoldError):
            found = find_roots(reading.source, given.levels, given.phys_bits, given.c_bit)
            counted.append((sum(root.confidence >= Confidence.MEDIUM for root in found), reading))
    most = max((count for count, _ in counted), default=0)
    return [reading for count, reading in counted if count == most > 0]

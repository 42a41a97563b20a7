"""What is mapped, as regions: rows of a scan with names, rights and flags to read."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from itertools import islice, pairwise
from typing import Final, NamedTuple, Protocol

import numpy as np

from fivefold.arch import Level, Rights, flag_names
from fivefold.notebook import SHOWN, html_table
from fivefold.survey.scan.info_word import kind_of, level_of, rights_of
from fivefold.survey.scan.scan_result import RegionKind, ScanResult
from fivefold.units import MASK64, PhysAddr, VirtAddr, format_size, hex64

PAGE_NAMES: Final = {Level.PT: "4K", Level.PD: "2M", Level.PDPT: "1G"}

_CHUNK: Final = 1 << 14
_RIGHTS: Final = tuple(Rights(bool(word & 1), bool(word & 2), bool(word & 4)) for word in range(8))


class Stride(NamedTuple):
    """How a region repeats: *times* places in all, each *bytes* after the one before."""

    times: int
    bytes: int


class Region(NamedTuple):
    """A run of equal leaves, or of what stands in their place; *end* is exclusive, 2**64 for the last.

    *leaf* is what the leaf entry says, *effective* what all entries on the path allow. *flags*: the
    leaf's bits that were asked for. *phys* is None where it is not physically contiguous. Of what is not
    mapped, *level* and *phys* are those of `RegionKind`.

    *repeats*: how many places in a row a table of `RegionKind.REPEAT` is mapped at, or how many this stands for, itself
    included, where it lies behind such a table; else 0. *strides* say where those are, the closest together first:
    each stride repeats all that the ones before it give.
    """

    start: VirtAddr
    end: int
    kind: RegionKind
    level: Level
    leaf: Rights
    effective: Rights
    flags: int
    phys: PhysAddr | None
    area: str | None = None
    repeats: int = 0
    strides: tuple[Stride, ...] = ()

    @property
    def size(self) -> int:
        """Bytes of virtual space."""
        return self.end - self.start

    @property
    def rights(self) -> Rights:
        """What the whole path allows: `effective`."""
        return self.effective

    @property
    def page(self) -> str | None:
        """``4K``, ``2M`` or ``1G``; None where nothing is mapped."""
        return PAGE_NAMES.get(self.level) if self.kind is RegionKind.MAPPED else None

    @property
    def flag_names(self) -> list[str]:
        """The flags that are set, in the order of their bits; ``PK5`` for key 5, ``SW9`` for software bit 9."""
        return flag_names(self.flags, self.level)

    def _repr_html_(self) -> str:
        return regions_html("region", [self])

    def __str__(self) -> str:
        """First and last address, page, rights, place and area, on one line."""
        what = self.page or self.kind.name.lower()
        where = hex64(self.phys) if self.phys is not None else "scattered"
        return f"{hex64(self.start)}-{hex64(self.end - 1)} {what:4} {spell(self.effective)} {where} {self.area or ''}"


_COLUMNS: Final = ("start", "end", "size", "page", "rights", "flags", "phys", "area", "repeats")


def regions_html(caption: str, regions: Iterable[Region]) -> str:
    """The first of *regions* as a table for a notebook, ends exclusive; whether there are more is said."""
    shown = list(islice(regions, SHOWN + 1))
    more = f"more than {SHOWN} regions; the rest is not shown" if len(shown) > SHOWN else ""
    return html_table(caption, _COLUMNS, map(_cells, shown[:SHOWN]), left_out=more)


def _cells(region: Region) -> tuple[object, ...]:
    what = region.page or region.kind.name.lower()
    phys = "scattered" if region.phys is None else hex64(region.phys)
    ends = (hex64(region.start), hex64(region.end), format_size(region.size))
    flags = " ".join(region.flag_names) if region.kind is RegionKind.MAPPED else hex64(region.flags)
    return (*ends, what, spell(region.effective), flags, phys, region.area, region.repeats or None)


class Regions:
    """What is mapped, to go through as often as wanted: a new iterator makes the regions again."""

    def __init__(self, again: Callable[[], Iterator[Region]], about: str) -> None:
        """*again* gives the regions from the first on; *about* says of what, on one line."""
        self._again = again
        self._about = about

    def __iter__(self) -> Iterator[Region]:
        return self._again()

    def __repr__(self) -> str:
        """Of what they are."""
        return f"<Regions of {self._about}>"

    def _repr_html_(self) -> str:
        return regions_html(f"regions of {self._about}", self)


def spell(rights: Rights) -> str:
    """Four letters, a dash for each that is missing; what is mapped can be read.

    >>> spell(Rights(write=True, user=False, execute=True))
    'rwx-'
    """
    return str(rights)


def leaf_rights(flags: int) -> Rights:
    """What a leaf with these bits says by itself."""
    return _RIGHTS[flags >> 1 & 3 | (~flags >> 61 & 4)]


class Names(Protocol):
    """What names areas: `fivefold.survey.guest.areas.AreaMap`."""

    def borders(self) -> list[int]:
        """Where names change, ascending."""
        ...

    def name_at(self, va: int) -> str | None:
        """The name at *va*, or None."""
        ...


def regions_of(result: ScanResult, window: range | None, names: Names) -> Iterator[Region]:
    """The rows of *result* as regions, ascending, cut to *window* (its end exclusive) and where *names* change."""
    borders = [border for border in names.borders() if 0 < border <= MASK64]
    named = [names.name_at(start) for start in (0, *borders)]
    edges = np.array(borders, np.uint64)
    follows = result.contiguous
    for at in range(0, len(result), _CHUNK):
        part = slice(at, at + _CHUNK)
        rows = result.rows[part]
        first = np.searchsorted(edges, rows["start"], side="right")
        crossing = first != np.searchsorted(edges, rows["last"], side="right")
        for row, whole, index, crosses in zip(
            rows.tolist(), follows[part].tolist(), first.tolist(), crossing.tolist(), strict=True
        ):
            region = _region(row, whole, named[index])
            if crosses or window is not None:
                yield from _pieces(region, borders, names, window)
            else:
                yield region


def _region(row: tuple[int, ...], follows: bool, area: str | None) -> Region:
    start, last, phys, flags, info, _ = row
    kind, level, effective = _meaning(info)
    if kind is RegionKind.REPEAT:
        repeats = (last - start + 1) // (level.span * 512)
        return Region(VirtAddr(start), last + 1, kind, level, effective, effective, 0, PhysAddr(phys), area, repeats)
    place = None if kind is RegionKind.MAPPED and not follows else PhysAddr(phys)
    return Region(VirtAddr(start), last + 1, kind, level, leaf_rights(flags), effective, flags, place, area)


@cache
def _meaning(info: int) -> tuple[RegionKind, Level, Rights]:
    """The info word of a row taken apart: there are few of them."""
    return RegionKind(kind_of(info)), Level(level_of(info)), _RIGHTS[rights_of(info)]


def _pieces(region: Region, borders: list[int], names: Names, window: range | None) -> Iterator[Region]:
    for part in split_at(region, borders):
        start, end = part.start, part.end
        if window is not None:
            start, end = VirtAddr(max(start, window.start)), min(end, window.stop)
        if start < end:
            yield part_of(part, start, end)._replace(area=names.name_at(start))


def part_of(region: Region, start: int, end: int) -> Region:
    """The part of *region* from *start* to *end*; its place moves along where it is known."""
    if (start, end) == (region.start, region.end) or region.kind is not RegionKind.MAPPED:
        return region
    phys = region.phys if region.phys is None else PhysAddr(region.phys + start - region.start)
    return region._replace(start=VirtAddr(start), end=end, phys=phys)


def split_at(region: Region, borders: Sequence[int]) -> Iterator[Region]:
    """*region* in parts none of which crosses one of *borders*, ascending."""
    inside = borders[bisect_right(borders, region.start) : bisect_right(borders, region.end - 1)]
    if not inside or region.kind is not RegionKind.MAPPED:
        yield region
        return
    for start, end in pairwise((region.start, *inside, region.end)):
        yield part_of(region, start, end)

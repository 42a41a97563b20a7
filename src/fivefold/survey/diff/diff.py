"""What changed between two address spaces: two guests, two moments of one, or two roots."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, NamedTuple

from fivefold import _arguments
from fivefold.arch import ENTRIES, FRAME_BITS, TooManyRuns
from fivefold.layout import Area
from fivefold.notebook import SHOWN, html_table
from fivefold.survey.diff.diff_windows import NOTHING, Pair, Walker
from fivefold.survey.scan.regions import Region, split_at
from fivefold.survey.scan.scan_result import ALL_FLAGS, DEFAULT_FLAGS, RegionKind
from fivefold.survey.scan.select import KERNEL_HALF, USER_HALF, meet
from fivefold.survey.space import Space
from fivefold.units import VirtAddr, format_size, hex64

MAX_REGIONS: Final = 1 << 18
"""Ranges of both sides that one comparison looks at; beyond that it refuses."""

TELL_AFTER: Final = 1 << 14

SHARED_ABOVE: Final = 16
"""A shared table with more ranges than this is compared as a table, not range by range."""


class Nature(StrEnum):
    """What became of an address."""

    ADDED = "added"
    REMOVED = "removed"
    CHANGED = "changed"


class Change(NamedTuple):
    """A run of addresses with the same difference; *before* and *after* are cut to it, None where nothing is mapped.

    *what*: ``kind``, ``page``, ``rights``, ``flags``, ``phys``, ``table`` (a shared one), whichever differ; empty
    unless both are there. With areas compared by their bases *shift* is how much further up *after* lies.
    """

    start: VirtAddr
    end: int
    before: Region | None
    after: Region | None
    what: tuple[str, ...]
    shift: int = 0

    @property
    def nature(self) -> Nature:
        """Added, removed or changed."""
        if self.before is None:
            return Nature.ADDED
        return Nature.REMOVED if self.after is None else Nature.CHANGED

    @property
    def size(self) -> int:
        """Bytes of virtual space."""
        return self.end - self.start

    @property
    def place(self) -> range:
        """Where it is in the earlier space; of what was added, in the later one."""
        shift = self.shift if self.before is None else 0
        return range(self.start + shift, self.end + shift)

    @property
    def area(self) -> str | None:
        """The area by the names of the side where something is mapped; the earlier one if both."""
        region = self.before or self.after
        return region.area if region else None


@dataclass(frozen=True, slots=True, kw_only=True)
class DiffSettings:
    """What counts. *all_bits*: accessed, dirty, software bits and key, too. *phys*: where it leads. *relative*: areas
    are laid over each other by their bases, so that kernels at random places can be compared."""

    all_bits: bool = False
    phys: bool = True
    relative: bool = False
    window: range | None = None

    @property
    def mask(self) -> int:
        """Bits of a leaf that count."""
        flags = ALL_FLAGS if self.all_bits else DEFAULT_FLAGS
        return flags | FRAME_BITS if self.phys else flags


@dataclass(frozen=True, slots=True)
class Diff:
    """The changes from *before* to *after*, ascending, and in *limits* what was not compared, in words."""

    before: Space
    after: Space
    settings: DiffSettings
    changes: tuple[Change, ...]
    limits: tuple[str, ...] = field(default=())
    slides: Mapping[str, int] = field(default_factory=dict)
    """How much further up *after* has areas, where it does and they were laid over each other."""

    def _repr_html_(self) -> str:
        rows = [
            (one.nature.value, hex64(one.start), format_size(one.size), *map(_side, (one.before, one.after)))
            for one in self.changes[:SHOWN]
        ]
        caption = f"{self.before.source.name} and {self.after.source.name}: {len(self.changes)} changes"
        more = f"{len(self.changes) - SHOWN} more are not shown" if len(self.changes) > SHOWN else ""
        columns = ("nature", "start", "size", "before", "after")
        return html_table(caption, columns, rows, left_out=more)

    @property
    def same(self) -> bool:
        """Whether nothing that counts differs."""
        return not self.changes


def _side(region: Region | None) -> str:
    return "" if region is None else f"{region.page or region.kind.name.lower()} {region.effective}"


Teller = Callable[[str], None]
"""Called now and then with what is being done."""


def diff(before: Space, after: Space, settings: DiffSettings | None = None, tell: Teller | None = None) -> Diff:
    """Compare two spaces; they may have different numbers of levels. `TooManyRuns` where they unfold beyond bounds."""
    _arguments.opened("before", before, Space)
    _arguments.opened("after", after, Space)
    _arguments.instance("settings", settings, DiffSettings, type(None))
    job = _Job(before, after, settings or DiffSettings(), tell or (lambda _: None))
    found = [change for piece in job.pieces() for change in job.compare(piece)]
    changes = tuple(joined(sorted(found, key=lambda change: change.start)))
    return Diff(before, after, job.settings, changes, tuple(job.limits), job.slides)


class _Piece(NamedTuple):
    """A window of each side, to be laid over each other: *theirs* lies *shift* further up."""

    ours: range
    theirs: range
    shift: int = 0


_NOWHERE: Final = range(0)


class _Job:
    """One comparison while it runs."""

    def __init__(self, before: Space, after: Space, settings: DiffSettings, tell: Teller) -> None:
        self.before, self.after, self.settings, self.tell = before, after, settings, tell
        self.limits: list[str] = []
        self.slides: dict[str, int] = {}
        self.walker = Walker(before, after, settings.mask)
        self.read = 0

    def pieces(self) -> Iterator[_Piece]:
        """What to lay over what; no address of either side is in two of them."""
        wanted = self.settings.window
        for piece in self._pieces():
            ours = meet(piece.ours, wanted) or _NOWHERE
            theirs = meet(piece.theirs, None if wanted is None else _moved_window(wanted, piece.shift)) or _NOWHERE
            if ours or theirs:
                yield _Piece(ours, theirs, piece.shift)

    def _pieces(self) -> Iterator[_Piece]:
        if self.settings.relative:
            yield from self._by_area()
        elif self.before.levels == self.after.levels and self._agree_on_rights():
            self.tell("looking for tables that differ")
            yield from (_Piece(window, window) for window in self.walker.windows())
        else:
            yield from (_Piece(half, half) for half in (USER_HALF, KERNEL_HALF))

    def _agree_on_rights(self) -> bool:
        """Whether equal entries mean equal rights on both sides."""
        return self.before.controls.ignores_read_only == self.after.controls.ignores_read_only

    def _by_area(self) -> Iterator[_Piece]:
        """Each area, laid over the other side's of that name; what only one side has lies over nothing."""
        mine, theirs = ({area.name: area for area in space.areas.areas} for space in (self.before, self.after))
        if not mine or not theirs:
            self.limits.append("no areas to lay over each other")
            return
        for name in dict.fromkeys([*mine, *theirs]):
            one, other = mine.get(name), theirs.get(name)
            kinds = {area.kind for area in (one, other) if area is not None}
            if "unknown" in kinds:
                self.limits.append(f"{name}: it is not known which areas lie there")
            elif "non_canonical" not in kinds:
                yield self._laid_over(one, other)

    def _laid_over(self, one: Area | None, other: Area | None) -> _Piece:
        ours = _NOWHERE if one is None else range(one.start, one.end)
        theirs = _NOWHERE if other is None else range(other.start, other.end)
        if one is None or other is None:
            return _Piece(ours, theirs)
        shift = self._shift(one, other)
        if shift and one.kind == "mapped":
            self.slides[one.name] = shift
        return _Piece(ours, theirs, shift)

    def _shift(self, one: Area, other: Area) -> int:
        """How much further up the other side has an area. The image, and modules, begin anywhere in their windows."""
        return self.after.base_of(other) - self.before.base_of(one)

    def compare(self, piece: _Piece) -> Iterator[Change]:
        """All changes in *piece*, at the addresses of the space before."""
        shift = piece.shift
        self.tell(f"comparing from {hex64((piece.ours or piece.theirs).start)} on")
        ours, theirs = self._regions(self.before, piece.ours), self._regions(self.after, piece.theirs)
        ours, theirs = (
            self._unfolded(self.before, ours, _moved(theirs, -shift)),
            self._unfolded(self.after, theirs, _moved(ours, shift)),
        )
        for start, end, one, other in _in_step(ours, _moved(theirs, -shift)):
            what = self._what(one, other) if one and other else ()
            if what or not (one and other):
                yield Change(VirtAddr(start), end, one, other, what, shift)

    def _regions(self, space: Space, window: range, repeat_above: int | None = SHARED_ABOVE) -> list[Region]:
        """What is mapped in *window* and nothing beyond it. `TooManyRuns` when the diff has looked at too much."""
        found: list[Region] = []
        bits, phys = self.settings.all_bits, self.settings.phys
        for region in space.regions(window, all_bits=bits, contiguous=phys, repeat_above=repeat_above):
            found += self._inside(space, region, window)
            self.read += 1
            if self.read > MAX_REGIONS:
                raise TooManyRuns(space.root.value, MAX_REGIONS)
            if not self.read % TELL_AFTER:
                self.tell(f"{self.read} ranges read, up to {hex64(region.start)}")
        return found

    def _inside(self, space: Space, region: Region, window: range) -> list[Region]:
        """*region* cut to *window*; a shared table that is cut through is unfolded."""
        start, end = max(region.start, window.start), min(region.end, window.stop)
        if (start, end) == (region.start, region.end):
            return [region]
        span = region.level.span * ENTRIES
        if region.kind is RegionKind.REPEAT and (start % span or end % span):
            return self._regions(space, range(start, end), None)
        return [_part(region, start, end)]

    def _unfolded(self, space: Space, regions: list[Region], others: list[Region]) -> list[Region]:
        """*regions* of *space* with shared tables unfolded where *others* has something else than a shared table."""
        plain = [other for other in others if other.kind is not RegionKind.REPEAT]
        starts, ends = [other.start for other in plain], [other.end for other in plain]
        found: list[Region] = []
        for region in regions:
            at, span = int(region.start), region.level.span * ENTRIES
            meeting = range(0)
            if region.kind is RegionKind.REPEAT:
                meeting = range(bisect_right(ends, region.start), bisect_left(starts, region.end))
            for other in (plain[index] for index in meeting):
                low, high = max(at, other.start // span * span), min(region.end, -(-other.end // span) * span)
                if low < high:
                    found += [_part(region, at, low)] if at < low else []
                    found += self._regions(space, range(low, high), None)
                    at = high
            found += [_part(region, at, region.end)] if at < region.end else []
        return found

    def _what(self, one: Region, other: Region) -> tuple[str, ...]:
        checks = (
            ("kind", one.kind, other.kind),
            ("page", one.level, other.level),
            ("rights", (one.leaf, one.effective), (other.leaf, other.effective)),
            ("flags", one.flags, other.flags),
        )
        what = tuple(name for name, ours, theirs in checks if ours != theirs)
        if one.kind is RegionKind.REPEAT is other.kind and one.level == other.level:
            return what if self._same_tables(one, other) else (*what, "table")
        places = (one.phys, other.phys)
        return (*what, "phys") if self.settings.phys and None not in places and places[0] != places[1] else what

    def _same_tables(self, one: Region, other: Region) -> bool:
        """Whether two shared tables map the same, wherever they lie themselves."""
        pair = Pair(one.phys or 0, other.phys or 0, one.level, one.effective, other.effective)
        return self.walker.below(pair) == NOTHING


def _moved_window(window: range, by: int) -> range:
    return range(max(window.start + by, 0), max(min(window.stop + by, 1 << 64), 0))


def _moved(regions: list[Region], by: int) -> list[Region]:
    if not by:
        return regions
    return [region._replace(start=VirtAddr(region.start + by), end=region.end + by) for region in regions]


def _part(region: Region, start: int, end: int) -> Region:
    """A part of what is not mapped by itself: it has one place for all its addresses."""
    repeats = (end - start) // (region.level.span * ENTRIES) if region.kind is RegionKind.REPEAT else 0
    return region._replace(start=VirtAddr(start), end=end, repeats=repeats)


def _in_step(
    ours: Iterable[Region], theirs: Iterable[Region]
) -> Iterator[tuple[int, int, Region | None, Region | None]]:
    """Both lists cut at each other's ends: start, end, and what is there on each side, one of them at least."""
    one, other = list(ours), list(theirs)
    borders = sorted({border for region in (*one, *other) for border in (region.start, region.end)})
    cut_ours, cut_theirs = ({part.start: part for part in _cut(side, borders)} for side in (one, other))
    for start in sorted(cut_ours.keys() | cut_theirs.keys()):
        mine, its = cut_ours.get(start), cut_theirs.get(start)
        ends = [region.end for region in (mine, its) if region is not None]
        yield start, ends[0], mine, its


def _cut(regions: Iterable[Region], borders: list[int]) -> Iterator[Region]:
    for region in regions:
        if region.kind is RegionKind.MAPPED:
            yield from split_at(region, borders)
            continue
        inside = borders[bisect_right(borders, region.start) : bisect_left(borders, region.end)]
        for start, end in zip([region.start, *inside], [*inside, region.end], strict=True):
            yield _part(region, start, end)


def joined(changes: Iterable[Change]) -> Iterator[Change]:
    """Changes that follow each other with the same difference, made one."""
    last: Change | None = None
    for change in changes:
        if last is not None and _continues(last, change):
            before, after = _longer(last.before, change.before), _longer(last.after, change.after)
            last = last._replace(end=change.end, before=before, after=after)
            continue
        if last is not None:
            yield last
        last = change
    if last is not None:
        yield last


def _longer(region: Region | None, more: Region | None) -> Region | None:
    """*region* with what follows it; its place is not known any more where memory is not physically contiguous."""
    if region is None or more is None:
        return None
    follows = region.phys is not None and region.phys + region.size == more.phys
    repeats, phys = (
        region.repeats + more.repeats,
        region.phys if follows or region.kind is not RegionKind.MAPPED else None,
    )
    return region._replace(end=more.end, repeats=repeats, phys=phys)


def _continues(last: Change, change: Change) -> bool:
    if last.end != change.start or (last.what, last.shift) != (change.what, change.shift):
        return False
    return _same_run(last.before, change.before) and _same_run(last.after, change.after)


def _same_run(one: Region | None, other: Region | None) -> bool:
    """Whether *other* is more of *one*, wherever in memory."""
    if one is None or other is None:
        return one is other
    if one.kind is not RegionKind.MAPPED and one.phys != other.phys:
        return False
    return one._replace(start=other.start, end=other.end, phys=other.phys, repeats=other.repeats) == other


__all__ = ["Change", "Diff", "DiffSettings", "Nature", "diff", "joined"]

"""The rules of an audit that look at places: what is mapped where, with which rights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

import numpy as np

from fivefold.arch import Flag
from fivefold.layout import Area
from fivefold.survey.audit.audit_views import Views
from fivefold.survey.scan.regions import Region, spell
from fivefold.survey.scan.scan_result import Flags, RegionKind, ScanResult
from fivefold.units import PAGE, hex64

MAX_HITS: Final = 1000
"""How many findings of one rule are listed; more are counted only."""


class Hit(NamedTuple):
    """One thing that a rule found: addresses, ends exclusive; *aliases* are other addresses that matter.

    *window* is None for what is about a register, and no address.
    """

    window: range | None
    phys: range | None
    message: str
    aliases: tuple[int, ...] = ()


RuleCheck = Callable[[Views], Iterator[Hit]]


def hit_of(region: Region, message: str) -> Hit:
    """A hit that is all of *region*."""
    phys = None if region.phys is None else range(region.phys, region.phys + region.size)
    return Hit(range(region.start, region.end), phys, message)


def mapped(result: ScanResult, chosen: Flags) -> Flags:
    """The rows in *chosen* that map something."""
    found: Flags = (result.kind == RegionKind.MAPPED) & chosen
    return found


def writable_executable(views: Views, result: ScanResult, chosen: Flags) -> Iterator[Hit]:
    """W and X in effect, of the rows that are *chosen*."""
    for region in views.regions(result, mapped(result, result.writable & result.executable & chosen), MAX_HITS + 1):
        yield hit_of(region, f"{region.page} pages are {spell(region.effective)}, writable and executable")


def wx_kernel(views: Views) -> Iterator[Hit]:
    """The rule ``wx-kernel``: writable and executable in the kernel half, and what is the supervisor's in the other."""
    yield from writable_executable(views, views.kernel, np.ones(len(views.kernel), np.bool_))
    yield from writable_executable(views, views.user, ~views.user.user)


def wx_user(views: Views) -> Iterator[Hit]:
    """The rule ``wx-user``: writable and executable by user mode in the user half."""
    return writable_executable(views, views.user, views.user.user)


def register_clear(name: str, consequence: str) -> RuleCheck:
    """A rule that finds a control of the CPU clear, by its name in the manual."""

    def check(views: Views) -> Iterator[Hit]:
        found = views.space.controls.named()[name]
        if found.value is False:
            yield Hit(None, None, f"{name}=0 ({found.how}): {consequence}")

    return check


def user_kernel_half(views: Views) -> Iterator[Hit]:
    """What user mode can reach above the canonical hole."""
    for region in views.regions(views.kernel, mapped(views.kernel, views.kernel.user), MAX_HITS + 1):
        yield hit_of(region, f"{region.page} pages are {spell(region.effective)}, within reach of user mode")


def global_user_page(views: Views) -> Iterator[Hit]:
    """User pages that outlive a change of CR3 in the TLB."""
    result = views.user
    chosen = mapped(result, result.user & (result.flags & np.uint64(Flag.G) != 0))
    for region in views.regions(result, chosen, MAX_HITS + 1):
        yield hit_of(region, f"{region.page} pages have G set; their translations stay when CR3 changes")


def executable_direct_map(views: Views) -> Iterator[Hit]:
    """Code that can run where all of memory is mapped."""
    for area in _areas(views, lambda area: area.name == "direct_map"):
        result = views.window(range(area.start, area.end))
        for region in views.regions(result, mapped(result, result.executable), MAX_HITS + 1):
            # Large leaves are reported whole, also where they reach out of the window.
            if region.area == area.name:
                yield hit_of(region, f"{region.page} pages of the direct map are {spell(region.effective)}")


def guard_mapped(views: Views) -> Iterator[Hit]:
    """Anything mapped where the layout keeps a guard or a hole."""
    for area in _areas(views, lambda area: area.kind in ("guard", "hole")):
        result = views.window(range(area.start, area.end))
        everything = np.ones(len(result), np.bool_)
        for region in views.regions(result, everything, MAX_HITS + 1):
            if region.area == area.name or region.kind is not RegionKind.MAPPED:
                yield hit_of(region, f"mapped in {area.name}, which is kept empty ({area.source})")


def _areas(views: Views, wanted: Callable[[Area], bool]) -> list[Area]:
    return [area for area in views.space.areas.areas if wanted(area)]


def null_page(views: Views) -> Iterator[Hit]:
    """Anything mapped at address 0; one hit says it."""
    result = views.window(range(PAGE))
    for region in views.regions(result, mapped(result, np.ones(len(result), np.bool_)), 1):
        # A large page that begins there is recognised by its first 4 KiB.
        phys = None if region.phys is None else range(region.phys, region.phys + PAGE)
        yield Hit(range(PAGE), phys, f"address 0 is mapped, {spell(region.effective)}, by a {region.page} page")


def malformed_entry(views: Views) -> Iterator[Hit]:
    """Present entries with reserved bits set."""
    for result in (views.user, views.kernel):
        for region in views.regions(result, result.kind == RegionKind.MALFORMED, MAX_HITS + 1):
            message = f"{region.level.name} entry with reserved bits set, flags {hex64(region.flags)}"
            yield Hit(range(region.start, region.end), None, f"{message}, holding {hex64(region.phys or 0)}")


def table_not_in_memory(views: Views) -> Iterator[Hit]:
    """Entries that point to a table outside the source's memory."""
    for result in (views.user, views.kernel):
        for region in views.regions(result, result.kind == RegionKind.UNREADABLE, MAX_HITS + 1):
            message = f"the {region.level.name} table at {hex64(region.phys or 0)} is not in memory"
            yield Hit(range(region.start, region.end), None, message)


def table_at_two_levels(views: Views) -> Iterator[Hit]:
    """Tables that are met at more than one level: one hit, at the first place."""
    counts = views.apart.counts
    if counts.mixed_levels:
        yield _first_of(counts.mixed_levels, counts.first_mixed, "met at another level than before")


def table_cycle(views: Views) -> Iterator[Hit]:
    """Entries that lead to a table above them: one hit, at the first place."""
    counts = views.apart.counts
    if counts.cycles:
        yield _first_of(counts.cycles, counts.first_cycle, "found to contain itself")


def _first_of(count: int, first: int, what: str) -> Hit:
    times = "once" if count == 1 else f"{count} times, here first"
    return Hit(range(first, first + PAGE), None, f"a table was {what}, {times}")

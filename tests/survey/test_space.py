"""An opened space: its regions against the plain walker, its window, its repeats, its findings."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import fivefold
from fivefold.arch import LA48, LA57, Content, Level, Mapped, Scan
from fivefold.arch import regions as plain_regions
from fivefold.arch import scan as plain_scan
from fivefold.errors import MachineError, MemoryReadError
from fivefold.memory import PagedMemory, Ram, Source
from fivefold.survey import space as module
from fivefold.survey.audit.audit import audit
from fivefold.survey.diff.diff import diff
from fivefold.survey.find import find_mappings
from fivefold.survey.guest.roots import find_roots
from fivefold.survey.scan.regions import Region
from fivefold.survey.scan.repeats import regions_with_repeats
from fivefold.survey.scan.scan_result import RegionKind
from fivefold.survey.scan.translator import translator_of
from fivefold.survey.space import Space, open_space
from fivefold.survey.stats import stats
from fivefold.units import PhysAddr

SMALL = (
    "plain-la57-kaslr",
    "plain-la48-kaslr",
    "debian-la57-kaslr-pti",
    "debian-la48-nokaslr-6G-pc",
    "kasan-la57-nokaslr",
)


def joined(regions: Iterable[Region]) -> Iterator[tuple[int, ...]]:
    """Regions without names, those together again that only a border of areas parts."""
    before: tuple[int, ...] | None = None
    for region in regions:
        now = (region.start, region.end, region.level, *region.effective, region.flags)
        if before is not None and before[1] == now[0] and before[2:] == now[2:]:
            before = (before[0], *now[1:])
        else:
            if before is not None:
                yield before
            before = now
    if before is not None:
        yield before


@pytest.mark.parametrize("window", [range(0xFFFF_FF00_0000_0000), range(0xFFFF_FF80_0000_0000, 1 << 64)])
@pytest.mark.parametrize("guest", SMALL)
def test_regions_are_those_of_the_plain_walker(guest: str, window: range, look: Callable[..., Space]) -> None:
    """All but the ESPfix stacks, which are many and are counted below."""
    space = look(guest)
    theirs = plain_regions(space.tables, window, ignore=0)
    want = [(r.start, r.end, r.level, *r.rights, r.flags) for r in theirs if r.content is Content.MAPPED]

    assert list(joined(space.regions(window))) == want


def test_contiguous_regions_have_their_place(look: Callable[..., Space]) -> None:
    space = look("plain-la48-kaslr")
    window = range(1 << 63, 0xFFFF_FF00_0000_0000)
    theirs = plain_scan(Scan(space.tables, contiguous=True, ignore=0), window)
    found = list(space.regions(window, contiguous=True))

    assert [(r.start, r.end, r.phys) for r in found] == [(r.start, r.end, r.phys) for r in theirs]
    for region in found[::7]:
        got = space.translate(region.start)
        assert isinstance(got, Mapped) and got.pa == region.phys


def test_place_is_unknown_only_where_memory_does_not_follow_on(look: Callable[..., Space]) -> None:
    space = look("plain-la57-kaslr")
    for region in space.regions(range(0xFFFF_FF00_0000_0000)):
        last = space.translate(region.end - 1)
        assert isinstance(last, Mapped)
        if region.phys is not None:
            assert last.pa == region.phys + region.size - 1


@pytest.mark.parametrize("window", [range(0), range(1 << 63, 1 << 63), range(0xFFFF_FF80_0000_0000, 0)])
def test_an_empty_window_has_nothing(window: range, look: Callable[..., Space]) -> None:
    space = look("debian-la57-kaslr-pti")
    found = space.scan(window=window)
    assert (len(found), found.counts.tables_met, found.root, found.levels) == (0, 0, space.root.value, 5)
    assert list(space.regions(window)) == []


def test_a_window_cuts_regions(look: Callable[..., Space]) -> None:
    space = look("plain-la48-kaslr")
    start = space.bases.page_offset.value or 0
    window = range(start + 0x20_1000, start + 0x60_0000)
    (one,) = space.regions(window)
    assert (one.start, one.end, one.phys, one.area, one.page) == (*_ends(window), 0x20_1000, "direct_map", "2M")


def _ends(window: range) -> tuple[int, int]:
    return window.start, window.stop


def test_all_bits_break_what_few_bits_join(look: Callable[..., Space]) -> None:
    space = look("plain-la57-kaslr")
    user = range(1 << 47)
    few, all_ = list(space.regions(user, all_bits=False)), list(space.regions(user))
    assert len(few) < len(all_)
    assert {region.start for region in few} <= {region.start for region in all_}
    assert not any(set(region.flag_names) & {"A", "D", "SW11"} for region in few)


def test_espfix_unfolds_and_repeats(look: Callable[..., Space]) -> None:
    space = look("plain-la57-kaslr")
    espfix = range(0xFFFF_FF00_0000_0000, 0xFFFF_FF80_0000_0000)
    assert sum(region.kind is RegionKind.MAPPED for region in space.regions(espfix)) == 65536
    told = list(space.regions(espfix, repeat_above=16))
    assert [(region.repeats, region.level.name) for region in told if region.kind is RegionKind.REPEAT] == [
        (511, "PT"),
        (3, "PD"),
    ]
    assert told[-1].page is None and told[-1].area == "espfix"


def test_too_many_are_told_as_repeats(look: Callable[..., Space], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_UNFOLDED", 20_000)
    espfix = range(0xFFFF_FF00_0000_0000, 0xFFFF_FF80_0000_0000)
    found = list(look("plain-la57-kaslr").regions(espfix))
    assert any(region.kind is RegionKind.REPEAT for region in found)
    assert sum(region.size for region in found if region.kind is RegionKind.REPEAT) == 3 << 30


def test_kasan_by_physical_pages_is_told_as_repeats(look: Callable[..., Space]) -> None:
    """The shadow maps one page a billion times: unfolded, no memory could hold it."""
    found = list(look("kasan-la48-kaslr").regions(contiguous=True))
    repeats = [region for region in found if region.kind is RegionKind.REPEAT]
    assert repeats and len(found) < 1 << 18
    assert max(region.size for region in repeats) > 1 << 40


def test_no_region_spans_two_page_sizes_or_two_areas(name: str, captures: Path, look: Callable[..., Space]) -> None:
    space = look(name)
    end = 0
    for region in space.regions(repeat_above=16):
        if region.kind is RegionKind.REPEAT:
            continue
        assert end <= region.start < region.end
        assert region.start % region.level.span == region.end % region.level.span == 0
        assert space.areas.name_at(region.end - 1) == region.area
        end = region.end


def test_malformed_and_missing_are_regions(built: Callable[..., Ram], sourced: Callable[..., Source]) -> None:
    ram = built(LA57, [(0x40_0000, 0x7000 | 7, Level.PT), (0x8000_0000, 0x40_0000 | 7, Level.PD)])
    # An entry with PS at the top, and one whose table is not there.
    ram.write(PhysAddr(0x10_0000 + 8 * 9), (0x5000 | 0x87).to_bytes(8, "little"))
    ram.write(PhysAddr(0x10_0000 + 8 * 11), (0x90_0000_0000 | 7).to_bytes(8, "little"))
    space = Space(sourced(ram), module.GivenPaging(cr3=0x10_0000, levels=5))
    wrong = [
        (r.kind.name, r.start >> 48, r.level.name, r.phys) for r in space.regions() if r.kind is not RegionKind.MAPPED
    ]

    assert wrong == [("MALFORMED", 9, "PML5", 0x5000), ("UNREADABLE", 11, "PML4", 0x90_0000_0000)]
    assert _cause(space, 9 << 48) == (9 << 48, "reserved bit set", True)
    assert _cause(space, 11 << 48) == (11 << 48, "table not in memory", True)
    assert space.path(11 << 48).missing == 0x90_0000_0000
    assert [step.entry.level.name for step in space.path(11 << 48).steps] == ["PML5"]
    assert _cause(space, 13 << 48) == (13 << 48, "entry not present", False)


def _cause(space: Space, va: int) -> tuple[int, str | None, bool]:
    path = space.path(va)
    return path.va, path.cause, path.is_finding


def test_phys_bits_make_wide_addresses_malformed(built: Callable[..., Ram], sourced: Callable[..., Source]) -> None:
    ram = built(LA57, [(0x40_0000, 1 << 45 | 7, Level.PT)])
    kinds = [
        [
            region.kind
            for region in Space(sourced(ram), module.GivenPaging(cr3=0x10_0000, levels=5, phys_bits=bits)).regions()
        ]
        for bits in (None, 46, 45)
    ]
    assert kinds == [[RegionKind.MAPPED], [RegionKind.MAPPED], [RegionKind.MALFORMED]]


def test_memory_that_is_asked_page_by_page(captures: Path, look: Callable[..., Space]) -> None:
    """Where copying all memory would cost, the tables are copied."""
    whole = look("plain-la48-kaslr")
    asked = PagedMemory(
        whole.source.extents, lambda pa, size: whole.source.memory.read(PhysAddr(pa), size), "asked", max_copy=1
    )
    space = Space(replace(whole.source, memory=asked))
    with pytest.raises(MachineError):
        asked.banks()

    window = range(0xFFFF_FF00_0000_0000)
    assert list(space.regions(window)) == list(whole.regions(window))


def test_another_root_of_the_same_source(look: Callable[..., Space], facts: Callable[[str], Any]) -> None:
    space = look("plain-la57-kaslr")
    root = PhysAddr(int(facts("plain-la57-kaslr")["roots"]["init_top_pgt"], 16))
    other = space.with_root(root, "asked for")
    assert (other.root.value, other.root.how, other.mode) == (root, "asked for", space.mode)
    assert [r.start for r in other.regions() if r.start < 1 << 63] == []
    assert (other.bases, space.root.value) == (space.bases, 0xA3_E000)
    with pytest.raises(MemoryReadError):
        space.with_root(PhysAddr(0x5000), "a hole")


def test_public_names(captures: Path) -> None:
    with fivefold.open(str(captures / "plain-la57-kaslr.elf.xz"), levels=5) as space:
        assert isinstance(space, fivefold.Space)
        assert repr(space).endswith("plain-la57-kaslr.elf.xz, root 0x0000000000a3e000, la57>")
        assert space.mode.how == "given with --levels"
        assert isinstance(space.translate(0xFFFF_FFFF_BE40_0000), Mapped)
        assert isinstance(next(iter(space.regions())), fivefold.Region)


def test_a_refused_space_closes_its_source(tmp_path: Path) -> None:
    path = tmp_path / "raw"
    path.write_bytes(bytes(0x4000))
    with pytest.raises(fivefold.FivefoldError, match="holds no CR3"):
        open_space(str(path))


ASKED: dict[str, Callable[[Space], object]] = {
    "translate": lambda space: space.translate(0x40_0000),
    "path": lambda space: space.path(0x40_0000),
    "scan": lambda space: space.scan(),
    "regions": lambda space: list(space.regions()),
    "with_root": lambda space: space.with_root(PhysAddr(0x2000), "test"),
    "stats": stats,
    "regions with repeats": lambda space: list(regions_with_repeats(space)),
    "translator": lambda space: translator_of(space),
    "audit": audit,
    "find": lambda space: find_mappings([space], [range(0x20_0000, 0x20_1000)]),
    "diff": lambda space: diff(space, space),
    "roots": lambda space: find_roots(space.source),
}


@pytest.mark.parametrize("what", ASKED)
def test_what_was_closed_says_so(build: Callable[..., Any], what: str) -> None:
    """Before and after it was asked once: what is known of it is not told any more."""
    for asked_before in (False, True):
        space = build(LA48).page(0x40_0000, 0x20_0007).space()
        if asked_before:
            ASKED[what](space)
        space.close()
        with pytest.raises(ValueError, match=r"is closed: .*; expected it open$"):
            ASKED[what](space)

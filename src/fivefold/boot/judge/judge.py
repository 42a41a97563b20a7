"""Check a finished boot from outside, with the machine's registers and memory, `arch/` and the documents alone.

The kernel says what it did; here its page tables are read again by code that shares nothing
with it, from the CR3 and CR4 that the machine really has, and held against the layout tables.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import zip_longest
from struct import Struct
from typing import Final

from fivefold.arch import (
    FETCH,
    READ,
    WRITE,
    Access,
    Allowed,
    Content,
    Fault,
    Mapped,
    PageRun,
    TooManyRuns,
    Vector,
    distinct_tables,
    translate,
)
from fivefold.boot.judge.evidence import Evidence
from fivefold.boot.judge.handover_checks import handover_checks
from fivefold.boot.judge.process_checks import process_checks
from fivefold.boot.result import Bounds, Check
from fivefold.errors import MemoryReadError
from fivefold.layout import Area, to_shadow
from fivefold.survey.scan.info_word import level_of, rights_of
from fivefold.units import PAGE, PhysAddr, VirtAddr, hex64

_RANGE: Final = Struct("<6Q")
"""The guest's dump: first address, last, physical, flags, info (kind, level, rights), jump."""
_MOST_RANGES: Final = 1 << 16
_STRUCT_PAGE: Final = 64
EMPTY_IN_THIS_KERNEL: Final = ("efi_runtime", "vsyscall")
"""Areas that the documents give to something which this kernel does not have; then nothing may be there."""


def judge(seen: Evidence, words: Mapping[str, int], areas: Mapping[str, Bounds]) -> list[Check]:
    """All checks from outside. *words* and *areas* are what the guest claims; they are compared, not believed.

    Tables that cannot be read, or that have no end, end the checks: with one more, which has failed.
    """
    if seen.state.mode is None:
        return [Check.outside("mode_from_registers", f"the CPU is in {seen.state.paging.value}")]
    done: list[Check] = []
    try:
        done.extend(_checks(seen, words, areas))
    except MemoryReadError as error:
        done.append(Check.outside("tables_readable", str(error)))
    except TooManyRuns as error:
        done.append(Check.outside("tables_bounded", str(error)))
    return done


def _checks(seen: Evidence, words: Mapping[str, int], areas: Mapping[str, Bounds]) -> Iterator[Check]:
    levels = len(list(seen.space.mode.levels))
    yield Check.outside("mode_expected", _differs("levels", levels, seen.expected_levels))
    yield Check.outside("mode_triple", _triple(words, levels))
    yield Check.outside("registers_reported", _registers(seen, words))
    yield Check.outside("areas_reported", _areas_differ(seen, areas))
    yield Check.outside("tables_reported", _differs("tables", words.get("tables", 0), seen.table_count))
    yield Check.outside("fold_depth", _depth(seen, levels))
    yield from process_checks(seen, words)
    yield from handover_checks(seen, words)
    yield Check.outside("scan_agrees", _scan_differs(seen, words))
    yield Check.outside("no_malformed_entries", _first(run for run in seen.runs if run.content is not Content.MAPPED))
    yield Check.outside("no_writable_executable", _first(r for r in seen.runs if r.rights.write and r.rights.execute))
    yield Check.outside("no_user_pages", _first(run for run in seen.runs if run.rights.user))
    yield Check.outside("tables_not_executable", _executable_tables(seen))
    yield Check.outside("area_direct_map", _direct_map(seen))
    yield Check.outside("area_vmemmap", _vmemmap(seen))
    yield Check.outside("area_kernel_image", _image(seen))
    for area in seen.areas:
        if area.kind == "mapped":
            if area.name == "kasan_shadow":
                yield Check.outside("kasan_shadow" if seen.has_shadow else "area_kasan_shadow", _shadow(seen, area))
            elif area.name not in ("direct_map", "vmemmap", "kernel_image"):
                yield Check.outside(f"area_{area.name}", _small_area(seen, area))
        else:
            yield Check.outside(f"guard_{area.name}", _guard(seen, area))
    yield Check.outside("guard_stack", _stack_guard(seen))
    yield Check.outside("guard_direct_map_end", _refused(seen, seen.area("direct_map").start + seen.ram[-1].end))


def _depth(seen: Evidence, levels: int) -> str:
    """A walk to a 4 KiB page of the image reads one entry a level: the folded level has no table."""
    found = translate(seen.space, seen.image.symbol("_text"))
    return _differs("entries read", len(found.steps), levels)


def _differs(what: str, got: int, want: int) -> str:
    return "" if got == want else f"{what}: {got}, expected {want}"


def _scan_differs(seen: Evidence, words: Mapping[str, int]) -> str:
    """The guest's own dump of its tables against the one made here, range by range."""
    count, size = words.get("scan_ranges", 0), words.get("scan_record_size", 0)
    if size != _RANGE.size or count > _MOST_RANGES:
        return f"{count} ranges of {size} bytes, expected ranges of {_RANGE.size} bytes"
    data = seen.memory.read(PhysAddr(words["scan_records"]), count * size)
    rows = _RANGE.iter_unpack(data)
    theirs = [(start, last + 1, phys, level_of(info), rights_of(info)) for start, last, phys, _, info, _ in rows]
    ours = [
        (r.start, r.end, r.phys, int(r.level), r.rights.write + 2 * r.rights.user + 4 * r.rights.execute)
        for r in seen.runs
    ]
    for one, other in zip_longest(ours, theirs):
        if one != other:
            return f"the guest has {_range_text(other)}, outside it is {_range_text(one)}"
    return ""


def _range_text(row: tuple[int, int, int, int, int] | None) -> str:
    return "nothing" if row is None else f"{hex64(row[0])}-{hex64(row[1])} level {row[3]} rights {row[4]:#x}"


def _first(found: Iterable[PageRun]) -> str:
    """The first of the runs that should not be, and how many there are."""
    rows = list(found)
    return f"{rows[0]} and {len(rows) - 1} more" if rows else ""


def _triple(words: Mapping[str, int], levels: int) -> str:
    want = {4: (0, 39, 1), 5: (1, 48, 512)}[levels]
    got = tuple(words.get(name, -1) for name in ("l5_enabled", "pgdir_shift", "ptrs_per_p4d"))
    return "" if got == want else f"(l5_enabled, pgdir_shift, ptrs_per_p4d) is {got}, expected {want}"


def _registers(seen: Evidence, words: Mapping[str, int]) -> str:
    real = {"cr0": seen.state.cr0, "cr3": seen.state.cr3, "cr4": seen.state.cr4, "efer": seen.state.efer}
    wrong = [name for name, value in real.items() if words.get(name) != value]
    return "; ".join(f"{name} is {hex64(real[name])}, reported {hex64(words.get(name, 0))}" for name in wrong)


def _areas_differ(seen: Evidence, areas: Mapping[str, Bounds]) -> str:
    want = {a.name: Bounds(a.start, a.end) for a in seen.areas if a.kind == "mapped" or a.name == "guard_hole"}
    wrong = sorted(name for name in want.keys() | areas.keys() if want.get(name) != areas.get(name))
    return f"the guest and the documents differ in {', '.join(wrong)}" if wrong else ""


def _executable_tables(seen: Evidence) -> str:
    """No table of the tree may be executable anywhere, nor writable outside the direct map and the image."""
    frames = sorted(frame for level in distinct_tables(seen.space).values() for frame in level)
    for run in seen.runs:
        if run.rights.execute and any(run.phys <= frame < run.phys + run.size for frame in frames):
            return f"{run} maps a page table"
    return ""


def _direct_map(seen: Evidence) -> str:
    """Exactly the memory of the map, each page at its place, readable, not executable."""
    area = seen.area("direct_map")
    covered: list[Bounds] = []
    for run in seen.runs_in(area):
        if run.start - area.start != run.phys:
            return f"{run} does not map physical {hex64(run.start - area.start)}"
        if run.rights.execute:
            return f"{run} is executable"
        start, end = run.start - area.start, run.end - area.start
        if covered and covered[-1].end == start:
            covered[-1] = Bounds(covered[-1].start, end)
        else:
            covered.append(Bounds(start, end))
    if tuple(covered) == seen.ram:
        return ""
    return f"maps {_spell(covered)}, but memory is {_spell(seen.ram)}"


def _spell(ranges: Iterable[Bounds]) -> str:
    return ", ".join(f"{hex64(r.start)}-{hex64(r.end)}" for r in ranges) or "nothing"


def _vmemmap(seen: Evidence) -> str:
    """Descriptors for every page of memory, writable; none beside them but what shares their pages."""
    area = seen.area("vmemmap")
    wanted = sum(r.end - r.start for r in seen.ram) // PAGE * _STRUCT_PAGE
    for ram in seen.ram:
        for frame in (ram.start // PAGE, ram.end // PAGE - 1):
            va = area.start + _STRUCT_PAGE * frame
            if isinstance(fault := seen.try_access(va, Access(WRITE.kind, 8)), Fault):
                return f"descriptor of frame {frame:#x}: {fault}"
            found = translate(seen.space, VirtAddr(va))
            if isinstance(found, Mapped) and seen.memory.read(found.pa, 8) != frame.to_bytes(8, "little"):
                return f"descriptor of frame {frame:#x} at {hex64(found.pa)} does not hold its number"
    mapped = sum(run.size for run in seen.runs_in(area))
    spare = 2 * PAGE * len(seen.ram) if mapped >= wanted else 0
    return "" if wanted <= mapped <= wanted + spare else f"maps {mapped} bytes for {wanted} bytes of descriptors"


def _image(seen: Evidence) -> str:
    """The image where it was linked, with the rights of its parts, and nothing else."""
    area = seen.area("kernel_image")
    low, high = seen.image.link_address, seen.image.link_address + seen.image.size
    guard = seen.image.symbol("stack_guard")
    expected = seen.image.size - PAGE
    for run in seen.runs_in(area):
        if run.start < low or run.end > high or run.start <= guard < run.end:
            return f"{run} maps what is not the image"
        if run.phys != run.start - low + seen.load:
            return f"{run} should map physical {hex64(run.start - low + seen.load)}"
        expected -= run.size
    if expected:
        return f"{expected} bytes of the image are not mapped"
    rights = {"_text": FETCH, "_rodata": READ, "_data": WRITE}
    for name, how in rights.items():
        for other in (FETCH, WRITE):
            allowed = isinstance(seen.try_access(seen.image.symbol(name), other), Allowed)
            if allowed != (other == how):
                return f"{other.kind.value} at {name} is {'allowed' if allowed else 'refused'}"
    return ""


def _shadow(seen: Evidence, area: Area) -> str:
    """All of it is mapped, memory's shadow writable and each byte its own, the rest not writable; or none of it."""
    runs = seen.runs_in(area)
    if not seen.has_shadow:
        return _first(runs)
    at = area.start
    for run in runs:
        if run.start != at or run.rights.execute or run.rights.user:
            return f"{run} comes after {hex64(at)}"
        at = run.end
    if at != area.end:
        return f"the shadow ends at {hex64(at)}, expected {hex64(area.end)}"
    frames: set[int] = set()
    for ram in seen.ram:
        for pa in sorted({ram.start, ram.end - PAGE}):
            va = to_shadow(seen.area("direct_map").start + pa)
            verdict = seen.try_access(va, WRITE)
            if isinstance(verdict, Fault):
                return f"the shadow of physical {hex64(pa)}: {verdict}"
            if verdict.pa in frames:
                return f"the shadow of physical {hex64(pa)} is that of another address"
            frames.add(verdict.pa)
    return _writable_beside(seen)


def _writable_beside(seen: Evidence) -> str:
    """The page of the shadow after that of each range of memory stands for nothing, or for the next range."""
    at = seen.area("direct_map").start
    pages = [range(to_shadow(at + ram.start) // PAGE, -(-to_shadow(at + ram.end) // PAGE)) for ram in seen.ram]
    for page in (own.stop for own in pages):
        unused = not any(page in other for other in pages)
        if unused and isinstance(seen.try_access(PAGE * page, WRITE), Allowed):
            return f"the shadow at {hex64(PAGE * page)} can be written and is that of no memory"
    return ""


def _small_area(seen: Evidence, area: Area) -> str:
    """Something is mapped here, all within the bounds; or nothing, where this kernel has no use for the area."""
    runs = seen.runs_in(area)
    if area.name in EMPTY_IN_THIS_KERNEL:
        return _first(runs) or _refused(seen, area.start) or _refused(seen, area.end - 1)
    if not runs:
        return "nothing is mapped"
    return _first(run for run in runs if run.start < area.start or run.end > area.end)


def _guard(seen: Evidence, area: Area) -> str:
    """Nothing is mapped, and the CPU refuses both ends as it must for this kind of address."""
    problem = _first(seen.runs_in(area))
    return problem or _refused(seen, area.start) or _refused(seen, area.end - 1)


def _refused(seen: Evidence, va: int) -> str:
    """A read at *va* must fault: #PF where the address is canonical, #GP where it is not."""
    canonical = seen.space.mode.is_canonical(va)
    verdict = seen.try_access(va, READ)
    if isinstance(verdict, Allowed):
        return f"a read at {hex64(va)} is allowed"
    want = Vector.PF if canonical else Vector.GP
    return "" if verdict.vector is want else f"a read at {hex64(va)} raises {verdict.vector.name}, not {want.name}"


def _stack_guard(seen: Evidence) -> str:
    return _refused(seen, seen.image.symbol("stack_guard"))

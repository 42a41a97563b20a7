"""A guest that is ready, looked at from outside with our own instruments, and held against what others say of it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from fivefold.arch import Mapped
from fivefold.errors import FivefoldError, MemoryReadError
from fivefold.layout import linux_areas, linux_constants
from fivefold.matrix.cells import Cell
from fivefold.matrix.result import CellCheck
from fivefold.matrix.run.console import InitReport
from fivefold.matrix.run.kernel_text import compare_text
from fivefold.matrix.vmm.base import RunningMachine
from fivefold.memory import Source
from fivefold.survey.audit.all_roots import audit_all_roots
from fivefold.survey.guest.roots import find_roots
from fivefold.survey.scan.leaves import Leaves
from fivefold.survey.scan.scan_result import ALL_FLAGS, Contiguity, expand_leaves
from fivefold.survey.space import Space
from fivefold.survey.stats import stats
from fivefold.units import GIB, PhysAddr, hex64

MOST_FINDINGS: Final = 8
"""That are told one by one."""
MOST_LEAVES: Final = 300_000
"""QEMU's ``info tlb`` prints a line each, with all other work at rest; a KASAN shadow has more than can be printed."""
_LEVELS: Final = {"la57": 5, "la48": 4}
_TLB: Final = re.compile(r"([0-9a-f]{16}): ([0-9a-f]{16}) ([XGPDACTUW-]{9})")
_LETTERS: Final = ((63, "X"), (8, "G"), (7, "P"), (6, "D"), (5, "A"), (4, "C"), (3, "T"), (2, "U"), (1, "W"))
_BASES: Final = ("page_offset_base", "vmalloc_base", "vmemmap_base")


@dataclass
class View:
    """What is looked at: the cell, the report of the kernel that waits, and the machine, which stands still."""

    cell: Cell
    report: InitReport
    mode: str
    machine: RunningMachine
    source: Source

    @cached_property
    def space(self) -> Space:
        """The address space of the first CPU."""
        return Space(self.source)

    @property
    def levels(self) -> int:
        """By the mode that was promised."""
        return _LEVELS[self.mode]

    @property
    def release(self) -> str:
        """As the guest says it, for the documents."""
        return self.report.release or "6.1"


Look = Callable[[View], Iterator[CellCheck]]


def looks(view: View) -> Iterator[CellCheck]:
    """All checks from outside. One that cannot be made is a check that failed, and says why."""
    for name, look in _LOOKS:
        try:
            yield from look(view)
        except FivefoldError as error:
            yield CellCheck(name, False, f"could not be looked at: {error}")


def _mode(view: View) -> Iterator[CellCheck]:
    found = view.source.cpus
    paging = [cpu for cpu in found if (cpu.cr0 or 0) >> 31 & 1]
    levels = {5 if (cpu.cr4 or 0) >> 12 & 1 else 4 for cpu in paging}
    ok = levels == {view.levels} and view.space.levels == view.levels
    without = f"; {len(found) - len(paging)} without paging" if len(paging) < len(found) else ""
    said = f"CR4.LA57 of {len(paging)} CPUs: {', '.join(str(n) for n in sorted(levels))} levels{without}"
    yield CellCheck("mode", ok, said)


def _areas(view: View) -> Iterator[CellCheck]:
    """Every area where the document of the release allows it to be, and none without a name."""
    areas = view.space.areas
    if not areas.areas:
        yield CellCheck("areas", False, areas.how)
        return
    yield CellCheck("areas", view.space.release.value is not None, areas.how)
    yield from _in_documents(view)


def _in_documents(view: View) -> Iterator[CellCheck]:
    """The bases within the bounds that the document's map of this release sets; the defaults where nothing is drawn."""
    documented = {area.name: area.start for area in linux_areas(view.release, view.levels)}
    step = linux_constants(view.release, view.levels).kaslr_step
    bases = view.space.bases
    low, end = documented["direct_map"], documented["kasan_shadow" if bases.kasan else "cpu_entry_area"]
    found = {"direct_map": bases.page_offset, "vmalloc": bases.vmalloc, "vmemmap": bases.vmemmap}
    drawn = view.cell.has_kaslr and not bases.kasan
    for name, base in found.items():
        if base.value is None:
            yield CellCheck(f"area-{name}", False, base.how)
            continue
        may_be = low <= base.value < end and base.value % step == 0 if drawn else base.value == documented[name]
        yield CellCheck(f"area-{name}", may_be, f"{hex64(base.value)}, documented {hex64(documented[name])}")
    order = [value for value in (low, bases.page_offset.value, bases.direct_map_end, bases.vmalloc.value) if value]
    order += [value for value in (bases.vmemmap.value, end) if value]
    yield CellCheck("areas-in-order", order == sorted(order), "direct map, vmalloc, vmemmap, one behind the other")
    window, text = documented["kernel_image"], bases.kernel_text
    inside = text.value is not None and window <= text.value < window + GIB
    yield CellCheck("area-kernel_image", inside, text.how if text.value is None else hex64(text.value))


def _kallsyms(view: View) -> Iterator[CellCheck]:
    """Bases that our instruments found in the tables against the kernel's own variables, at kallsyms' addresses."""
    bases = view.space.bases.named()
    symbols = view.report.symbols
    if not symbols:
        yield CellCheck("kallsyms", False, "the guest lists no symbols in /proc/kallsyms")
        return
    for name in _BASES:
        if name not in symbols:
            continue  # built without CONFIG_RANDOMIZE_MEMORY and without CONFIG_X86_5LEVEL: a constant
        value, found = _word(view, symbols[name]), bases[name].value
        said = "not readable" if value is None else hex64(value)
        yield CellCheck(
            f"kallsyms-{name}", value is not None and value == found, f"found {_hex(found)}, the kernel {said}"
        )
    text, ours = symbols.get("_text"), bases["kernel_text"].value
    if text is not None:
        yield CellCheck("kallsyms-_text", text == ours, f"found {_hex(ours)}, the kernel {hex64(text)}")


def _hex(value: int | None) -> str:
    return "nothing" if value is None else hex64(value)


def _word(view: View, va: int) -> int | None:
    found = view.space.translate(va)
    if not isinstance(found, Mapped):
        return None
    try:
        return int.from_bytes(view.source.memory.read(found.pa, 8), "little")
    except MemoryReadError:
        return None


def _tlb(view: View) -> Iterator[CellCheck]:
    """Every leaf, with its flags, as QEMU's own walk finds it."""
    if (count := Leaves(view.space.plain_tables).count()) > MOST_LEAVES:
        yield CellCheck("dump-against-info-tlb", True, f"not asked: {count} leaves are more than QEMU can print")
        return
    scan = view.space.scan(flags=ALL_FLAGS, contiguity=Contiguity.BREAK)
    ours = {
        (f"{va:016x}", f"{pa:016x}", "".join(letter if flags >> bit & 1 else "-" for bit, letter in _LETTERS))
        for va, pa, flags, _ in expand_leaves(scan).tolist()
    }
    said = view.machine.leaves()
    if said is None:
        return
    theirs = set(_TLB.findall(said))
    only = sorted(ours ^ theirs)
    detail = f"{len(ours)} leaves" if not only else f"{len(only)} differ, the first at 0x{only[0][0]}"
    yield CellCheck("dump-against-info-tlb", bool(theirs) and not only, detail)


def _kernel_text(view: View) -> Iterator[CellCheck]:
    """What the kernel's own text of its tables says of the direct map and its image, where it has one."""
    if view.report.text is None:
        return
    differing, count = compare_text(view.space, view.report.text.decode(errors="replace"))
    detail = f"{count} ranges" if differing is None else f"differs at {hex64(differing)}"
    yield CellCheck("dump-against-kernel-text", count > 0 and differing is None, detail)


def _audit(view: View) -> Iterator[CellCheck]:
    """The audit of all roots, one check a rule that fails, and one for the whole."""
    found = audit_all_roots(view.space)
    others = foreign_roots(view.space, had_others=bool(view.cell.kexec) or view.cell.hibernate)
    failing = [one for one in found.findings if one.fails and one.root not in others]
    for one in failing[:MOST_FINDINGS]:
        area = f" in {one.area}" if one.area else ""
        yield CellCheck(f"audit-{one.rule.name}", False, f"{one.place}{area}: {one.message}")
    detail = f"{found.looked_at} roots, {len(failing)} findings" if failing else f"{found.looked_at} roots"
    passed = sorted({others[one.root] for one in found.findings if one.fails and one.root in others})
    detail += "".join(f"; findings of {what} are not counted" for what in passed)
    yield CellCheck("audit", not failing and found.looked_at == found.of.value, detail)


def foreign_roots(space: Space, had_others: bool) -> dict[PhysAddr | None, str]:
    """Roots whose findings are not this kernel's doing, and what they are.

    The firmware's address space maps what firmware left to it, as it left it; after kexec, or a resume, memory holds
    the tables of the kernels before.
    """
    roots = find_roots(space.source)
    owners = space.names.processes  # this kernel's; tables of others would lead to theirs
    foreign: dict[PhysAddr | None, str] = {
        root: "efi_mm, the firmware's address space" for root, label in owners.labels.items() if label == "efi_mm"
    }
    if had_others:
        own = {process.root for process in owners.processes if process.root is not None} | owners.labels.keys()
        if not own:  # without BTF: what has this kernel's half
            mine = {root.group for root in roots if space.root.value in (root.root, root.pair)}
            own |= {root.root for root in roots if root.group in mine}
        own.add(space.root.value)
        foreign |= {root.root: "kernels before this one" for root in roots if not {root.root, root.pair} & own}
    return foreign


def _stats(view: View) -> Iterator[CellCheck]:
    """The numbers of the address space: its tables are complete, and each level of the mode has some."""
    found = stats(view.space)
    levels = [int(level.level) for level in found.levels if level.tables]
    malformed = sum(level.malformed + level.missing for level in found.levels)
    detail = f"{found.tables} tables, {found.physical >> 20} MiB mapped"
    ok = max(levels, default=0) == view.levels and not malformed
    yield CellCheck(
        "stats", ok, detail if not malformed else f"{detail}, {malformed} entries malformed or without table"
    )


_LOOKS: Final[tuple[tuple[str, Look], ...]] = (
    ("mode", _mode),
    ("areas", _areas),
    ("kallsyms", _kallsyms),
    ("dump-against-info-tlb", _tlb),
    ("dump-against-kernel-text", _kernel_text),
    ("audit", _audit),
    ("stats", _stats),
)

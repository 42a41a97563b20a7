"""What a source is, for people: every fact with its evidence."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from fivefold.memory import CpuState, Extent
from fivefold.report.sheet import Writable
from fivefold.survey.guest.evidence import Found
from fivefold.survey.guest.info import About
from fivefold.units import format_size, hex64

SHOWN_EXTENTS: Final = 8


_LABELS: Final = {
    "kasan": "KASAN",
    "wp": "CR0.WP",
    "smep": "CR4.SMEP",
    "smap": "CR4.SMAP",
    "nxe": "EFER.NXE",
    "phys_bits": "MAXPHYADDR",
    "c_bit": "C-bit",
    "pat_msr": "PAT MSR",
}


def write_info(about: About, out: Writable) -> None:
    """One fact a line: name, value, how it is known."""
    for name, value, how in _lines(about):
        out.write(f"{name:<16} {value}{f'  ({how})' if how else ''}\n")


def _lines(about: About) -> Iterator[tuple[str, str, str]]:
    source, facts = about.source, about.facts()
    yield "source", source.name, ""
    yield "format", source.format, _state(about)
    yield (
        "memory",
        format_size(sum(e.end - e.start for e in source.extents)),
        f"{len(source.extents)} extent{'s' if len(source.extents) != 1 else ''}",
    )
    yield from (("", text, "") for text in _extents(source.extents))
    mode = facts["mode"]
    yield "mode", f"{mode.value.name}, {int(mode.value.top)} levels" if mode.value else "not known", mode.evidence
    yield "root", _hex(facts["root"]), facts["root"].how
    yield from ((f"CPU {number}", _registers(cpu), cpu.source) for number, cpu in enumerate(source.cpus))
    yield "system", facts["system"].value or "not known", facts["system"].how
    yield "kernel", facts["release"].value or "not known", facts["release"].how
    yield "VMCOREINFO", facts["vmcoreinfo"].value or "none", facts["vmcoreinfo"].evidence
    if about.space is not None:
        yield from ((name, _hex(base), base.how) for name, base in about.space.bases.named().items())
        yield "areas", "named" if about.space.areas.areas else "not named", about.space.areas.how
    for name, label in _LABELS.items():
        value = "none" if name == "c_bit" and facts[name].how.startswith("sme_mask=0x0 ") else _plain(facts[name])
        yield label, value, facts[name].how
    yield from (("note", note, "") for note in source.notes)


def _state(about: About) -> str:
    if not about.source.live:
        return ""
    return "live and running: two reads may disagree" if about.source.torn else "live, stopped"


def _extents(extents: list[Extent]) -> Iterator[str]:
    for extent in extents[:SHOWN_EXTENTS]:
        yield f"{hex64(extent.start)}-{hex64(extent.end)} {format_size(extent.end - extent.start):>9}"
    if len(extents) > SHOWN_EXTENTS:
        yield f"and {len(extents) - SHOWN_EXTENTS} more, the last ends at {hex64(extents[-1].end)}"


def _registers(cpu: CpuState) -> str:
    named = (("CR0", cpu.cr0), ("CR3", cpu.cr3), ("CR4", cpu.cr4), ("EFER", cpu.efer), ("RIP", cpu.rip))
    return " ".join(f"{name} {value:#x}" for name, value in named if value is not None) or "no registers"


def _hex(found: Found[int | None]) -> str:
    return "not known" if found.value is None else hex64(found.value)


def _plain(found: Found[Any]) -> str:
    if isinstance(found.value, bool):
        return "yes" if found.value else "no"
    return "not known" if found.value is None else str(found.value)

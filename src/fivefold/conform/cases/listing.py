"""A case as a short listing that a person can check with a manual."""

from __future__ import annotations

from collections.abc import Iterator

from fivefold.arch import Entry, Flag, Level
from fivefold.conform.cases.case import LEVELS, Case
from fivefold.units import hex64

_NAMES = (
    ("P", Flag.P), ("RW", Flag.RW), ("US", Flag.US), ("PWT", Flag.PWT), ("PCD", Flag.PCD), ("A", Flag.A),
    ("D", Flag.D), ("G", Flag.G), ("XD", Flag.NX),
)  # fmt: skip


def listing(case: Case) -> str:
    """The registers, every entry of the case, and the access."""
    return "\n".join(_lines(case))


def _lines(case: Case) -> Iterator[str]:
    state = case.state()
    levels = int(case.paging.top)
    yield f"mode      {case.mode}: {levels} levels of page tables, CPL={case.cpl}"
    yield f"CR0       {hex64(state.cr0)} (WP={state.wp:d})"
    yield f"CR4       {hex64(state.cr4)}"
    yield f"EFER      {hex64(state.efer)} (NXE={state.nxe:d})"
    flags = ", ".join(f"{name.upper()}=1" for name in case.flags if name not in ("wp", "nxe"))
    yield f"set       {flags or 'no other protection'}"
    if case.pkru or case.pkrs:
        yield f"keys      PKRU={case.pkru:#010x} PKRS={case.pkrs:#010x}"
    for slot, raw in zip(case.path, case.stores().values(), strict=True):
        level = Level(LEVELS.index(slot.place.removesuffix("2")) + 1)
        mark = " " if raw == slot.usual else "*"
        yield f"{slot.place.upper():6} {mark}  {hex64(slot.at)}: {hex64(raw)}  {names(Entry(raw, level))}"
    if case.what.register is not None:
        yield f"write     {case.what.text}: {hex64(case.va)}"
        return
    if case.what.stale is not None:
        yield f"steps     {case.what.text}"
        yield f"stored    {hex64(case.new)}  {names(Entry(case.new, Level.PT))}"
        yield f"address   {hex64(case.va)}"
        return
    label = f"page-crossing {case.what.label}" if case.crosses else case.what.label
    yield f"access    {label} of {case.what.size} bytes at {hex64(case.va)}: {case.what.text}"


def names(entry: Entry) -> str:
    """The bits of an entry by name, and where it leads."""
    raw = entry.raw
    words = [name for name, bit in _NAMES if raw & int(bit)]
    if raw & Flag.BIT7:
        words.append("PS" if entry.level > Level.PT else "PAT")
    if key := entry.key:
        words.append(f"key {key}")
    return " ".join(words) or "nothing"

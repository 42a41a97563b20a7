"""The rules of an audit that look at memory: which frames are mapped twice, and with what difference."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations
from typing import Final

import numpy as np

from fivefold.arch import PAT_RESET, MemoryType
from fivefold.survey.audit.audit_checks import MAX_HITS, Hit
from fivefold.survey.audit.audit_views import Views
from fivefold.survey.scan.frame_sets import FrameSet, LeafRuns, joined
from fivefold.survey.scan.scan_result import Flags, Words
from fivefold.units import PAGE, hex64

_PAGE: Final = np.uint64(PAGE)
_DEVICES: Final = (0xFEC0_0000, 1 << 32)
"""Of the chipset on every PC: IOAPIC, HPET, local APICs, flash. Its MTRRs say UC, with which all but WC is UC.

Source: Intel SDM, "Effective Page-Level Memory Types". A Linux without PAT maps the HPET as WB and as UC- in one boot.
"""
_ELSEWHERE: Final = FrameSet(np.array([0, _DEVICES[1]], np.uint64), np.array([_DEVICES[0], (1 << 64) - 1], np.uint64))
_UC_BY_MTRR: Final = frozenset(("WB", "WT", "WP", "UC_MINUS", "UC", "PAT entry 0", "PAT entry 2", "PAT entry 3"))
"""Entries by number where the PAT MSR is not known: these have such types after a reset, and with Linux."""


def _pairs(memory: FrameSet, one: LeafRuns, other: LeafRuns, message: str) -> Iterator[Hit]:
    """A hit for each run of *memory*, at the first address in *one*; *message* gets that and one of *other*."""
    for run in memory.ranges(MAX_HITS + 1):
        here, there = one.at(run.start, 1)[0], other.at(run.start)
        text = message.format(here=hex64(here), there=hex64(there[0]))
        yield Hit(range(here, here + len(run)), run, text, tuple(there))


def writable_code_alias(views: Views) -> Iterator[Hit]:
    """Kernel mode executes what is X and not U (SMEP); a W mapping of any kind at another address changes it."""
    leaves = views.leaves
    code = leaves.where(leaves.executable & ~leaves.user & ~leaves.writable)
    writable = leaves.where(leaves.writable)
    yield from _pairs(code.frames & writable.frames, code, writable, "code at {here} is writable at {there}")


def user_writable_code_alias(views: Views) -> Iterator[Hit]:
    """User mode executes X and U, and writes W and U; the kernel's own mappings do not count."""
    leaves = views.leaves
    code = leaves.where(leaves.executable & leaves.user & ~leaves.writable)
    writable = leaves.where(leaves.writable & leaves.user)
    yield from _pairs(code.frames & writable.frames, code, writable, "code at {here} is writable at {there}")


def table_user(views: Views) -> Iterator[Hit]:
    """A page table in a page with U."""
    leaves = views.leaves
    reached = leaves.where(leaves.user)
    for run in _runs(views.table_frames, reached.frames.holds(views.table_frames)):
        here = reached.at(run.start)
        rights = "write" if leaves.where(leaves.user & leaves.writable).at(run.start, 1) else "read"
        message = f"user mode can {rights} {_tables(run)} at {hex64(here[0])}"
        yield Hit(range(here[0], here[0] + len(run)), run, message, tuple(here[1:]))


def table_writable_alias(views: Views) -> Iterator[Hit]:
    """A page table that two or more addresses can write; reported at the highest, which is not the direct map."""
    writable = views.leaves.where(views.leaves.writable)
    for run in _runs(views.table_frames, writable.times_mapped(views.table_frames) > 1):
        *others, here = writable.at(run.start)
        message = f"{_tables(run)} can be written at {hex64(here)} and {hex64(others[0])}"
        yield Hit(range(here, here + len(run)), run, message, tuple(others))


def _tables(run: range) -> str:
    count = len(run) // PAGE
    return f"the table at {hex64(run.start)}" if count == 1 else f"{count} tables from {hex64(run.start)}"


def _runs(frames: Words, chosen: Flags) -> list[range]:
    """The *chosen* frames as runs of physical memory, the first of them."""
    pages = frames[chosen]
    return joined(pages, pages + _PAGE).ranges(MAX_HITS + 1)


class MemoryTypes:
    """The rule that needs the PAT MSR to be sure; without it PAT entries are taken to differ if their numbers do."""

    def __init__(self, pat: int | None) -> None:
        """*pat* is the MSR, raw; None where it is not known."""
        self.pat = pat

    def __call__(self, views: Views) -> Iterator[Hit]:
        """Frames that are mapped through PAT entries of different types."""
        leaves = views.leaves
        kinds = {name: self._kind(name) for name in np.unique(leaves.pat).tolist()}
        by_kind = {
            kind: leaves.where(np.isin(leaves.pat, [np.uint64(n) for n, k in kinds.items() if k == kind]))
            for kind in dict.fromkeys(kinds.values())
        }
        for (one, ours), (other, theirs) in combinations(by_kind.items(), 2):
            message = f"{one} at {{here}}, {other} at {{there}}"
            both = ours.frames & theirs.frames
            memory = both & _ELSEWHERE if {one, other} <= _UC_BY_MTRR else both
            yield from _pairs(memory, ours, theirs, message)

    def _kind(self, index: int) -> str:
        if self.pat is None:
            return f"PAT entry {index}"
        value = self.pat >> 8 * index & 0xFF
        return MemoryType(value).name if value in set(MemoryType) else f"PAT entry {index} ({value:#x})"


LINUX_PAT: Final = 0x0407_0506_0007_0106
"""What Linux programs since 4.2 (``memtype.c``): WB, WC, UC-, UC, WB, WP, UC-, WT."""


def is_pat(value: int) -> bool:
    """Whether the PAT MSR can hold *value*: WRMSR refuses all else. Source: Intel SDM, "IA32_PAT MSR"."""
    return 0 <= value < 1 << 64 and all(byte in set(MemoryType) for byte in value.to_bytes(8, "little"))


PATS: Final = {"reset": PAT_RESET, "linux": LINUX_PAT}

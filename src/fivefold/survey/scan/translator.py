"""Translate many addresses at once: the kernel's batch walk over the memory of any guest."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from fivefold import _arguments
from fivefold.arch import FRAME_BITS, Cpu, Entry, Level
from fivefold.errors import MemoryReadError
from fivefold.kernel.scan import translate as kernel_translate
from fivefold.metal.extents import attach
from fivefold.metal.program import Program
from fivefold.metal.run import host
from fivefold.metal.run.instance import Instance
from fivefold.survey.scan.info_word import kind_of, level_of, rights_of
from fivefold.survey.scan.programs import translate_program
from fivefold.survey.scan.scan_result import Flags, RegionKind, Rows, Words, column
from fivefold.survey.scan.table_store import Bring, TableStore, bring_from
from fivefold.survey.space import Space
from fivefold.units import PhysAddr

ANSWER: Final = np.dtype([("phys", "<u8"), ("info", "<u8")])
ABSENT: Final = kernel_translate.ABSENT
NON_CANONICAL: Final = kernel_translate.NON_CANONICAL

ProgramLoader = Callable[[Program], Instance]


@dataclass(frozen=True, eq=False)
class Translations:
    """The answers in the order of the addresses, as columns; `Translator.batch` makes them."""

    rows: Rows

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def phys(self) -> Words:
        """Where each address leads; meaningless unless `mapped`."""
        return column(self.rows, "phys")

    @property
    def kind(self) -> Words:
        """`RegionKind.MAPPED`, `MALFORMED`, `UNREADABLE`, or `ABSENT`, or `NON_CANONICAL`."""
        return kind_of(column(self.rows, "info"))

    @property
    def mapped(self) -> Flags:
        """Which addresses lead somewhere."""
        found: Flags = self.kind == RegionKind.MAPPED
        return found

    @property
    def level(self) -> Words:
        """Of the leaf, of the entry that ended the walk, or of the table that is missing."""
        return level_of(column(self.rows, "info"))

    def right(self, name: str) -> Flags:
        """Whether ``write``, ``user`` or ``execute`` is allowed by all entries on the path; where mapped."""
        bit = ("write", "user", "execute").index(name)
        found: Flags = (rights_of(column(self.rows, "info")) >> np.uint64(bit) & np.uint64(1) != 0) & self.mapped
        return found


class Translator:
    """Walks of one address space; its memory must stay as long as this does. Not for several threads at once.

    *nxe* is EFER.NXE; *load* is `interpreter.load` to step through it as Python. *bring* in place of *banks* reads
    tables when walks come to them, each once: see `TableStore`.
    """

    def __init__(
        self,
        banks: Sequence[tuple[int, Any]],
        root: PhysAddr,
        levels: int,
        cpu: Cpu | None = None,
        nxe: bool = True,
        *,
        bring: Bring | None = None,
        load: ProgramLoader = host.load,
    ) -> None:
        cpu = cpu or Cpu()
        self.root = root
        self._code = load(translate_program(levels, scattered=len(banks) > 1, brought=bring is not None))
        self._store = None if bring is None else TableStore(self._code, bring)
        if self._store is None:
            attach(self._code, banks)
        else:
            self._store.need(root & FRAME_BITS)
        self._code.set("scan_entries.reserved", cpu.must_be_zero(Entry(0, Level.PT), nxe))
        self._code.set("scan_entries.reserved_top", cpu.must_be_zero(Entry(0, Level.PML4), nxe))
        self._code.set("scan_entries.gib_pages", int(cpu.gib_pages))

    def batch(self, addresses: npt.ArrayLike, out: Translations | None = None) -> Translations:
        """Translate all of *addresses*, 64-bit numbers; into the memory of *out*, as long, where that is given.

        Its twin for one address, with every step, is `fivefold.arch.translate`. `MemoryReadError` if the root cannot be
        read. New memory for answers costs as much as the walks: a caller that asks often should pass it.
        """
        asked = np.ascontiguousarray(addresses, "<u8").reshape(-1)
        rows = _room(len(asked)) if out is None else out.rows
        if len(rows) != len(asked):
            raise ValueError(f"room for {len(rows)} answers to {len(asked)} addresses; expected as many")
        if len(asked):
            self._run(asked, rows)
        found = Translations(rows)
        if self._store is not None and len(asked):
            self._bring(self._store, asked, found)
        return found

    def _bring(self, store: TableStore, asked: Words, found: Translations) -> None:
        """Read the tables that walks came to, a level at a time, and walk on."""
        while True:
            stopped = np.flatnonzero(found.kind == RegionKind.UNREADABLE)
            frames = np.unique(found.phys[stopped] & np.uint64(FRAME_BITS))
            awaited = frames[[not store.knows(frame) for frame in frames.tolist()]] if len(frames) else frames
            if not len(awaited):
                return
            store.fetch(awaited)
            again = np.zeros(len(stopped), ANSWER)
            self._run(np.ascontiguousarray(asked[stopped]), again)
            found.rows[stopped] = again

    def _run(self, asked: Words, rows: Rows) -> None:
        source, target = self._code.map(asked.view(np.uint8)), self._code.map(rows.view(np.uint8))
        try:
            if not self._code.call("translate.translate_all", self.root, source, target, len(asked)):
                raise MemoryReadError(self.root, 4096, "the memory to translate in")
        finally:
            self._code.unmap(source)
            self._code.unmap(target)


def _room(count: int) -> Rows:
    """Memory for answers, in large pages where there are any: small ones take as long to come as the walks take."""
    memory = mmap.mmap(-1, max(count, 1) * ANSWER.itemsize)
    with suppress(OSError):  # a kernel without transparent large pages
        memory.madvise(mmap.MADV_HUGEPAGE)
    rows: Rows = np.frombuffer(memory, ANSWER, count)
    return rows


def translator_of(space: Space) -> Translator:
    """The translator of an opened space: in place, or over the tables that its addresses need."""
    _arguments.opened("space", space, Space)
    memory, mask = space.source.memory, space.cpu.encryption_bits
    in_place = memory.zero_copy and not mask
    return Translator(
        memory.banks() if in_place else (),
        space.root.value,
        space.levels,
        space.cpu,
        space.nxe.value is not False,
        bring=None if in_place else bring_from(memory, mask),
    )

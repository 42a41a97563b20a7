"""An address space of a guest, opened for questions: root, mode and width with their evidence."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import fields, replace
from functools import cached_property
from types import TracebackType
from typing import Any, Final, Self, Unpack

import numpy as np

from fivefold import _arguments
from fivefold.arch import (
    TABLE_SIZE,
    AddressSpace,
    Cpu,
    PagingMode,
    TooManyRuns,
    Translation,
    translate,
)
from fivefold.errors import MemoryReadError, both_told
from fivefold.kernel.scan.scan_ranges import RIGHTS_SHIFT, WRITE
from fivefold.layout import Area
from fivefold.memory import Source, SourceOptions, open_source
from fivefold.memory.open_source import SourceKeywords
from fivefold.notebook import html_table
from fivefold.survey.guest.areas import AreaMap, detect_areas
from fivefold.survey.guest.bases import KernelBases, find_bases
from fivefold.survey.guest.cpu.encryption import WithoutBits, choose_c_bit, cpu_with, suspected_bit
from fivefold.survey.guest.evidence import Found
from fivefold.survey.guest.identify import GivenPaging, choose_mode, choose_phys_bits, choose_root, controls_of
from fivefold.survey.guest.system import GuestSystem, guest_system, release_told
from fivefold.survey.guest.vmcoreinfo import KernelNotes, kernel_notes
from fivefold.survey.names.kernel_names import KernelNames, kernel_names
from fivefold.survey.paths import Path, path_of
from fivefold.survey.scan.one_address import OneAddress
from fivefold.survey.scan.regions import Regions, regions_of
from fivefold.survey.scan.scan import TableScanner
from fivefold.survey.scan.scan_result import ALL_FLAGS, DEFAULT_FLAGS, Contiguity, RegionKind, ScanResult, ScanSettings
from fivefold.survey.scan.table_store import bring_from
from fivefold.symbols import Symbols
from fivefold.units import MASK64, PhysAddr, VirtAddr, hex64

MAX_UNFOLDED: Final = 1 << 22
"""Ranges that shared tables may unfold into before they are listed once, with how often they repeat."""

REPEAT_ABOVE: Final = 64
"""Where that is too many, a table with fewer ranges than this still unfolds."""

_GIVEN: Final = tuple(field.name for field in fields(GivenPaging))

FEW: Final = 12
"""Addresses that are translated in plain Python before native code is made ready for more."""

PTI_USER_BIT: Final = 1 << 12
"""Linux' page-table isolation keeps the user half's root in the page after the kernel's."""


class Space:
    """The address space under one root of a source. Close it, or use it in a ``with`` statement.

    `root`, `mode`, `phys_bits` and `c_bit` are `Found`: each says how it is known. `controls` are the CPU's registers
    as far as they change what entries allow.
    """

    def __init__(
        self,
        source: Source,
        given: GivenPaging | None = None,
        *,
        root: Found[PhysAddr] | None = None,
        mode: Found[PagingMode] | None = None,
    ) -> None:
        """Decide root and mode where they are not given, or raise `NotKnownError`; *source* is closed with this."""
        _arguments.opened("source", source, Source)
        self.source = source
        self.symbol_file: str | None = None
        self._one: OneAddress | None = None
        self._asked = 0
        self.given = given or GivenPaging()
        self.root = root or choose_root(source, self.given)
        self.mode = mode or choose_mode(source, self.root.value, self.given)
        self.phys_bits: Found[int | None] = choose_phys_bits(self.given)
        self.c_bit: Found[int | None] = choose_c_bit(self.given.c_bit, kernel_notes(source))
        self.controls = controls_of(source, self.given)
        self.tables = AddressSpace(
            source.memory, self.root.value, self.mode.value, self.cpu, self.nxe.value is not False
        )

    @cached_property
    def cpu(self) -> Cpu:
        """The CPU by whose rules the tables are read: the widest there is, narrowed by what is known."""
        return cpu_with(self.c_bit.value, self.phys_bits.value)

    @cached_property
    def suspected_c_bit(self) -> int | None:
        """The bit that keeps every entry of the root from leading to memory, where no encryption bit is known."""
        return suspected_bit(self.source.memory, self.root.value) if self.c_bit.value is None else None

    @property
    def closed(self) -> bool:
        """Whether it, or another space of its source, was closed."""
        return self.source.closed

    @property
    def nxe(self) -> Found[bool | None]:
        """EFER.NXE, None where it is not known."""
        return self.controls.nxe

    @property
    def plain_tables(self) -> AddressSpace:
        """The same tables without the encryption bit, for readers that know of no such bit."""
        if not self.cpu.encryption_bits:
            return self.tables
        memory = WithoutBits(self.source.memory, self.cpu.encryption_bits)
        return replace(self.tables, memory=memory, cpu=replace(self.cpu, c_bit=None))

    @property
    def levels(self) -> int:
        """4 or 5."""
        return int(self.mode.value.top)

    def with_root(self, root: PhysAddr, how: str) -> Space:
        """The same source and mode under another root; closing either closes both. `MemoryReadError` if unreadable."""
        _arguments.opened("space", self, Space)
        self.source.memory.read(root, TABLE_SIZE)
        other = Space(self.source, self.given, root=Found(root, how), mode=self.mode)
        other.symbol_file = self.symbol_file
        other.scanner = self.scanner
        return other

    def translate(self, va: int) -> Translation:
        """Where *va* leads, or what stops it; rights are the entries'. `MemoryReadError` without a table.

        Of memory that is read in place the answer keeps no entries: `steps` are read when they are asked for.
        """
        one = self._one or self.one
        if one is not None and va.__class__ is int and not va >> 64:
            return one.translate(va)  # type: ignore[arg-type]
        _arguments.opened("space", self, Space)
        return translate(self.tables, VirtAddr(_arguments.word("va", va)))

    def path(self, va: int) -> Path:
        """Every entry read for *va*, with what came of it; a missing table is an answer, too."""
        _arguments.opened("space", self, Space)
        return path_of(self.tables, VirtAddr(_arguments.word("va", va)), self.areas.name_at(va), self.controls)

    @property
    def one(self) -> OneAddress | None:
        """What walks address by address natively: from the second dozen on, and not in what may change meanwhile."""
        if self._one is None and self._asked >= 0:
            self._asked += 1
            in_place = self.source.memory.zero_copy and not self.cpu.encryption_bits
            if self._asked > FEW and in_place and not self.source.live and not self.closed:
                self._one = OneAddress(self.source.memory, self.tables)
                self.source.memory.when_closed(self._forget_one)
        return self._one

    def _forget_one(self) -> None:
        self._one, self._asked = None, -1

    @cached_property
    def scanner(self) -> TableScanner:
        """The native scan over this source's memory in place, or over tables that are read as it comes to them.

        It serves all roots of the source.
        """
        memory = self.source.memory
        encrypted = self.cpu.encryption_bits
        if memory.zero_copy and not encrypted:
            scanner = TableScanner(memory.banks())
        else:
            scanner = TableScanner(bring=bring_from(memory, encrypted))
        memory.when_closed(scanner.close)
        return scanner

    def scan(
        self,
        *,
        flags: int = DEFAULT_FLAGS,
        contiguity: Contiguity = Contiguity.NOTE,
        window: range | None = None,
        repeat_above: int | None = None,
    ) -> ScanResult:
        """All ranges, as numpy columns; *window* has an exclusive end, and an empty one has none.

        Shared tables unfold, unless there are more than `MAX_UNFOLDED` ranges: then they are listed once and as
        `RegionKind.REPEAT` after that. `TooManyRuns` when that does not help.
        """
        settings = ScanSettings.for_cpu(
            self.cpu,
            self.tables.nxe,
            flags=flags,
            contiguity=contiguity,
            first=window.start if window else 0,
            last=window.stop - 1 if window else MASK64,
            repeat_above=repeat_above,
        )
        if window is not None and not window:
            return ScanResult.nothing(self.root.value, self.levels, settings)
        try:
            return self.run(settings, MAX_UNFOLDED)
        except TooManyRuns:
            if repeat_above is not None:
                raise
        return self.scan(flags=flags, contiguity=contiguity, window=window, repeat_above=REPEAT_ABOVE)

    def run(self, settings: ScanSettings, max_ranges: int) -> ScanResult:
        """One scan as *settings* say, with rights as the CPU grants them. `TooManyRuns` above *max_ranges*."""
        _arguments.opened("space", self, Space)
        result = self.scanner.scan(self.root.value, self.levels, settings, max_ranges=max_ranges)
        self.source.check()
        if self.controls.ignores_read_only:
            supervisor = (result.kind == RegionKind.MAPPED) & ~result.user
            result.rows["info"][supervisor] |= np.uint64(WRITE << RIGHTS_SHIFT)
        return result

    def regions(
        self,
        window: range | None = None,
        *,
        all_bits: bool = True,
        contiguous: bool = False,
        repeat_above: int | None = None,
    ) -> Regions:
        """What is mapped, ascending and named, cut to *window* (its end exclusive) and at the borders of areas.

        A region breaks where page size, effective rights or flags change: *all_bits* False leaves out
        accessed, dirty, software bits and key. *contiguous* breaks where physical memory does. Malformed
        entries and tables that are not in memory are regions, too: look at `Region.kind`.
        """
        _arguments.instance("window", window, range, type(None))
        result = self.scan(
            flags=ALL_FLAGS if all_bits else DEFAULT_FLAGS,
            contiguity=Contiguity.BREAK if contiguous else Contiguity.NOTE,
            window=window,
            repeat_above=repeat_above,
        )
        areas = self.areas
        return Regions(lambda: regions_of(result, window, areas), repr(self).strip("<>"))

    @cached_property
    def overview(self) -> ScanResult:
        """The whole space, merged without regard to what the CPU and software note in the leaves."""
        return self.scan()

    @cached_property
    def _of_kernel(self) -> tuple[Space, KernelBases]:
        """The space whose tables show the kernel, and what they show: this one, or its kernel's half."""
        own = find_bases(self.overview)
        partner = self._kernel_partner() if own.page_offset.value is None else None
        if partner is not None:
            theirs = find_bases(partner.overview)
            if theirs.page_offset.value is not None:
                return partner, theirs
        return self, own

    @property
    def kernel_space(self) -> Space:
        """The space whose tables show the kernel: this one, or, of a user root, that of the kernel's root beside it."""
        return self._of_kernel[0]

    @cached_property
    def notes(self) -> KernelNotes:
        """What a Linux says of itself, in a note of the source or in memory."""
        return kernel_notes(self.source)

    @cached_property
    def system(self) -> GuestSystem:
        """Which system runs here, as far as its map of memory goes."""
        try:
            kernel, bases = self._of_kernel
        except TooManyRuns as error:
            return GuestSystem(Found(None, str(error)), release_told(self.notes))
        return guest_system(kernel.overview, bases, self.source.memory, self.notes)

    @cached_property
    def bases(self) -> KernelBases:
        """Where a Linux has its areas; none of another system. A user root is answered for by its kernel's."""
        if self.system.is_linux:
            return self._of_kernel[1]
        try:
            found = self._of_kernel[1]
        except TooManyRuns as error:
            return KernelBases.unknown(str(error))
        return found.disowned(f"a base of Linux, and this is {self.system.name.value or 'not known to be Linux'}")

    def _kernel_partner(self) -> Space | None:
        """The space of the kernel's root, where this may be the user's."""
        if not self.root.value & PTI_USER_BIT:
            return None
        try:
            return self.with_root(PhysAddr(self.root.value ^ PTI_USER_BIT), "the page before, for page-table isolation")
        except MemoryReadError:
            return None

    @cached_property
    def names(self) -> KernelNames:
        """What the kernel here calls its functions, data and processes; `symbol_file` in place of what it carries."""
        kernel, bases = self._of_kernel
        return kernel_names(
            kernel.overview, kernel.tables, self.source.memory, bases, self.notes, symbol_file=self.symbol_file
        )

    @property
    def symbols(self) -> Symbols:
        """Names of addresses, looked for in memory when they are first asked for; none of a space too large to scan."""
        try:
            return self.names.symbols
        except TooManyRuns as error:
            return Symbols((), str(error))

    @property
    def release(self) -> Found[str | None]:
        """Which Linux it is, where the source says."""
        return self.system.release

    @cached_property
    def areas(self) -> AreaMap:
        """Names by detection, with the reason for them."""
        return detect_areas(self.levels, self.bases, self.system, self.notes.image_limit)

    def base_at(self, va: int) -> int | None:
        """Where what is at *va* is based: see `base_of`; None where no area is named."""
        area = self.areas.at(va)
        return None if area is None else self.base_of(area)

    def base_of(self, area: Area) -> int:
        """Where *area* begins; the kernel image and modules begin anywhere in the windows that are kept for them."""
        if area.name == "kernel_image" and self.bases.kernel_text.value is not None:
            return self.bases.kernel_text.value
        if area.name == "modules":
            scan = self.overview
            inside = (scan.start >= np.uint64(area.start)) & (scan.start <= np.uint64(area.end - 1))
            found = scan.start[inside & (scan.kind == RegionKind.MAPPED)]
            return int(found[0]) if len(found) else area.start
        return area.start

    def close(self) -> None:
        """Let go of the source."""
        self.source.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with both_told(error):
            self.close()

    def _repr_html_(self) -> str:
        """What is decided about it, with the evidence; nothing is scanned for it."""
        facts: dict[str, Found[Any]] = {
            "root": Found(hex64(self.root.value), self.root.how),
            "mode": Found(f"{self.mode.value.name}, {self.levels} levels", self.mode.evidence),
            "MAXPHYADDR": self.phys_bits,
            "EFER.NXE": self.nxe,
            "kernel": self.release,
        }
        rows = [(name, "not known" if fact.value is None else fact.value, fact.how) for name, fact in facts.items()]
        return html_table(f"{self.source.name}: {self.source.format}", ("what", "value", "known from"), rows)

    def __repr__(self) -> str:
        """Source, root and mode on one line."""
        return f"<Space of {self.source.name}, root {hex64(self.root.value)}, {self.mode.value.name}>"


class SpaceKeywords(SourceKeywords, total=False):
    """The fields of `GivenPaging` and `SourceOptions` as keywords, for type checkers."""

    cr3: int | None
    cr4: int | None
    levels: int | None
    phys_bits: int | None
    cpu: int | None
    force: bool
    c_bit: int | None
    as_if: Mapping[str, bool]


def open_space(
    spec: str | os.PathLike[str], options: SourceOptions | None = None, **changes: Unpack[SpaceKeywords]
) -> Space:
    """Open *spec* as `fivefold.memory.open_source` does and decide which address space it is.

    *changes*: ``cr3``, ``cr4``, ``levels``, ``phys_bits``, ``cpu``, ``force``, ``c_bit`` and ``as_if`` as in
    `GivenPaging`, all others as in `fivefold.memory.SourceOptions`.

    Raises what `open_source` does, and `NotKnownError`.
    """
    _arguments.keywords("open", changes, SpaceKeywords.__annotations__)
    keywords: dict[str, Any] = dict(changes)
    given = GivenPaging(**{name: keywords.pop(name) for name in _GIVEN if name in keywords})
    from fivefold.survey.guest.ram_holes import with_hole  # which opens spaces itself

    source = open_source(spec, options, **keywords)
    try:
        return Space(with_hole(source, given), given)
    except BaseException:  # whatever is raised, the source must not stay open
        source.close()
        raise

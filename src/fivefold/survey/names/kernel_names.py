"""What a kernel in memory calls its functions, data and processes, put together for one address space."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Final

from fivefold.arch import AddressSpace
from fivefold.errors import FormatError, MemoryReadError
from fivefold.memory import SourceMemory
from fivefold.survey.guest.bases import KernelBases
from fivefold.survey.guest.vmcoreinfo import KernelNotes
from fivefold.survey.names.btf import HEAD, Btf, size_of
from fivefold.survey.names.fitting import fitted
from fivefold.survey.names.image_bytes import image_pieces, image_rows
from fivefold.survey.names.kallsyms import find_kallsyms
from fivefold.survey.names.kernel_memory import KernelMemory
from fivefold.survey.names.modules import module_spans
from fivefold.survey.names.processes import ProcessList, list_processes
from fivefold.survey.scan.scan_result import ScanResult
from fivefold.symbols import Symbols, read_symbols
from fivefold.units import hex64

_NO_BTF: Final = "no BTF in the kernel's image"


_KNOWN: Final[dict[int, dict[tuple[object, ...], KernelNames]]] = {}
"""By the number of an open memory. Names hold their memory, so what is known goes when that is closed."""


def kernel_names(
    scan: ScanResult,
    tables: AddressSpace,
    source: SourceMemory,
    bases: KernelBases,
    notes: KernelNotes,
    *,
    symbol_file: str | None = None,
) -> KernelNames:
    """The names of the kernel whose whole space *scan* covers; those of one kernel are found once, whatever the root.

    `FormatError` or `CannotOpenError` where *symbol_file* cannot be used.
    """
    if id(source) not in _KNOWN:
        _KNOWN[id(source)] = {}
        source.when_closed(lambda: _forget(id(source)))
    known = _KNOWN[id(source)]
    key = (symbol_file, *image_rows(scan))
    if key not in known:
        names = KernelNames(scan, tables, source)
        if symbol_file is not None:
            names.given = fitted(read_symbols(symbol_file), names.memory, bases, notes)
        known[key] = names
    return known[key]


def _forget(number: int) -> None:
    _KNOWN.pop(number, None)


@dataclass
class KernelNames:
    """Names of the kernel whose whole space *scan* covers and *tables* map; looked for when they are asked for.

    *given*: symbols from a file, which then serve in place of kallsyms.
    """

    scan: ScanResult
    tables: AddressSpace
    source: SourceMemory
    given: Symbols | None = None
    memory: KernelMemory = field(init=False)

    def __post_init__(self) -> None:
        """Nothing is read yet."""
        self.memory = KernelMemory(self.tables, self.source.name)

    @cached_property
    def kernel(self) -> Symbols:
        """The kernel's own symbols, without modules."""
        if self.given is not None:
            return self.given
        if not self.source.searchable:
            return Symbols((), "memory was not searched for kallsyms, which would take long")
        found = find_kallsyms(image_pieces(self.scan, self.source, self.tables))
        if found is None:
            return Symbols((), "no kallsyms in what is mapped of a kernel's image")
        return Symbols((found.span,), f"{found.count} names of the kernel's own kallsyms, at {hex64(found.at)}")

    @cached_property
    def symbols(self) -> Symbols:
        """The kernel's symbols and those of its modules."""
        kernel = self.kernel
        if not kernel or any(span.module for span in kernel.spans):
            return kernel
        btf = self.btf
        spans, why = ([], self.btf_is_missing) if btf is None else module_spans(self.memory, kernel, btf)
        count = len({span.module for span in spans})
        told = f", and {count} module{'s' if count != 1 else ''}" if spans else ""
        return Symbols([*kernel.spans, *spans], f"{kernel.how}{told}" + (f"; without modules: {why}" if why else ""))

    @property
    def btf_is_missing(self) -> str:
        """Why `btf` is None."""
        return self._btf if isinstance(self._btf, str) else ""

    @property
    def btf(self) -> Btf | None:
        """What the kernel says of its structures, None where it does not."""
        return self._btf if isinstance(self._btf, Btf) else None

    @cached_property
    def _btf(self) -> Btf | str:
        at = self.kernel.address("__start_BTF")
        if at is None:
            return _NO_BTF
        try:
            return Btf(self.memory.read(at, size_of(self.memory.read(at, HEAD.size))))
        except (FormatError, MemoryReadError) as error:
            return f"{_NO_BTF} that can be read: {error}"

    @cached_property
    def processes(self) -> ProcessList:
        """Who runs there."""
        if not self.kernel:
            return ProcessList((), {}, f"no processes: {self.kernel.how}")
        btf = self.btf
        if btf is None:
            return ProcessList((), {}, f"no processes: {self.btf_is_missing}")
        return list_processes(self.memory, self.kernel, btf)

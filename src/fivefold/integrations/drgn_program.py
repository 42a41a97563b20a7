"""A drgn program over a guest that was opened here: drgn's own page-table walk, over our memory and our VMCOREINFO.

drgn refuses a memory without a VMCOREINFO note, as QEMU's dumps are unless the guest loaded a driver for it. The text
lies in the guest's memory all the same.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from fivefold import _arguments
from fivefold.errors import FormatError, MemoryReadError, MissingFileError
from fivefold.memory import Source
from fivefold.survey.space import Space
from fivefold.symbols import SymbolSpan
from fivefold.symbols.symbols import TEXT_KINDS
from fivefold.units import PAGE, PhysAddr

if TYPE_CHECKING:
    import drgn

FINDER: Final = "fivefold"
_ROOTS: Final = ("init_top_pgt", "swapper_pg_dir")
_WEAK: Final = frozenset("wWvV")


def to_drgn(space: Space) -> drgn.Program:
    """Return a `drgn.Program` for the Linux in *space*, which must stay open while it is used.

    Memory is read through *space*, drgn walks the tables itself, and symbols are those of the guest's kallsyms. Types
    need debug information (DWARF): `Program.load_debug_info` with the kernel's vmlinux. `FormatError` where there is
    no Linux, `MissingFileError` without drgn 0.3 or newer.
    """
    _arguments.opened("space", space, Space)
    drgn = _drgn()
    program = drgn.Program(drgn.Platform(drgn.Architecture.X86_64), vmcoreinfo=vmcoreinfo_text(space))
    source = space.source
    for extent in source.extents:
        program.add_memory_segment(extent.start, extent.end - extent.start, _reader(drgn, source), physical=True)
    program.set_linux_kernel_custom("", source.live)
    program.register_symbol_finder(FINDER, _finder(drgn, space), enable_index=-1)
    return program


def vmcoreinfo_text(space: Space) -> str:
    """VMCOREINFO as drgn reads it: the guest's own, else the lines that drgn needs, from what the tables show.

    `FormatError` where neither can be had.
    """
    facts = dict(space.notes.facts)
    if "SYMBOL(swapper_pg_dir)" not in facts:
        facts = _shown(space)
    return "".join(f"{name}={value}\n" for name, value in facts.items())


def _shown(space: Space) -> dict[str, str]:
    """What drgn asks of VMCOREINFO, from kallsyms and the tables of a kernel that was built without it."""
    kernel, phys_base = space.names.kernel, space.bases.phys_base.value
    root = next((at for name in _ROOTS if (at := kernel.address(name)) is not None), None)
    release = space.release.value
    if root is None or phys_base is None or release is None:
        lacking = "the symbol init_top_pgt" if root is None else "a release" if release is None else "phys_base"
        raise FormatError(
            f"{space.source.name}: drgn needs VMCOREINFO, and the memory has none ({space.notes.where}), nor "
            f"{lacking} to make it from"
        )
    signed = phys_base - (1 << 64) if phys_base >> 63 else phys_base
    return {
        "OSRELEASE": release,
        "PAGESIZE": str(PAGE),
        "NUMBER(phys_base)": str(signed),
        "SYMBOL(swapper_pg_dir)": f"{root:x}",
        "NUMBER(pgtable_l5_enabled)": str(int(space.levels == 5)),
    }


def _drgn() -> Any:
    try:
        import drgn
    except ImportError as error:
        raise MissingFileError(
            f"the package drgn is not installed ({error}); install it with: pip install 'fivefold[drgn]'"
        ) from error
    if not hasattr(drgn.Program, "set_linux_kernel_custom"):
        raise MissingFileError(f"drgn is {drgn.__version__}; expected 0.3 or newer: pip install 'fivefold[drgn]'")
    return drgn


def _reader(drgn: Any, source: Source) -> Any:
    def read(address: int, count: int, offset: int, physical: bool) -> bytes:
        try:
            return bytes(source.memory.read(PhysAddr(address), count))
        except MemoryReadError as error:
            raise drgn.FaultError(str(error), address) from error

    return read


def _finder(drgn: Any, space: Space) -> Any:
    """Symbols by name or address; kallsyms are looked for when drgn first asks."""

    def find(_: Any, name: str | None, address: int | None, one: bool) -> list[Any]:
        found = (row for span in space.symbols.spans for row in _rows(span, name, address))
        made = (_symbol(drgn, *row) for row in found)
        return [first for first in [next(made, None)] if first is not None] if one else list(made)

    return find


def _rows(span: SymbolSpan, name: str | None, address: int | None) -> Iterator[tuple[int, str, str, int]]:
    """Address, kind, name and size of the symbols in *span* that are asked for."""
    if address is None:
        numbers = range(len(span.addresses)) if name is None else span.numbers_of and span.numbers_of(name)
        if numbers is None:
            numbers = [number for number, one in enumerate(span) if one.name == name]
    elif span.start <= address < span.end:
        last = bisect_right(span.addresses, address)
        numbers = range(bisect_left(span.addresses, span.addresses[last - 1]), last)
    else:
        return
    for number in numbers:
        kind, text = span.name_of(number)
        if name is None or text == name:
            at = span.addresses[number]
            after = bisect_right(span.addresses, at)
            end = span.addresses[after] if after < len(span.addresses) else span.end
            yield at, kind, text, end - at


def _symbol(drgn: Any, address: int, kind: str, name: str, size: int) -> Any:
    binding = drgn.SymbolBinding.GLOBAL if kind.isupper() else drgn.SymbolBinding.LOCAL
    if kind in _WEAK:
        binding = drgn.SymbolBinding.WEAK
    function = kind in TEXT_KINDS
    return drgn.Symbol(name, address, size, binding, drgn.SymbolKind.FUNC if function else drgn.SymbolKind.OBJECT)

"""Names of addresses: from System.map, ``/proc/kallsyms`` as text, or the symbol table of vmlinux."""

from fivefold.symbols.files import moved, read_symbols
from fivefold.symbols.symbols import NO_SYMBOLS, KernelSymbol, Symbols, SymbolSpan

__all__ = ["NO_SYMBOLS", "KernelSymbol", "SymbolSpan", "Symbols", "moved", "read_symbols"]

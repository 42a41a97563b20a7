"""Names of addresses: from System.map, ``/proc/kallsyms`` as text, or the symbol table of an ELF file."""

from fivefold.symbols.table import Symbol, SymbolTable, read_symbols

__all__ = ["Symbol", "SymbolTable", "read_symbols"]

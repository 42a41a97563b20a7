"""Addresses of a few symbols, read from /proc/kallsyms as it comes: no table of it fits where it is not kept."""

from __future__ import annotations

from typing import Final

from fivefold.matrix.init import lines
from fivefold.matrix.init.asks import SYMBOL_HASHES
from fivefold.matrix.init.calls import O_RDONLY, close_file, failed, open_file, read_file
from fivefold.metal.lang import buffer, load8, u64

CHUNK: Final = 1 << 16
text: Final = buffer(CHUNK, 16)

field: u64 = 0
address: u64 = 0
name: u64 = lines.HASH_START


def report_symbols() -> None:
    """A line ``symbol NUMBER ADDRESS`` for each of `asks.SYMBOLS` that the kernel lists."""
    file = open_file("/proc/kallsyms", O_RDONLY)
    if failed(file):
        return
    while True:
        got = read_file(file, text, CHUNK)
        if got == 0:
            break
        for i in range(got):
            take(load8(text + i))
    close_file(file)


def take(byte: u64) -> None:
    """One byte: of the address, of the kind, of the name, or behind the name where a module's stands."""
    global field, address, name
    if byte == 10:
        end_of_line()
        field = 0
        address = 0
        name = lines.HASH_START
    elif byte == 32 or byte == 9:
        field += 1
    elif field == 0:
        address = address << 4 | ((byte & 15) + (9 if byte > 57 else 0))
    elif field == 2:
        name = (name ^ byte) * lines.HASH_FACTOR


def end_of_line() -> None:
    """Say the address if the name is one that is asked for. One in a module has a field more."""
    if field != 2:
        return
    for i in range(len(SYMBOL_HASHES)):
        if SYMBOL_HASHES[i] == name:
            lines.begin("symbol")
            lines.put_hex(i)
            lines.put_hex(address)
            lines.end()

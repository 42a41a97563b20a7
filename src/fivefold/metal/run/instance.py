"""What a loaded program can do, whether it runs as Python or as native code."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from fivefold.units import MASK64

MACHINE_WORDS: Final = (
    *("cpuid", "inb", "inw", "inl", "outb", "outw", "outl"),
    *("read_cr0", "read_cr2", "read_cr3", "read_cr4", "rdmsr", "read_rflags", "read_rsp", "rdtsc"),
    *("invlpg", "cli", "sti", "hlt", "pause"),
)
"""Intrinsics that ask the machine: plain code calls the method of that name of its ``cpu``."""


@dataclass(frozen=True, slots=True)
class Callee:
    """How to call a function: kinds of its parameters by their annotations, and whether it returns a value."""

    kinds: tuple[str, ...]
    returns: str


class Instance(ABC):
    """One copy of a program with variables, buffers and memory of its own.

    Names are ``module.name`` with the module's last part, or the full dotted name.
    Not for use from several threads at once.
    """

    @abstractmethod
    def call(self, name: str, /, *args: int | str | bytes) -> int:
        """Call a root function; a bool comes back as 0 or 1, None as 0.

        A ``str`` parameter takes text, bytes or the address of NUL-terminated bytes.
        """

    @abstractmethod
    def get(self, variable: str) -> int:
        """Return the value of a module variable; a bool as 0 or 1."""

    @abstractmethod
    def set(self, variable: str, value: int) -> None:
        """Give a module variable a value; `ValueError` if the build binds it."""

    @abstractmethod
    def address(self, buffer: str) -> int:
        """Return the address of a buffer that the program uses."""

    @abstractmethod
    def read(self, addr: int, size: int) -> bytes:
        """Return bytes of the program's buffers or of mapped memory; else raise `MemoryReadError`."""

    @abstractmethod
    def write(self, addr: int, data: bytes) -> None:
        """Store bytes where `read` reads them."""

    @abstractmethod
    def map(self, buffer: Any, /) -> int:
        """Make a Python buffer native memory; return its address. It cannot be resized until `unmap`."""

    @abstractmethod
    def unmap(self, addr: int) -> None:
        """Take away what `map` returned *addr* for."""

    @abstractmethod
    def text(self, data: bytes) -> int:
        """Keep *data* with a NUL behind it as long as the instance lives; return its address."""

    def convert(self, name: str, callee: Callee, args: Sequence[int | str | bytes]) -> list[int]:
        """Turn the arguments of a call into numbers; raises `TypeError` or `ValueError`."""
        if len(args) != len(callee.kinds):
            raise TypeError(f"{name} takes {len(callee.kinds)} arguments, not {len(args)}")
        return [self._number(name, kind, arg) for kind, arg in zip(callee.kinds, args, strict=True)]

    def _number(self, name: str, kind: str, arg: int | str | bytes) -> int:
        if kind == "str" and isinstance(arg, str | bytes):
            data = arg.encode() if isinstance(arg, str) else arg
            if 0 in data:
                raise ValueError(f"{name}: a text cannot hold a NUL")
            return self.text(data)
        if not isinstance(arg, int):
            raise TypeError(f"{name}: {arg!r} is not a {kind}")
        return checked(name, kind, arg)


def checked(name: str, kind: str, value: int) -> int:
    """Return *value* as a number of *kind*; `ValueError` if it does not fit."""
    if not 0 <= value <= (1 if kind == "bool" else MASK64):
        raise ValueError(f"{name}: {value:#x} is not a {kind}")
    return int(value)


def find(names: Mapping[str, str], name: str, what: str) -> str:
    """Return the full name for *name*; *names* maps both spellings to it. `KeyError` says what there is."""
    try:
        return names[name]
    except KeyError:
        raise KeyError(f"no {what} {name}; there are {_some(names.values())}") from None


def _some(names: Iterable[str]) -> str:
    ordered = sorted(set(names))
    return (", ".join(ordered[:8]) + (", …" if len(ordered) > 8 else "")) or "none"

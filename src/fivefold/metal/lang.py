"""The vocabulary of the metal subset: what kernel modules import. `docs/metal.md` is the contract.

These definitions exist for mypy, for readers and for the front end, which
recognises them by identity. Calling an intrinsic outside a compiled or loaded
program raises `RuntimeError`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Never, TypeAlias, TypeVar

u64: TypeAlias = int
"""An unsigned 64-bit integer; arithmetic wraps. Called, it turns a bool into 0 or 1."""

_Function = TypeVar("_Function", bound=Callable[..., object])


class Buffer(int):
    """Zeroed static storage; as a number, its address (known only in an instance)."""

    size: int
    align: int


def buffer(size: int, align: int = 8) -> Buffer:
    """Reserve *size* zeroed bytes, aligned to *align* (a power of two)."""
    if size <= 0 or align <= 0 or align & (align - 1):
        raise ValueError(f"buffer({size}, align={align}): size must be positive and align a power of two")
    made = Buffer(0)
    made.size, made.align = size, align
    return made


def inline(function: _Function) -> _Function:
    """Always inline *function* into its callers."""
    function.__metal__ = "inline"  # type: ignore[attr-defined]
    return function


def noinline(function: _Function) -> _Function:
    """Never inline *function*."""
    function.__metal__ = "noinline"  # type: ignore[attr-defined]
    return function


def cold(function: _Function) -> _Function:
    """Never inline *function*, and take paths that call it for rare ones: it keeps its callers' registers."""
    function.__metal__ = "cold"  # type: ignore[attr-defined]
    return function


def export(function: _Function) -> _Function:
    """Keep the symbol of *function* and everything it reaches."""
    function.__metal__ = "export"  # type: ignore[attr-defined]
    return function


def extern(function: _Function) -> _Function:
    """Declare a function that assembly, or the caller of `interpreter.load`, provides."""
    function.__metal__ = "extern"  # type: ignore[attr-defined]
    return function


def _outside(name: str) -> Never:
    raise RuntimeError(f"{name} has a meaning only in a compiled or loaded metal program")


def load8(addr: int) -> int:
    """Return the byte at *addr*."""
    _outside("load8")


def load16(addr: int) -> int:
    """Return the 16-bit word at *addr*."""
    _outside("load16")


def load32(addr: int) -> int:
    """Return the 32-bit word at *addr*."""
    _outside("load32")


def load64(addr: int) -> int:
    """Return the 64-bit word at *addr*."""
    _outside("load64")


def store8(addr: int, value: int) -> None:
    """Store the low byte of *value* at *addr*."""
    _outside("store8")


def store16(addr: int, value: int) -> None:
    """Store the low 16 bits of *value* at *addr*."""
    _outside("store16")


def store32(addr: int, value: int) -> None:
    """Store the low 32 bits of *value* at *addr*."""
    _outside("store32")


def store64(addr: int, value: int) -> None:
    """Store *value* at *addr*."""
    _outside("store64")


def fill64(addr: int, value: int, count: int) -> None:
    """Store *value* in *count* 64-bit words from *addr*."""
    _outside("fill64")


def copy64(to: int, source: int, count: int) -> None:
    """Copy *count* 64-bit words; the regions do not overlap."""
    _outside("copy64")


def byte_at(text: str, index: int) -> int:
    """Return byte *index* of *text*, 0 at its end; do not read beyond that."""
    _outside("byte_at")


def text_address(text: str) -> int:
    """Return the address of the NUL-terminated bytes of *text*."""
    _outside("text_address")


def ctz(value: int) -> int:
    """Count trailing zero bits; 64 for 0."""
    _outside("ctz")


def clz(value: int) -> int:
    """Count leading zero bits of 64; 64 for 0."""
    _outside("clz")


def popcount(value: int) -> int:
    """Count bits that are set."""
    _outside("popcount")


def prefetch(addr: int) -> None:
    """Hint that *addr* will be read; never faults."""
    _outside("prefetch")


def atomic_add64(addr: int, value: int) -> int:
    """Add *value* to the word at *addr*; return what it held before."""
    _outside("atomic_add64")


def atomic_exchange64(addr: int, value: int) -> int:
    """Store *value* at *addr*; return what it held before."""
    _outside("atomic_exchange64")


def cpuid(leaf: int, subleaf: int, register: int) -> int:
    """Execute CPUID; *register* 0 to 3 (a constant) selects EAX, EBX, ECX, EDX."""
    _outside("cpuid")


def inb(port: int) -> int:
    """Read a byte from an I/O port."""
    _outside("inb")


def inw(port: int) -> int:
    """Read 16 bits from an I/O port."""
    _outside("inw")


def inl(port: int) -> int:
    """Read 32 bits from an I/O port."""
    _outside("inl")


def outb(port: int, value: int) -> None:
    """Write a byte to an I/O port."""
    _outside("outb")


def outw(port: int, value: int) -> None:
    """Write 16 bits to an I/O port."""
    _outside("outw")


def outl(port: int, value: int) -> None:
    """Write 32 bits to an I/O port."""
    _outside("outl")


def read_cr0() -> int:
    """Return CR0."""
    _outside("read_cr0")


def read_cr2() -> int:
    """Return CR2, the address of the last page fault."""
    _outside("read_cr2")


def read_cr3() -> int:
    """Return CR3."""
    _outside("read_cr3")


def read_cr4() -> int:
    """Return CR4."""
    _outside("read_cr4")


def rdmsr(index: int) -> int:
    """Return the model-specific register *index*."""
    _outside("rdmsr")


def read_rflags() -> int:
    """Return RFLAGS."""
    _outside("read_rflags")


def read_rsp() -> int:
    """Return the stack pointer."""
    _outside("read_rsp")


def rdtsc() -> int:
    """Return the time-stamp counter."""
    _outside("rdtsc")


def invlpg(addr: int) -> None:
    """Drop what the TLB holds for the page of *addr*."""
    _outside("invlpg")


def cli() -> None:
    """Hold interrupts off."""
    _outside("cli")


def sti() -> None:
    """Let interrupts in."""
    _outside("sti")


def hlt() -> None:
    """Wait for an interrupt."""
    _outside("hlt")


def pause() -> None:
    """Hint that this is a spin loop."""
    _outside("pause")


def symbol(name: str) -> int:
    """Return the address of a symbol that assembly defines; *name* is a literal."""
    _outside("symbol")


def address_of(function: Callable[..., object]) -> int:
    """Return the address of a subset function of the same build."""
    _outside("address_of")

"""What a kernel told through the init, held against what its mode, its command line and its machine promise."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from fivefold.layout import linux_constants
from fivefold.matrix.cells import Cell, Mode
from fivefold.matrix.init.asks import ACCESSES, MEMORY, Ask, ProbedAccess
from fivefold.matrix.result import CellCheck
from fivefold.matrix.run.console import InitReport
from fivefold.units import PAGE, hex64

SIGSEGV: Final = 11
NOT_MAPPED: Final = 1
"""``SEGV_MAPERR``: nothing is mapped there. Source: *asm-generic/siginfo.h*."""
BY_KERNEL: Final = 0x80
"""``SI_KERNEL``: a general protection exception, which carries no address."""
_LEVELS: Final = {"la57": 5, "la48": 4}
_LOWEST_ERROR: Final = (1 << 64) - 4095


def told_checks(report: InitReport, cell: Cell, promised: Mode, cmdline: str) -> Iterator[CellCheck]:
    """Every promise that the kernel itself can speak of."""
    said = " ".join(report.fields.get("cmdline", ()))
    # A loader may add words of its own: OVMF adds initrd=.
    words = " ".join(cmdline.split())
    yield CellCheck("told-cmdline", not words or f" {words} " in f" {said} ", said)
    yield CellCheck("told-mode", report.mode == promised, f"/proc/cpuinfo says {report.mode or 'nothing'}")
    if (cpus := report.number("cpus")) is not None:
        yield CellCheck("told-cpus", cpus == cell.smp, f"{cpus} of {cell.smp}")
    if "pti=on" in said.split():
        yield CellCheck("told-pti", "pti" in report.flags, "the flag pti in /proc/cpuinfo")
    if (stack := report.number("stack")) is not None:
        yield CellCheck(
            "told-stack", PAGE < stack <= (1 << 47) - PAGE, f"its end at {hex64(stack)}: below 2^47 in both modes"
        )
    yield from _memory(report, promised)
    yield from _accesses(report, promised)


def _memory(report: InitReport, mode: Mode) -> Iterator[CellCheck]:
    """Each answer of mmap; all memory that was given could be written."""
    end = linux_constants(report.release or "6.1", _LEVELS[mode]).task_size_max
    rows = report.rows.get("memory", {})
    for ask in MEMORY:
        if ask.name not in rows:
            yield CellCheck(f"memory-{ask.name}", False, "the init did not say")
            continue
        given, signal = rows[ask.name]
        failed = given >= _LOWEST_ERROR
        said = f"error {(1 << 64) - given}" if failed else hex64(given)
        ok = _memory_ok(ask, given, failed, end) and not signal
        yield CellCheck(
            f"memory-{ask.name}", ok, f"asked for {hex64(ask.hint)}, got {said}{', not writable' * bool(signal)}"
        )


def _memory_ok(ask: Ask, given: int, failed: bool, end: int) -> bool:
    """Whether this is what a process with addresses up to *end* must get.

    A hint below 2^47 is honoured; one beyond opens the rest, and is honoured where that is long enough. Nothing is
    given beyond 2^47 unasked.
    """
    fits = ask.hint + ask.length <= end
    if ask.fixed:
        return given == ask.hint if fits else failed
    if failed:
        return False
    window = 1 << 47
    across = ask.hint < window < ask.hint + ask.length
    if ask.hint and fits and not across:
        return given == ask.hint
    return given + ask.length <= (end if ask.hint > window - PAGE and not across else window)


def _accesses(report: InitReport, mode: Mode) -> Iterator[CellCheck]:
    rows = report.rows.get("access", {})
    for access in ACCESSES:
        if access.name not in rows:
            yield CellCheck(f"access-{access.name}", False, "the init did not say")
            continue
        signal, code, address = rows[access.name]
        detail = f"write to {hex64(access.address)}: signal {signal}, code {code:#x}, address {hex64(address)}"
        yield CellCheck(f"access-{access.name}", (signal, code, address) == _expected(access, mode), detail)


def _expected(access: ProbedAccess, mode: Mode) -> tuple[int, int, int]:
    """A page fault where the address is canonical in the lower half, else a general protection exception."""
    half = 1 << {"la57": 56, "la48": 47}[mode]
    return (SIGSEGV, NOT_MAPPED, access.address) if access.address < half else (SIGSEGV, BY_KERNEL, 0)

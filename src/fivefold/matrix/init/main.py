"""The init: say what the kernel says, ask it for memory, take signals, then wait, or start a kernel again.

As process 1 it mounts what it needs and may restart the machine; as any other process it only reports, and ends.
"""

from __future__ import annotations

from typing import Final

from fivefold.matrix.init import asks, facts, lines, restart
from fivefold.matrix.init.calls import (
    CONSOLE_OFF,
    CONSOLE_ON,
    EXIT,
    GETPID,
    MUNMAP,
    PAUSE,
    SYSLOG,
    failed,
    handle_signal,
    linux,
    map_pages,
    mount,
    probe,
    signal_address,
    signal_code,
)
from fivefold.matrix.init.kallsyms import report_symbols
from fivefold.metal.lang import export, u64

FORMAT: Final = 1
SIGBUS: Final = 7
SIGSEGV: Final = 11


@export
def init_main(stack: u64) -> None:
    """Where the program begins; does not return."""
    is_init = linux(GETPID, 0, 0, 0, 0, 0) == 1
    if is_init:
        mount("proc", "/proc", "proc")
        mount("sysfs", "/sys", "sysfs")
        mount("dev", "/dev", "devtmpfs")
        mount("debugfs", "/sys/kernel/debug", "debugfs")
    handle_signal(SIGSEGV)
    handle_signal(SIGBUS)
    report()
    if not is_init:
        linux(EXIT, 0, 0, 0, 0, 0)
    if restart.as_asked():
        report()
    while True:
        linux(PAUSE, 0, 0, 0, 0, 0)


def report() -> None:
    """All lines, from ``begin`` to ``end``; meanwhile the kernel's own stay off the console."""
    linux(SYSLOG, CONSOLE_OFF, 0, 0, 0, 0)
    lines.restart()
    lines.begin("begin")
    lines.put_hex(FORMAT)
    lines.end()
    facts.report_file("release", "/proc/sys/kernel/osrelease")
    facts.report_file("version", "/proc/version")
    facts.report_cmdline()
    facts.report_cpu()
    facts.report_stack()
    report_memory()
    report_signals()
    report_symbols()
    facts.report_kernel_tables()
    lines.begin("end")
    lines.end()
    linux(SYSLOG, CONSOLE_ON, 0, 0, 0, 0)


def report_memory() -> None:
    """``memory NAME ANSWER SIGNAL`` for each of `asks.MEMORY`: where it was given, and whether it can be written."""
    for ask in asks.MEMORY:
        flags = asks.MAP_PRIVATE_ANONYMOUS + (asks.FIXED if ask.fixed else 0)
        given = map_pages(ask.hint, ask.length, flags)
        lines.begin("memory")
        lines.put_byte(32)
        lines.put(ask.name)
        lines.put_hex(given)
        lines.put_hex(0 if failed(given) else probe(given + ask.length - 1))
        lines.end()
        if not failed(given):
            linux(MUNMAP, given, ask.length, 0, 0, 0)


def report_signals() -> None:
    """``access NAME SIGNAL CODE ADDRESS`` for a write to each of `asks.ACCESSES`."""
    for access in asks.ACCESSES:
        signal = probe(access.address)
        lines.begin("access")
        lines.put_byte(32)
        lines.put(access.name)
        lines.put_hex(signal)
        lines.put_hex(signal_code())
        lines.put_hex(signal_address())
        lines.end()

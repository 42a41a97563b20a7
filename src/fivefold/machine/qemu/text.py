"""What QEMU prints, read: ``info registers`` and the log of exceptions (``-d int``).

Formats as of QEMU 7.2 (target/i386/cpu-dump.c, seg_helper.c), which have been stable since 2008.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from fivefold.errors import MachineError
from fivefold.machine.base import PAGE_FAULT, ExceptionRecord, Registers, TableRegister

_NUMBER: Final = re.compile(r"\b(E?[A-Z][A-Z0-9]{1,3}|R[0-9]) ?=([0-9a-f]{8,16})\b")
_SELECTOR: Final = re.compile(r"^(CS|SS) =([0-9a-f]{4}) ", re.MULTILINE)
_TABLE: Final = re.compile(r"^(GDT|IDT)= +([0-9a-f]+) ([0-9a-f]+)", re.MULTILINE)
_STATUS: Final = re.compile(r"\bCPL=([0-3]) II=[01] A20=[01] SMM=[01] HLT=([01])")
_GPRS: Final = ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp", *(f"r{n}" for n in range(8, 16)))

_RAISED: Final = re.compile(rb"check_exception old: 0x([0-9a-f]+) new 0x([0-9a-f]+)")
_DELIVERED: Final = re.compile(
    rb"v=([0-9a-f]+) e=([0-9a-f]+) i=([01]) cpl=\d IP=[0-9a-f]+:([0-9a-f]+) pc=[0-9a-f]+ "
    rb"SP=[0-9a-f]+:([0-9a-f]+)(?: CR2=([0-9a-f]+))?"
)
_NOTHING: Final = 0xFFFF_FFFF
_WITH_CODE: Final = frozenset({8, 10, 11, 12, 13, 14, 17, 21})


def parse_registers(text: str) -> Registers:
    """The registers in *text*; `MachineError` if it is not what ``info registers`` prints.

    In 32-bit code QEMU prints the lower halves only: the upper ones and R8 to R15 read as 0.
    """
    numbers = {name: int(value, 16) for name, value in _NUMBER.findall(text)}
    selectors = {name: int(value, 16) for name, value in _SELECTOR.findall(text)}
    tables = {name: TableRegister(int(base, 16), int(limit, 16)) for name, base, limit in _TABLE.findall(text)}
    status = _STATUS.search(text)

    def number(name: str) -> int:
        return numbers.get(name, numbers.get("E" + name[1:], 0))

    try:
        return Registers(
            **{name: number(name.upper()) for name in _GPRS},
            rip=number("RIP"),
            rflags=number("RFL"),
            cr0=numbers["CR0"],
            cr2=numbers["CR2"],
            cr3=numbers["CR3"],
            cr4=numbers["CR4"],
            efer=numbers["EFER"],
            cs=selectors["CS"],
            ss=selectors["SS"],
            cpl=int(status[1]) if status else -1,
            gdt=tables["GDT"],
            idt=tables["IDT"],
        )
    except KeyError as error:
        raise MachineError(f"QEMU's registers lack {error.args[0]}: {text[:60]!r}") from error


def is_halted(text: str) -> bool:
    """Whether *text*, of ``info registers``, shows a processor that waits in HLT."""
    status = _STATUS.search(text)
    return status is not None and status[2] == "1"


def parse_exceptions(log: bytes) -> list[ExceptionRecord]:
    """The exceptions in *log*, oldest first, each at the place of the one during whose delivery it was raised.

    The log has neither error code nor CR2 of an exception that escalated.
    """
    found: list[ExceptionRecord] = []
    for line in log.splitlines():
        if (raised := _RAISED.search(line)) and int(raised[1], 16) != _NOTHING:
            at = found[-1] if found else ExceptionRecord(0, None, None, 0, 0)
            found.append(ExceptionRecord(int(raised[2], 16), None, None, at.rip, at.rsp))
        elif (hit := _DELIVERED.search(line)) and hit[3] == b"0":
            found.append(_record(hit))
    return found


def _record(hit: re.Match[bytes]) -> ExceptionRecord:
    vector = int(hit[1], 16)
    code = int(hit[2], 16) if vector in _WITH_CODE else None
    cr2 = int(hit[6], 16) if hit[6] else None
    return ExceptionRecord(vector, code, cr2, int(hit[4], 16), int(hit[5], 16))


def ends_in_triple_fault(log: bytes) -> bool:
    """Whether the reset that *log* (``-d int,cpu_reset``) ends with came of a triple fault: QEMU writes so, itself.

    An exception without a next one is no sign: a fault that was handled leaves the same lines.
    """
    return log.rfind(b"\nTriple fault") > max(log.rfind(b"check_exception"), log.rfind(b": v="))


def cpu_of(records: Sequence[ExceptionRecord], cpus: Sequence[Registers]) -> int | None:
    """Which of *cpus* raised the exceptions: the one that is still where the last one was; None if that is not one."""
    if len(cpus) == 1:
        return 0
    if not records:
        return None
    at = [number for number, cpu in enumerate(cpus) if (cpu.rip, cpu.rsp) == (records[-1].rip, records[-1].rsp)]
    return at[0] if len(at) == 1 else None


def last_story(log: bytes, cr2: int) -> tuple[ExceptionRecord, ...]:
    """What led to the triple fault at the end of *log*; *cr2* is the register's value after it."""
    start = log.rfind(b"check_exception old: 0xffffffff")
    records = parse_exceptions(log[max(start, 0) :])
    if records and records[-1].vector == PAGE_FAULT:
        records[-1] = records[-1]._replace(cr2=cr2)
    return tuple(records)

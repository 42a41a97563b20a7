"""Fatal traps of the BSDs and of illumos, on x86-64.

Sources: FreeBSD ``sys/amd64/amd64/trap.c`` (trap_fatal), NetBSD ``sys/arch/amd64/amd64/trap.c``, OpenBSD
``sys/arch/amd64/amd64/trap.c``, illumos ``usr/src/uts/i86pc/os/trap.c`` (die, dumpregs).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from fivefold.arch import HAS_ERROR_CODE, Kind, Vector
from fivefold.errors import FormatError
from fivefold.explain.logs.register_file import cpu_of, text_of
from fivefold.explain.logs.text.lines import Line
from fivefold.explain.logs.trace import RaisedException, Trace

_FREEBSD: Final = re.compile(r"Fatal trap \d+: ([a-z ]+?)(?: while|$)|Fatal (double fault)", re.I)
_NETBSD: Final = re.compile(
    r"trap type (\d+) code (?:0x)?([0-9a-f]+) rip (?:0x)?([0-9a-f]{16}) cs \S+ rflags (?:0x)?([0-9a-f]+) "
    r"cr2 (?:0x)?([0-9a-f]+)\b(?:.*\brsp (?:0x)?([0-9a-f]{16}))?",
    re.I,
)
_OPENBSD: Final = re.compile(r"kernel: (page fault|protection fault|double fault|[a-z ]+) trap, code=([0-9a-f]+)", re.I)
_DDB: Final = re.compile(r"^\s*(r[a-d]x|r[sd]i|r[bs]p|r\d{1,2}|rip)\s+0x([0-9a-f]{1,16})(?:\s|$)", re.I | re.M)
_STOPPED: Final = re.compile(r"Stopped at\s+(\S+\+0x[0-9a-f]+):", re.I)
_UVM: Final = re.compile(r"uvm_fault\(0x[0-9a-f]+, 0x([0-9a-f]+), \d+, (\d)\)", re.I)
_ILLUMOS: Final = re.compile(
    r"BAD TRAP: type=([0-9a-f]+) \(#(\w+)[^)]*\)(?: rp=[0-9a-f]+)?(?: addr=([0-9a-f]+)(?=[ ,]))?", re.I
)
_BAD_ADDRESS: Final = re.compile(r"^.*?Bad kernel fault at addr=0x([0-9a-f]+)\s*$", re.I | re.M)
_ADDRESSES: Final = ("cr2", "rip", "rsp")
_VALUE: Final = re.compile(
    r"^.*?(fault virtual address|fault code|instruction pointer|stack pointer|code segment|trap number)\s*= (.*)$",
    re.I | re.M,
)
_AFTER_DOUBLE: Final = re.compile(r"Fatal double fault\s+rip 0x([0-9a-f]{16}) rsp 0x([0-9a-f]{16})(?![0-9a-z])", re.I)
_POINTER: Final = re.compile(r"(?:0x)?[0-9a-f]+:0x([0-9a-f]+)$", re.I)
_REGISTER: Final = re.compile(r"\b(r[a-d]x|r[sd]i|r[bs]p|r\d{1,2}|rip|cr[0234]): +([0-9a-f]{1,16})(?=\s|<|$)", re.M)
_ERR: Final = re.compile(r"\berr: +([0-9a-f]+)\b", re.I)
_PC: Final = re.compile(r"\bpc=0x([0-9a-f]+), sp=0x([0-9a-f]+)", re.I)
_NAMES: Final = {
    "page fault": Vector.PF,
    "general protection fault": Vector.GP,
    "protection fault": Vector.GP,
    "double fault": Vector.DF,
    "stack fault": Vector.SS,
    "privileged instruction fault": Vector.UD,
    "privileged instruction": Vector.UD,
    "integer divide fault": Vector.DE,
    "integer divide": Vector.DE,
    "segment not present fault": Vector.NP,
    "invalid tss fault": Vector.TS,
    "breakpoint instruction fault": Vector.BP,
    "alignment fault": Vector.AC,
}
_NETBSD_TYPES: Final = {
    6: Vector.PF,
    4: Vector.GP,
    13: Vector.DF,
    14: Vector.SS,
    0: Vector.UD,
    1: Vector.BP,
    8: Vector.DE,
}
"""Trap numbers of NetBSD and OpenBSD, which are not the CPU's."""
_LINES: Final = 60
_DIGITS: Final = 16
_KINDS: Final = {"read": Kind.READ, "write": Kind.WRITE, "instruction": Kind.FETCH}


def read_trap(lines: Sequence[Line], source: str) -> Trace | None:
    """The first fatal trap of a BSD or of illumos, None if there is none."""
    for index, line in enumerate(lines):
        text = line.text
        if match := _FREEBSD.search(text):
            return _freebsd(match, text_of(lines, index, _LINES), source, line.number)
        if match := _NETBSD.search(text):
            return _netbsd(match, source, line.number)
        if match := _OPENBSD.search(text):
            return _openbsd(match, text_of(lines, max(0, index - 3), _LINES), source, line.number)
        if match := _ILLUMOS.search(text):
            return _illumos(match, text_of(lines, index, _LINES), source, line.number)
    return None


def _freebsd(match: re.Match[str], text: str, source: str, number: int) -> Trace | None:
    vector = _NAMES.get((match[1] or match[2]).strip().lower())
    if vector is None:
        return None
    said = {name.lower(): value.strip() for name, value in reversed(_VALUE.findall(text))}
    if "long 0" in text or re.search(r"\beip = ", text):
        raise FormatError(f"{source} is a report of a 32-bit FreeBSD; expected one of an x86-64 machine")
    words = said.get("fault code", "").lower()
    numbers = {
        name: int(value[1], 16)
        for name, key in (("rip", "instruction pointer"), ("rsp", "stack pointer"))
        if (value := _POINTER.search(said.get(key, "")))
    }
    if double := _AFTER_DOUBLE.search(text):
        numbers = {"rip": int(double[1], 16), "rsp": int(double[2], 16)}
    kind = next(
        (kind for word, kind in _KINDS.items() if f" {word}" in words and "read instruction" not in words), None
    )
    if "read instruction" in words:
        kind = Kind.FETCH
    code = _code_of(words, kind)
    address = re.match(r"0x([0-9a-f]{1,16})$", said.get("fault virtual address", ""), re.I)
    raised = RaisedException(
        int(vector), error_code=code if vector == Vector.PF else None,
        cr2=int(address[1], 16) if address and vector == Vector.PF else None,
        rip=numbers.get("rip"), rsp=numbers.get("rsp"), cpl=3 if "user mode" in text.split("\n")[0] else 0,
        cpu=cpu_of("FreeBSD report", numbers), line=number, kind=kind,
        by_user=words.startswith("user") if words else None,
        absent="page not present" in words,
    )  # fmt: skip
    return Trace(source, "FreeBSD report", (raised,), "oops", raised.cpu, total=1)


def _code_of(words: str, kind: Kind | None) -> int | None:
    """The error code that the words are made from."""
    if kind is None or "," not in words:
        return None
    code = {Kind.READ: 0, Kind.WRITE: 2, Kind.FETCH: 16}[kind] | (4 if words.startswith("user") else 0)
    if "page not present" in words:
        return code
    if "protection violation" in words:
        return code | 1
    return code | 9 if "reserved bits" in words else None


def _netbsd(match: re.Match[str], source: str, number: int) -> Trace | None:
    vector = _NETBSD_TYPES.get(int(match[1]) & 0xFF)
    if vector is None:
        return None
    code, rip, flags, cr2 = (int(match[n], 16) for n in (2, 3, 4, 5))
    numbers = {"rip": rip, "rflags": flags, "cr2": cr2}
    if match[6]:
        numbers["rsp"] = int(match[6], 16)
    raised = RaisedException(
        int(vector), error_code=code if vector in HAS_ERROR_CODE else None, cr2=cr2 if vector == Vector.PF else None,
        rip=rip, rsp=numbers.get("rsp"), cpl=0, cpu=cpu_of("NetBSD report", numbers), line=number,
    )  # fmt: skip
    return Trace(source, "NetBSD report", (raised,), "oops", raised.cpu, total=1)


def _openbsd(match: re.Match[str], text: str, source: str, number: int) -> Trace | None:
    vector = _NAMES.get(match[1].strip().lower())
    if vector is None:
        return None
    numbers = {name.lower(): int(value, 16) for name, value in reversed(_DDB.findall(text))}
    fault = _UVM.search(text)
    address, dropped = _of_uvm(fault)
    at = _STOPPED.search(text)
    raised = RaisedException(
        int(vector), error_code=int(match[2], 16) if vector in HAS_ERROR_CODE else None, line=number, cpl=0,
        cr2=address if vector == Vector.PF else None, rip=numbers.get("rip"), rsp=numbers.get("rsp"),
        cpu=cpu_of("OpenBSD's debugger", numbers), symbol=at[1] if at else None, dropped=dropped,
    )  # fmt: skip
    return Trace(source, "OpenBSD report", (raised,), "oops", raised.cpu, total=1)


def _of_uvm(fault: re.Match[str] | None) -> tuple[int | None, tuple[str, ...]]:
    """The address that ``uvm_fault`` was called with; what is a whole page may be the page only, as releases to 6.6
    print it.
    """
    if fault is None:
        return None, ()
    address = int(fault[1], 16)
    if address & 0xFFF:
        return address, ()
    return None, (f"uvm_fault names {address:#x}, which may be the page of the address only",)


def _is_whole(value: str) -> bool:
    """Whether *value*, a number of illumos, can be all of an address.

    Numbers are not padded: an address that begins as those of the kernel do, and is shorter, was cut.
    """
    return value[0].lower() != "f" or len(value) == _DIGITS


def _illumos(match: re.Match[str], text: str, source: str, number: int) -> Trace | None:
    vector = int(match[1], 16)
    if vector > 31:
        return None
    numbers: dict[str, int] = {}
    for name, value in _REGISTER.findall(text):
        if name not in _ADDRESSES or _is_whole(value):
            numbers.setdefault(name.lower(), int(value, 16))
    if pc := _PC.search(text):
        for name, value in zip(("rip", "rsp"), pc.groups(), strict=True):
            if _is_whole(value):
                numbers.setdefault(name, int(value, 16))
    if "cr0" in numbers and not numbers["cr0"] >> 31:
        del numbers["cr0"]  # cut: the kernel runs with paging
    err = _ERR.search(text)
    told = [each for each in (match[3], *_BAD_ADDRESS.findall(text)) if each]
    whole = [each for each in told if _is_whole(each) or told.count(each) > 1]
    address = int(whole[0], 16) if whole else numbers.get("cr2")
    raised = RaisedException(
        vector, error_code=int(err[1], 16) if err and vector in HAS_ERROR_CODE else None,
        cr2=address if vector == Vector.PF else None, rip=numbers.get("rip"), rsp=numbers.get("rsp"), cpl=0,
        cpu=cpu_of("illumos report", numbers), line=number,
    )  # fmt: skip
    return Trace(source, "illumos report", (raised,), "oops", raised.cpu, total=1)

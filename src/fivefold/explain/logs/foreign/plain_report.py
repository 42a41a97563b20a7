"""Reports of kernels that have a format of their own: hobby kernels, coreboot, Darwin.

All name the exception, and beside it have numbers with labels: ``CR2``, ``error code``, ``RIP``. What is read is what
carries its label; an error code whose base is not clear is left out. Flags of an error code are read as Rust's
``x86_64`` crate prints them, and as ``present=0 write=1``.

Sources: ``x86_64`` crate, ``structures/idt.rs``; XNU, ``osfmk/i386/trap.c`` (panic_trap); coreboot,
``src/arch/x86/exception.c``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from fivefold.arch import HAS_ERROR_CODE, Cr4, Kind, PageFault, Vector
from fivefold.explain.logs.register_file import cpu_of, text_of
from fivefold.explain.logs.text.lines import Line
from fivefold.explain.logs.trace import RaisedException, Trace

_HEX: Final = (
    r"(0x(?!fff[0-9a-f]{6,12}(?![0-9a-f]))(?:0(?=[^0-9a-f])(?!\W[0-9a-f]{6})|[1-9a-f][0-9a-f]{0,15}(?![_`'])|[0-9a-f]{1,8}(?:[_`'][0-9a-f]{4}){1,3}"
    r"|[0-9a-f]{8}[_`'][0-9a-f]{8}|0[0-9a-f]{15})"
    r"|[0-9a-f]{8}[`'_]?[0-9a-f]{8})(?![0-9a-z`'_~?])"
)
"""A number; one with leading zeros is padded to 16 digits, else it was cut, or broken in two. One that begins like
those of the upper half and has fewer digits was cut, too.
"""
_OF_OTHERS: Final = re.compile(
    r"\bOops\b|\bBUG: |RIP: 00[0-9a-f]{2}:|Call Trace:|\(XEN\)|check_exception|\[CPU\d+ *\]|X64 Exception Type"
    r"|KVM internal|\bv=[0-9a-f]{2} e=|segfault|end trace|Comm: |#PF: |trap type \d+ code|\bEIP\b|\bpstate\b"
    r"|early exception|fault virtual address\s*=|#\d+ \[[0-9a-f]{16}\] \w+ at",
    re.I,
)
"""Signs of formats that have readers of their own: what these refused is not to be read with less care."""
_HEAD: Final = re.compile(
    r"(?:\b(?:exception|fault|trap|vector|interrupt|int|isr|irq|type)\b\W{0,3}(?:no\.?|num(?:ber)?|vector)?\W{0,3}"
    r"(?P<number>0x[0-9a-f]{1,2}|\d{1,2})(?![0-9a-z])|(?P<at>^\s*\d{1,2}) @ )"
    r"|(?P<name>page[ _-]?fault|general[ _-]?protection|double[ _-]?fault|invalid[ _-]?opcode|stack[ _-]?segment"
    r"|segment[ _-]?not[ _-]?present|invalid[ _-]?tss|#(?:PF|GP|DF|UD|SS|NP|TS)\b)",
    re.I,
)
_NAMES: Final = {
    "pagefault": Vector.PF, "#pf": Vector.PF, "generalprotection": Vector.GP, "#gp": Vector.GP,
    "doublefault": Vector.DF, "#df": Vector.DF, "invalidopcode": Vector.UD, "#ud": Vector.UD,
    "stacksegment": Vector.SS, "#ss": Vector.SS, "segmentnotpresent": Vector.NP, "#np": Vector.NP,
    "invalidtss": Vector.TS, "#ts": Vector.TS,
}  # fmt: skip
_REGISTER: Final = re.compile(
    r"(?<![A-Za-z0-9_])(r[a-d]x|r[sd]i|r[bs]p|r0?[89]|r1[0-5]|rip|rflags|cr[0234]|efer)[\"']?\s*(?:[:=]|\bis\b|\s)\s*"
    + _HEX,
    re.I,
)
_ADDRESS: Final = re.compile(
    r"(?:(?:accessed|faulting|fault|bad|virtual|linear|page fault)[ _]*(?:virtual |linear |memory )?addr(?:ess)?"
    r"|addr(?:ess)?|page[ _]?fault (?:\w+ )?at|fault at)[\"']?\s*(?:[:=]|\bis\b|\s)\s*(?:VirtAddr\()?" + _HEX,
    re.I,
)
_POINTER: Final = re.compile(
    r"(?<![A-Za-z0-9_])(?:instruction[ _]pointer|ip|pc)[\"']?\s*(?:[:=]|\bis\b|\s)\s*(?:VirtAddr\()?\s*" + _HEX, re.I
)
_STACK: Final = re.compile(r"(?<![A-Za-z0-9_])stack[ _]pointer[\"']?\s*[:=]\s*(?:VirtAddr\()?\s*" + _HEX, re.I)
_COREBOOT: Final = re.compile(r"^\s*\d{1,2} @ [0-9a-f]{2}:([0-9a-f]{16}) - Halting", re.I | re.M)
_CODE: Final = re.compile(
    r"(?<![A-Za-z0-9_])(?:err(?:or)?[ _-]?code|err(?:or)?|code|ec)[\"']?\s*(?:[:=(]|\bis\b|\s)\s*"
    r"(?:0x([0-9a-f]{1,16})|0b([01]{1,32})|([0-9a-f]{4}|[0-9a-f]{8}|[0-9a-f]{16}|[0-9]))(?![0-9a-z])(?! \d+\b)",
    re.I,
)
_FLAGS: Final = re.compile(r"PageFaultErrorCode\(\s*([A-Z_ |\s]*)\s*\)|\b((?:[A-Z]+_[A-Z_]+)(?:\s*\|\s*[A-Z_]+)*)\b")
_FLAG_BITS: Final = {
    "PROTECTION_VIOLATION": PageFault.P, "CAUSED_BY_WRITE": PageFault.W, "USER_MODE": PageFault.U,
    "MALFORMED_TABLE": PageFault.RSVD, "INSTRUCTION_FETCH": PageFault.I, "PROTECTION_KEY": PageFault.PK,
    "SHADOW_STACK": PageFault.SS, "SGX": PageFault.SGX, "RMP": PageFault.RMP,
}  # fmt: skip
_BITS: Final = re.compile(
    r"(?<![A-Za-z0-9_])(present|p|write|w|user|u|reserved(?:[_ ]write)?|rsvd|instruction[_ ]fetch|id|i|fetch)"
    r"[=:] ?([01])(?!\w)",
    re.I,
)
_BY_LETTER: Final = {
    "p": PageFault.P, "w": PageFault.W, "u": PageFault.U, "r": PageFault.RSVD, "i": PageFault.I, "f": PageFault.I,
}  # fmt: skip
_WORDS: Final = re.compile(
    r"\b(?P<write>write (?:access|to|at|of)|writing)|\b(?P<fetch>instruction fetch|execute)|\b"
    r"(?P<read>read (?:access|of|at|from)|reading)\b",
    re.I,
)
_BEFORE, _LINES = 6, 30


def read_plain(lines: Sequence[Line], source: str) -> Trace | None:
    """The first exception with numbers beside it; None if there is none, or if the log has a format of others."""
    if any(_OF_OTHERS.search(line.text) for line in lines):
        return None
    for index, line in enumerate(lines):
        vector = _vector(line.text)
        if vector is None:
            continue
        text = text_of(lines, index, _LINES)
        raised = _raised(vector, text, line.number)
        if raised is None or (vector == Vector.PF and raised.cr2 is None):
            # Some print the registers first.
            text += f"\n{text_of(lines, max(0, index - _BEFORE), min(index, _BEFORE))}"
            raised = _raised(vector, text, line.number)
        if raised is not None:
            return Trace(
                source,
                _dialect(lines[max(0, index - _BEFORE) : index + _LINES]),
                (raised,),
                "oops",
                raised.cpu,
                total=1,
            )
    return None


def _vector(text: str) -> int | None:
    for match in _HEAD.finditer(text):
        if match["name"]:
            return int(_NAMES[re.sub("[ _-]", "", match["name"].lower())])
        digits = (match["number"] or match["at"]).lower()
        number = int(digits, 16 if digits.startswith("0x") else 10)
        if number <= Vector.CP and re.search(r"panic|unhandled|exception|fault|halt|trap", text, re.I):
            return number
    return None


def _raised(vector: int, text: str, line: int) -> RaisedException | None:
    """The exception, None where the text has no number for it."""
    numbers: dict[str, int] = {}
    for name, value in _REGISTER.findall(text):
        numbers.setdefault(re.sub("^r0", "r", name.lower()), _number(value))
    if (cr4 := numbers.get("cr4")) is not None and not cr4 & Cr4.PAE:
        del numbers["cr4"]  # cut, or not of long mode
    for pattern, name in ((_POINTER, "rip"), (_COREBOOT, "rip"), (_STACK, "rsp")):
        if match := pattern.search(text):
            numbers.setdefault(name, _number(match[1]))
    is_fault = vector == Vector.PF
    named = _ADDRESS.search(text) if is_fault else None
    dropped: list[str] = []
    if len({_number(value) for name, value in _REGISTER.findall(text) if name.lower() == "cr2"}) > 1:
        dropped.append("CR2 is printed twice, with different numbers")
        del numbers["cr2"]
    address = numbers.get("cr2") if is_fault else None
    if named is not None:
        if address is not None and address != _number(named[1]):
            dropped.append("CR2 and the address that the report names are not the same")
        address = _number(named[1]) if not dropped else None
    code = _code(text, vector, dropped)
    if address is None and "rip" not in numbers:
        return None
    cpu = cpu_of("the report", numbers)
    return RaisedException(
        vector, error_code=code, cr2=address, rip=numbers.get("rip"), rsp=numbers.get("rsp"), cpu=cpu, line=line,
        kind=_kind(text) if is_fault and code is None else None, dropped=tuple(dropped),
    )  # fmt: skip


def _code(text: str, vector: int, dropped: list[str]) -> int | None:
    if vector not in HAS_ERROR_CODE:
        return None
    found = {int(two, 2) if two else int(one or three, 16) for one, two, three in _CODE.findall(text)}
    if vector == Vector.PF:
        for match in _FLAGS.finditer(text):
            names = [name for name in re.split(r"[|\s]+", match[1] if match[1] is not None else match[2]) if name]
            if all(name in _FLAG_BITS for name in names) and (names or match[1] is not None):
                found.add(int(sum(_FLAG_BITS[name] for name in names)))
        found |= _spelled_flags(text)
    if len(found) > 1:
        dropped.append(f"several numbers could be the error code: {', '.join(f'{code:#x}' for code in sorted(found))}")
        return None
    return found.pop() if found else None


def _spelled_flags(text: str) -> set[int]:
    """The code that flags with names make: ``present=0 write=1``; P and W must be among them."""
    found = {match[1][0].lower(): match[2] == "1" for match in reversed(list(_BITS.finditer(text)))}
    if not {"p", "w"} <= found.keys():
        return set()
    return {int(sum(bit for name, bit in _BY_LETTER.items() if found.get(name)))}


def _kind(text: str) -> Kind | None:
    kinds = {match.lastgroup for match in _WORDS.finditer(text)}
    return {"read": Kind.READ, "write": Kind.WRITE, "fetch": Kind.FETCH}[str(kinds.pop())] if len(kinds) == 1 else None


def _number(digits: str) -> int:
    return int(re.sub("[_`']", "", digits), 16)


def _dialect(lines: Sequence[Line]) -> str:
    text = "\n".join(line.text for line in lines)
    if "Kernel trap at 0x" in text or "panic(cpu" in text:
        return "Darwin panic"
    return "coreboot report" if " - Halting" in text and "Unexpected Exception" in text else "kernel's own report"

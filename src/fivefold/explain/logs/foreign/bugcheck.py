"""A bug check of Windows: its code and four parameters, from the blue screen, the event log or ``!analyze``.

Source: Microsoft's public bug check code reference, for x64.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from fivefold.arch import Kind, Vector
from fivefold.explain.logs.register_file import cpu_of, text_of
from fivefold.explain.logs.text.lines import Line
from fivefold.explain.logs.trace import PrintedEntry, RaisedException, Trace

_VALUE: Final = r"(?:0x([0-9a-f]{16}|[0-9a-f]{8}`[0-9a-f]{8})|([0-9a-f`]{1,17}))"
"""With ``0x`` it is padded."""
_STOP: Final = re.compile(
    r"(?:STOP: |bugcheck was: |BugCheck )(?:0x)?([0-9a-f]{1,8})[, ]+[({]"
    rf"{_VALUE}, *{_VALUE}, *{_VALUE}, *{_VALUE}[)}}]",
    re.I,
)
_NAME: Final = re.compile(r"^[A-Z_0-9]+ \(([0-9a-f]{1,8})\)\s*$", re.M)
_ARGUMENT: Final = re.compile(r"^\W*Arg([1-4]): ([0-9a-f]{8}`?[0-9a-f]{8})(?![0-9a-z`])", re.M | re.I)
_REGISTER: Final = re.compile(r"\b(r[a-d]x|r[sd]i|r[bs]p|r\d{1,2}|rip)=([0-9a-f]{16})(?![0-9a-z])", re.I)
_ATTEMPT: Final = re.compile(
    r"Attempt to (read|write|execute)(?: from| to| non-executable)? address ([0-9a-f]{8}`?[0-9a-f]{8})(?![0-9a-z])",
    re.I,
)
_PARAMETER: Final = re.compile(r"Parameter\[([01])\]: ([0-9a-f]{8}`?[0-9a-f]{8})(?![0-9a-z])", re.I)
_OPERAND: Final = re.compile(r"\b[c-gs]s:[0-9a-f]{4}:([0-9a-f]{8}`[0-9a-f]{8})=\?{4,}", re.I)
_HEAD_LINES: Final = 40
_LINES: Final = 200
_UNKNOWN_ADDRESS: Final = (1 << 64) - 1
_FAST_FAIL: Final = 0x29
"""The vector of ``__fastfail``."""
_FAST_FAILS: Final = {
    0: "a check of the compiler's failed",
    2: "a stack cookie was overwritten",
    3: "a list entry was corrupt",
    5: "an argument was not valid",
    10: "an indirect call to an address that is no target",
    39: "a return address is not the one on the shadow stack",
}
_ACCESS_VIOLATION: Final = 0xC000_0005
_KNOWN: Final = frozenset({0x0A, 0x1E, 0x3B, 0x50, 0x7E, 0x7F, 0xBE, 0xD1, 0xFC, 0x139})
_MASK32: Final = 0xFFFF_FFFF


def read_bugcheck(lines: Sequence[Line], source: str) -> Trace | None:
    """The first bug check that is about an exception, None if there is none."""
    for index, line in enumerate(lines):
        if (said := _bugcheck_at(lines, index)) is None:
            continue
        found = _trace(source, line.number, *said, text_of(lines, index, _LINES))
        if found is not None:
            return found
    return None


def other_bugcheck(lines: Sequence[Line]) -> int | None:
    """The code of the first bug check, whatever it is about."""
    return next((said[0] for index in range(len(lines)) if (said := _bugcheck_at(lines, index)) is not None), None)


def _bugcheck_at(lines: Sequence[Line], index: int) -> tuple[int, list[int]] | None:
    """The code and the parameters that begin at a line."""
    text = lines[index].text
    if match := _STOP.search(text):
        return int(match[1], 16), [_number(value) for value in match.groups()[1:] if value is not None]
    if match := _NAME.match(text):
        found = _ARGUMENT.findall(text_of(lines, index, _HEAD_LINES))[:4]
        said = {int(n): _number(value) for n, value in found}
        if len(said) == 4:
            return int(match[1], 16), [said[n] for n in sorted(said)]
    return None


def _number(digits: str) -> int:
    return int(digits.replace("`", ""), 16)


def _trace(source: str, number: int, code: int, arguments: Sequence[int], text: str) -> Trace | None:
    if code not in _KNOWN:
        return None
    raised = _raised(code, arguments, number, text)
    if raised is None:
        return None
    names = ", ".join(f"{value:#x}" for value in arguments)
    remarks = (f"bug check {code:#x} ({names})",)
    return Trace(source, "Windows bug check", (raised,), "oops", raised.cpu, total=1, remarks=remarks)


def _raised(code: int, arguments: Sequence[int], number: int, text: str) -> RaisedException | None:
    one, two, three, four = arguments
    fault = int(Vector.PF)
    if code in (0x0A, 0xD1):
        return RaisedException(fault, cr2=one, rip=four or None, cpl=0, kind=_kind(three), by_user=False, line=number)
    if code == 0x50:
        # The second parameter has the bits of the error code, P among them; before Windows 8 it is 1 for a write.
        bits = None if two == 1 else two & 0xFFFF
        kind = Kind.WRITE if two == 1 else None
        return RaisedException(fault, error_code=bits, cr2=one, rip=three or None, cpl=0, kind=kind, line=number)
    if code in (0xBE, 0xFC):
        kind = Kind.WRITE if code == 0xBE else Kind.FETCH
        return RaisedException(
            fault, error_code=3 if code == 0xBE else 0x11, cr2=one, cpl=0, kind=kind, line=number,
            entries=(PrintedEntry("PTE", two),) if two & 1 else (), says_no_execute=code == 0xFC,
        )  # fmt: skip
    if code == 0x7F:
        return RaisedException(one & 0xFF, cpl=0, line=number) if one <= 0x1F else None
    if code == 0x139:
        why = _FAST_FAILS.get(one, "see the table of fast-fail codes")
        return RaisedException(_FAST_FAIL, software=True, line=number, says=f"a fast fail, code {one:#x}: {why}")
    return _access_violation(code, arguments, number, text)


def _access_violation(code: int, arguments: Sequence[int], number: int, text: str) -> RaisedException | None:
    """An exception that no driver handled: its address is a parameter, or in the records that a debugger printed."""
    status, rip, three, four = arguments
    if status & _MASK32 != _ACCESS_VIOLATION:
        return None
    numbers = _context(text)
    cpu = cpu_of("the debugger's context", numbers)
    kind, va = (_kind(three), four) if code == 0x1E else _recorded(text)
    if va == _UNKNOWN_ADDRESS:
        # Windows reports what is not canonical as a read of -1.
        remark = "Windows reports a #GP as a read of -1, most often of an address that is not canonical"
        return RaisedException(
            int(Vector.GP),
            error_code=0,
            rip=rip,
            rsp=numbers.get("rsp"),
            cpl=0,
            cpu=cpu,
            line=number,
            dropped=(remark,),
        )
    dropped = ("the address is in the exception record, which the source does not have",) if va is None else ()
    return RaisedException(
        int(Vector.PF), cr2=va, rip=rip, rsp=numbers.get("rsp"), cpl=0, cpu=cpu, kind=kind, line=number, dropped=dropped
    )


def _recorded(text: str) -> tuple[Kind | None, int | None]:
    """The access of the exception record, or the operand that the debugger could not read."""
    if match := _ATTEMPT.search(text):
        return {"r": Kind.READ, "w": Kind.WRITE, "e": Kind.FETCH}[match[1][0].lower()], _number(match[2])
    parameters = {int(n): _number(value) for n, value in _PARAMETER.findall(text)}
    if {0, 1} <= parameters.keys():
        return _kind(parameters[0]), parameters[1]
    match = _OPERAND.search(text)
    return None, _number(match[1]) if match else None


def _context(text: str) -> dict[str, int]:
    """The registers of ``CONTEXT:``; a trap frame has zeros for those that it did not save."""
    at = text.find("CONTEXT: ")
    if at < 0:
        return {}
    found: dict[str, int] = {}
    for name, value in _REGISTER.findall(text[at:]):
        found.setdefault(name.lower(), int(value, 16))
    return found


def _kind(operation: int) -> Kind | None:
    return {0: Kind.READ, 1: Kind.WRITE, 8: Kind.FETCH}.get(operation)

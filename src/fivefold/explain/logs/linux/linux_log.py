"""A log of Linux: the first exception in the kernel, or else the first that ended a process."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from fivefold.arch import HAS_ERROR_CODE, Kind, PageFault, Vector
from fivefold.explain.logs.foreign.other_machines import machine_of
from fivefold.explain.logs.linux.call_trace import callers_of
from fivefold.explain.logs.linux.facts import Facts, facts_of, release_of
from fivefold.explain.logs.linux.frames import Frame, exception_frame, frames_of
from fivefold.explain.logs.linux.reports import Report, find_reports
from fivefold.explain.logs.register_file import cpu_of
from fivefold.explain.logs.register_text import parse_code
from fivefold.explain.logs.text.lines import Line
from fivefold.explain.logs.trace import Outcome, Placement, RaisedException, Trace
from fivefold.memory import CpuState
from fivefold.units import MASK64

_TRAPS: Final = re.compile(
    r"traps: .*\[\d+\] (?:trap )?([a-z0-9 ]+?) ip:([0-9a-f]{1,16}) sp:([0-9a-f]{1,16}) (?:ssp:[0-9a-f]{1,16} )?"
    r"error:([0-9a-f]{1,8})(?![0-9a-z])",
    re.I,
)
_EARLY: Final = re.compile(
    r"PANIC: early exception (?:0x)?([0-9a-f]{1,2}) (?:rip|IP) ([0-9a-f]+):([0-9a-f]{1,16}) "
    r"error ([0-9a-f]{1,8}) cr2 (?:0x)?([0-9a-f]{1,16})\s*$",
    re.I | re.M,
)
_SEGFAULT: Final = re.compile(
    r"segfault at (?:0x)?([0-9a-f]{1,16}) (?:ip|rip:?) (?:0x)?([0-9a-f]{16}) (?:sp|rsp:?) (?:0x)?([0-9a-f]{16}) "
    r"error:? ?([0-9a-f]{1,8})(?![0-9a-z])",
    re.I,
)
_SEGFAULT_ONLY: Final = re.compile(r"segfault at (?:0x)?([0-9a-f]{1,16}) r?ip\b", re.I)
_SEGFAULT_CODE: Final = re.compile(r"segfault at .*\berror:? ?([0-9a-f]{1,8})(?=[\s,\"'\\<]|$)", re.I | re.M)
_USER_NAMES: Final = {
    "general protection": Vector.GP,
    "invalid opcode": Vector.UD,
    "divide error": Vector.DE,
    "int3": Vector.BP,
    "stack segment": Vector.SS,
    "alignment check": Vector.AC,
    "control protection": Vector.CP,
    "segment not present": Vector.NP,
    "invalid TSS": Vector.TS,
}
_NO_CODE: Final = re.compile(
    r"Code: *(?:Unable to access opcode bytes at (?:RIP )?(?:0x([0-9a-f]{1,16})(?=\.|$))?|Bad RIP)", re.I | re.M
)
_CODE_BEFORE: Final = 42
_CODE_BYTES: Final = 64
"""What the kernel prints of the code: so many bytes, which begin so many before RIP."""
_INSTRUCTION: Final = 16
"""More bytes than any instruction has."""
_DIE: Final = re.compile(r"\[#?\d+\]")
_OFFSET: Final = re.compile(r"Kernel Offset: (?:0x([0-9a-f]+)|(disabled))", re.I)
_NOKASLR: Final = re.compile(r"\bnokaslr\b|KASLR disabled", re.I)
_KASAN: Final = re.compile(r"\[#?\d+\][^\n]*\bKASAN\b|BUG: KASAN|^.*\bKASAN: ", re.I | re.M)


def read_linux(lines: Sequence[Line], source: str) -> Trace | None:
    """The exception that a log of Linux is about, None if it has no report of one."""
    reports = [(report, raised) for report in find_reports(lines) if (raised := raised_by(report)) is not None]
    if not reports:
        return None
    # What ended a process is no more than a remark beside what the kernel itself did.
    report, raised = next((one for one in reports if one[0].kind == "fault"), reports[0])
    alike = sum(one.kind == report.kind for one, _ in reports)
    outcome: Outcome = "handled" if report.kind == "process" else "oops"
    text = "\n".join(line.text for line in lines)
    return Trace(
        source,
        "Linux oops",
        (raised,),
        outcome,
        raised.cpu,
        raised.code,
        len(reports),
        remarks=(f"{alike} reports in the log; this is the first",) if alike > 1 else (),
        release=release_of(report.text, text),
        placement=_placement(text),
        callers=callers_of(line.text for line in report.lines),
    )


def raised_by(report: Report) -> RaisedException | None:
    """The exception of *report*, None if it is about none, or its text is too damaged to say."""
    text = report.text
    if report.kind == "other" or machine_of(text) is not None:
        return None
    if report.kind == "process":
        return _of_process(report, text)
    if match := _EARLY.search(text):
        return _early(match, report)
    facts = facts_of(report)
    if facts is None:
        return None
    frame = exception_frame(frames_of(report), _by_user(facts))
    if not (_DIE.search(text) or facts.says_anything or frame.symbol or frame.cs is not None or frame.numbers):
        return None  # prose that names an exception
    return _of_kernel(facts, frame, report)


def _of_kernel(facts: Facts, frame: Frame, report: Report) -> RaisedException:
    dropped = list(facts.dropped)
    cr2 = frame.numbers.get("cr2")
    address = facts.address
    if report.mixed:
        dropped.append(
            "another report begins inside this one: registers and entries cannot be assigned, and are left out"
        )
        frame, facts = Frame(), replace(facts, entries=())
    elif facts.says is not None:
        frame = Frame()  # that of the BUG() which reports it
    elif cr2 is not None and (
        _read_code(report, frame.rip, cr2) or (address is None and _is_elsewhere(facts, frame, cr2))
    ):
        cr2 = None
        del frame.numbers["cr2"]
    elif address is not None and cr2 is not None and cr2 != address and not facts.guard:
        dropped.append(f"CR2 of the registers ({cr2:#x}) is not the address: they are of another exception or damaged")
        frame = Frame(symbol=frame.symbol)
        facts = replace(facts, entries=())
    if address is None and facts.vector == Vector.PF and cr2 is not None and not report.mixed:
        address = cr2
    cpu = _cpu(frame)
    cpl = None if frame.cs is None else frame.cs & 3
    kind = facts.kind
    return RaisedException(
        vector=facts.vector,
        error_code=facts.error_code if facts.vector in HAS_ERROR_CODE else None,
        cr2=address if facts.vector == Vector.PF else None,
        rip=frame.rip,
        rsp=frame.numbers.get("rsp"),
        cpl=cpl,
        software=facts.vector == Vector.BP,
        cpu=cpu,
        code=frame.code,
        entries=facts.entries,
        line=report.number,
        guard=facts.guard is not None,
        hashed=facts.hashed and address is None,
        kind=kind,
        by_user=facts.by_user,
        absent=facts.absent,
        named=facts.named,
        named_as=facts.named_as,
        shadowed=facts.shadowed,
        symbol=frame.symbol,
        says_no_execute=facts.nx,
        says_smep=facts.smep,
        on_purpose=facts.on_purpose,
        says=facts.says,
        dropped=tuple(dropped),
    )


def _read_code(report: Report, rip: int | None, cr2: int) -> bool:
    """Whether the kernel's own reading of the bytes at RIP, which failed, left *cr2*: it begins before RIP."""
    if (match := _NO_CODE.search(report.text)) is None:
        return False
    start = int(match[1], 16) if match[1] else None if rip is None else rip - _CODE_BEFORE & MASK64
    return start is None or cr2 - start & MASK64 < _CODE_BYTES


def _is_elsewhere(facts: Facts, frame: Frame, cr2: int) -> bool:
    """Whether CR2 is not where the instruction was fetched, so that it is of a later fault."""
    is_fetch = facts.error_code is not None and bool(facts.error_code & PageFault.I)
    if facts.kind is not Kind.FETCH and not is_fetch:
        return False
    return cr2 == -_CODE_BEFORE & MASK64 or (frame.rip is not None and cr2 - frame.rip & MASK64 >= _INSTRUCTION)


def _by_user(facts: Facts) -> bool | None:
    """Whether a process made the access, None where neither the error code nor the words say it."""
    if facts.vector == Vector.PF and facts.error_code is not None:
        return bool(facts.error_code & PageFault.U)
    return facts.by_user


def _cpu(frame: Frame) -> CpuState | None:
    """The registers of the block, None if it has none."""
    numbers = dict(frame.numbers)
    if frame.rip is not None:
        numbers["rip"] = frame.rip
    if frame.cs is not None:
        numbers["cpl"] = frame.cs & 3
    return cpu_of("oops", numbers)


def _early(match: re.Match[str], report: Report) -> RaisedException:
    vector, _, rip, code, cr2 = (int(number, 16) for number in match.groups())
    is_fault = vector == Vector.PF
    frame = exception_frame(frames_of(report))
    code_or_none = code if vector in HAS_ERROR_CODE else None
    dropped: tuple[str, ...] = ()
    if not f"{frame.numbers.get('cr2', cr2):x}".startswith(f"{cr2:x}"):
        frame, dropped = Frame(), ("CR2 of the registers is not that of the exception: they are of another one",)
    if re.fullmatch("fff[0-9a-f]{2,12}", match[5], re.I):
        is_fault, dropped = False, (*dropped, "the address is one of the upper half that was cut")
    return RaisedException(
        vector, None, code_or_none, cr2 if is_fault else None, rip, cpl=0, cpu=_cpu(frame), line=report.number,
        dropped=dropped,
    )  # fmt: skip


def _of_process(report: Report, text: str) -> RaisedException | None:
    """A process was ended by an exception; its registers are printed by a few kernels only."""
    code = parse_code(text)
    if match := _SEGFAULT.search(text):
        cr2, rip, rsp, error = (int(number, 16) for number in match.groups())
        return RaisedException(
            int(Vector.PF), None, error, cr2, rip, rsp, 3, code=code, line=report.number, disguised=_is_disguised(cr2)
        )
    if match := _SEGFAULT_ONLY.search(text):
        cr2 = int(match[1], 16)
        last = _SEGFAULT_CODE.search(text)
        error = int(last[1], 16) if last else 0
        # A program's own access has U set. Without it a digit is missing, as the line is damaged anyhow.
        return RaisedException(
            int(Vector.PF), None, error if error & PageFault.U else None, cr2, None, None, 3, line=report.number,
            disguised=_is_disguised(cr2), dropped=("the line of the segmentation fault was cut or damaged",),
        )  # fmt: skip
    match = _TRAPS.search(text)
    vector = _USER_NAMES.get(match[1].lower().removesuffix(" fault")) if match else None
    if match is None or vector is None:
        return None
    rip, rsp, error = (int(number, 16) for number in match.groups()[1:])
    cpu = _cpu(exception_frame(frames_of(report)))
    error_code = error if vector in HAS_ERROR_CODE else None
    return RaisedException(
        int(vector), None, error_code, None, rip, rsp, 3, vector == Vector.BP, cpu=cpu, code=code, line=report.number
    )


def _is_disguised(va: int) -> bool:
    """Whether Linux sets P in what it reports of a process, so as not to show how the kernel's half is mapped.

    It does from TASK_SIZE_MAX on, a page below the end of the user half of the mode.
    """
    return any(end - 0x1000 <= va < end for end in (1 << 47, 1 << 56)) or va >= 1 << 56


def _placement(text: str) -> Placement:
    """What the log says of where the kernel's areas lie."""
    offset = _OFFSET.search(text)
    is_plain = bool(_NOKASLR.search(text)) or bool(offset and offset[2])
    return Placement(
        slide=int(offset[1], 16) if offset and offset[1] else 0 if offset else None,
        may_slide="relocation range: 0xffffffff80000000-0xffffffffbfffffff" in text,
        fixed=is_plain or bool(_KASAN.search(text)),
        image_fixed=is_plain,
    )

"""KVM's trace events, as perf and trace-cmd print them: the exceptions and the exit that ended the guest.

The address of ``kvm_page_fault`` is one of guest-physical memory where the CPU translates twice, so only an exit for an
exception says a linear one: in its qualification (``info1``), with ``intr_info`` and ``error_code`` beside it. To 5.9
they are two numbers after ``info``, without the error code.

Source: Linux, ``arch/x86/kvm/trace.h``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from fivefold.arch import HAS_ERROR_CODE, Vector
from fivefold.explain.logs.register_file import cpu_of
from fivefold.explain.logs.text.lines import Line
from fivefold.explain.logs.trace import RaisedException, Trace

_EXIT: Final = re.compile(
    r"kvm_exit: .*\breason (\w+) rip 0x([0-9a-f]+)(?: info1 0x([0-9a-f]+) info2 0x[0-9a-f]+)?"
    r"(?: intr_info 0x([0-9a-f]+) error_code 0x([0-9a-f]+))?(?: info ([0-9a-f]+) ([0-9a-f]+)(?![0-9a-z]))?",
    re.I,
)
_FAULT: Final = re.compile(r"kvm_page_fault: .*\baddress (?:0x)?([0-9a-f]+) error_code (?:0x)?([0-9a-f]+)", re.I)
_TRIPLE: Final = frozenset({"TRIPLE_FAULT", "SHUTDOWN"})
_VALID: Final = 1 << 31


def read_kvm_events(lines: Sequence[Line], source: str) -> Trace | None:
    """The last exception before a triple fault, or the last one at all; None if there is no exit."""
    raised: RaisedException | None = None
    is_exit, rip = False, None
    remarks: list[str] = []
    for line in lines:
        if match := _EXIT.search(line.text):
            is_exit = True
            if match[1].upper() in _TRIPLE:
                rip = int(match[2], 16)
                break
            raised = _exception(match, line.number) or raised
        elif (match := _FAULT.search(line.text)) and not remarks:
            remarks.append(
                f"kvm_page_fault names {int(match[1], 16):#x}: with EPT or NPT that is a guest physical address"
            )
    if not is_exit or (rip is None and raised is None):
        return None
    is_unseen = rip is not None and raised is None
    says = None if not is_unseen else "the guest had a triple fault; the exceptions that led to it did not exit"
    cpu = cpu_of("the exit", {"rip": rip}) if is_unseen and rip is not None else None
    return Trace(
        source, "KVM trace events", (raised,) if raised else (), "unknown" if rip is None else "triple-fault", cpu,
        total=int(raised is not None), says=says, remarks=tuple(remarks),
    )  # fmt: skip


def _exception(match: re.Match[str], number: int) -> RaisedException | None:
    """The exception of an exit for one."""
    info, where, code = match[4] or match[7], match[3] or match[6], match[5]
    if info is None or not int(info, 16) & _VALID or "EXCEPTION" not in match[1].upper():
        return None
    vector = int(info, 16) & 0xFF
    return RaisedException(
        vector, error_code=int(code, 16) if code and vector in HAS_ERROR_CODE else None,
        cr2=int(where, 16) if where and vector == Vector.PF else None, rip=int(match[2], 16), line=number,
    )  # fmt: skip

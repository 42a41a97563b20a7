"""Reports of machines that are not x86-64, recognised by registers and words that only they have."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from fivefold.explain.logs.text.lines import Line

_SIGNS: Final = (
    ("an oops of a 32-bit x86 kernel", r"\bEIP: [0-9a-f]{4}:|\*pdpt = |\*pde = |\bEIP is at |\bEAX: [0-9a-f]{8} EBX:"),
    ("a report of 32-bit UEFI", r"!!!! IA32 Exception Type"),
    (
        "an oops of an aarch64 kernel",
        r"\bpstate: [0-9a-f]{8}|Internal error: Oops[ -:]+(?:BTI|[0-9a-f]{16})|\besr: 0x|\bESR = 0x[0-9a-f]{8,16}"
        r"|Mem abort info:|swapper pgtable: \d+k pages",
    ),
    ("a report of an aarch64 machine", r"Synchronous Exception at 0x|\bELR[ _:=]+(?:0x)?[0-9a-f]{16}"),
    (
        "an oops of a riscv kernel",
        r"\bbadaddr: [0-9a-f]{8,16} cause: |\bepc : [0-9a-f]{8,16} ra : |status: [0-9a-f]{16} badaddr",
    ),
    (
        "an oops of a 32-bit ARM kernel",
        r"\bPC is at \S|\bInternal error: Oops: [0-9a-f]+ \[#\d+\].* ARM\b|pc : \[<[0-9a-f]{8}>\]"
        r"|Unable to handle kernel .* when (?:read|write)",
    ),
    ("an oops of a s390 kernel", r"Krnl PSW : |Failing address: [0-9a-f]{16} TEID:|virtual kernel address space"),
    (
        "an oops of a powerpc kernel",
        r"\bNIP: +[0-9a-f]{8,16} LR: |Faulting instruction address: 0x|Oops: Kernel access of bad area"
        r"|BUG: (?:Kernel|Unable to handle kernel) \S.* on (?:read|write|execute)",
    ),
    ("an oops of a loongarch kernel", r"\bera == [0-9a-f]{16}|\bera: [0-9a-f]{16} |CSR crmd|LoongArch"),
    ("an oops of a mips kernel", r"\bepc +(?:==|:) [0-9a-f]{8,16}|ExcCode [0-9a-f]{2}|\bBadVA +:"),
    ("an oops of a sparc kernel", r"\bTSTATE: [0-9a-f]{16} TPC:|\bPSR: [0-9a-f]{8} PC:"),
    ("an oops of a parisc kernel", r"\bIAOQ: |\bIASQ: |\bYZrvWESTHLNXBCVMcbcbcbcbOGFRQPDI"),
    ("an oops of an ia64 kernel", r"\bpsr : [0-9a-f]{16} ifs : "),
    ("an oops of an alpha kernel", r"\bpc = \[<[0-9a-f]{16}>\] +ra = \[<"),
    ("an oops of a SuperH kernel", r"\bPR  : [0-9a-f]{8} "),
    ("an oops of a m68k kernel", r"\bPC: \[<[0-9a-f]{8}>\]|\bpc: .*\bSR: [0-9a-f]{4} "),
    ("an oops of a xtensa kernel", r"\bexccause |\bexcvaddr"),
    ("an oops of an ARC kernel", r"\bECR: 0x"),
    ("a report of a kernel of another machine", r"\bat virtual address [0-9a-f]{8,16}\b"),
)
_PATTERNS: Final = tuple((name, re.compile(pattern, re.I)) for name, pattern in _SIGNS)


def other_machine(lines: Sequence[Line]) -> str | None:
    """What machine's report *lines* hold, in words, None where nothing is known of it."""
    return machine_of("\n".join(line.text for line in lines))


def machine_of(text: str) -> str | None:
    """What machine's report *text* is, in words, None if it may be one of x86-64."""
    return next((name for name, pattern in _PATTERNS if pattern.search(text)), None)

"""What Linux prints when the kernel faults: oops, panic of early boot, double fault, segfault lines.

Formats of 4.12 to 6.12: ``arch/x86/mm/fault.c`` (show_fault_oops, dump_pagetable, pgtable_bad, show_signal_msg),
``arch/x86/kernel/traps.c`` (show_signal, handle_stack_overflow), ``dumpstack.c``, ``process_64.c``
(__show_regs) and ``arch/x86/mm/extable.c`` (early_fixup_exception).
"""

from __future__ import annotations

import re
from typing import Final

from fivefold.arch import HAS_ERROR_CODE, Vector
from fivefold.explain.logs.lines import Block
from fivefold.explain.logs.register_text import parse_code, parse_registers
from fivefold.explain.logs.trace import Outcome, RaisedException, Trace

_ADDRESS: Final = re.compile(
    r"(?:page fault for address|paging request at|NULL pointer dereference(?:, address)?|"
    r"NULL pointer dereference at|Corrupted page table at address)[: ]+(?:0x)?([0-9a-f]{1,16})\b"
)
_ERROR: Final = re.compile(r"#PF: error_code\((?:0x)?([0-9a-f]{1,8})\)")
_OOPS: Final = re.compile(r": ([0-9a-f]{4,8}) \[#\d+\]")
_GUARD: Final = re.compile(r"stack guard page was hit at (?:0x)?([0-9a-f]{16})")
_TRAPS: Final = re.compile(
    r"traps: .*\[\d+\] (?:trap )?([a-z0-9 ]+?) ip:([0-9a-f]{1,16}) sp:([0-9a-f]{1,16}) error:([0-9a-f]{1,8})"
)
_EARLY: Final = re.compile(
    r"PANIC: early exception (?:0x)?([0-9a-f]{1,2}) (?:rip|IP) [0-9a-f]+:([0-9a-f]{1,16}) "
    r"error ([0-9a-f]{1,8}) cr2 (?:0x)?([0-9a-f]{1,16})"
)
_SEGFAULT: Final = re.compile(
    r"segfault at ([0-9a-f]{1,16}) ip (?:0x)?([0-9a-f]{1,16}) sp (?:0x)?([0-9a-f]{1,16}) error ([0-9a-f]{1,8})"
)
_NAMED: Final = re.compile(
    r"(general protection|double fault|stack segment|invalid opcode|divide error|kernel stack overflow|int3"
    r"|alignment check|invalid TSS|segment not present|simd exception|control protection)(?: fault)?\b[^\n]*?"
    r"(?:: [0-9a-f]{4} \[#\d+\]|, error_code: |non-canonical|$)",
    re.MULTILINE,
)
_CODE_OF: Final = re.compile(r"(?:general protection fault|stack segment)[^\[\n]*?: ([0-9a-f]{4}) \[#\d+\]")
_NON_CANONICAL: Final = re.compile(r"non-canonical address 0x([0-9a-f]{1,16})")
_RIP: Final = re.compile(r"\b(?:RIP|IP): ([0-9a-f]{4}):(?:\[<([0-9a-f]{8,16})>\]|0x([0-9a-f]{8,16})|\S+)")
_ENTRIES: Final = re.compile(r"\bPGD ([0-9a-f]{1,16})((?: (?:P4D|PUD|PMD|PTE) [0-9a-f]{1,16})*)")
_RELEASE: Final = re.compile(r"(?:Not tainted|Tainted: [A-Z ]+) +(\d+\.\d+\S*)")
_VECTORS: Final = {
    "general protection": Vector.GP,
    "int3": Vector.BP,
    "alignment check": Vector.AC,
    "invalid TSS": Vector.TS,
    "segment not present": Vector.NP,
    "simd exception": Vector.XM,
    "control protection": Vector.CP,
    "double fault": Vector.DF,
    "stack segment": Vector.SS,
    "invalid opcode": Vector.UD,
    "divide error": Vector.DE,
    "kernel stack overflow": Vector.PF,
}


class LinuxText:
    """Folds the blocks of oopses; the first one counts, later ones are mostly its echo."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._first: Block | None = None
        self.total = 0

    def feed(self, block: Block) -> None:
        """Take the next block; those that are no oops are left alone."""
        if block.kind != "oops" or _raised(block.text) is None:
            return
        self.total += 1
        self._first = self._first or block

    def trace(self) -> Trace | None:
        """The first oops, None if there was none."""
        if self._first is None:
            return None
        text = self._first.text
        raised = _raised(text)
        assert raised is not None  # `feed` keeps no other
        remarks = [] if self.total < 2 else [f"{self.total} reports in the log; this is the first"]
        if match := _NON_CANONICAL.search(text):
            remarks.append(f"the kernel itself names the non-canonical address 0x{match[1]}")
        release = _RELEASE.search(text)
        is_process = _SEGFAULT.search(text) or _TRAPS.search(text)
        outcome: Outcome = "handled" if is_process else "oops"
        return Trace(
            self._source,
            "Linux oops",
            (raised,),
            outcome,
            raised.cpu,
            raised.code,
            self.total,
            remarks=tuple(remarks),
            release=release[1] if release else None,
        )


def _raised(text: str) -> RaisedException | None:
    """The exception that the report *text* is about."""
    if match := _EARLY.search(text):
        vector, rip, code, cr2 = (int(number, 16) for number in match.groups())
        is_fault = vector == Vector.PF
        return RaisedException(
            vector, None, code, cr2 if is_fault else None, rip, cpl=0, cpu=parse_registers(text, "panic")
        )
    if match := _SEGFAULT.search(text):
        cr2, rip, rsp, code = (int(number, 16) for number in match.groups())
        cpu = parse_registers(text, "segfault")
        return RaisedException(
            int(Vector.PF), None, code, cr2, rip, rsp, 3, cpu=cpu, code=parse_code(text), disguised=_is_disguised(cr2)
        )
    if match := _TRAPS.search(text):
        return _user_trap(match, text)
    if match := _GUARD.search(text):
        return _overflow(int(match[1], 16), text)
    address = _ADDRESS.search(text)
    named = _NAMED.search(text)
    if address is None and named is None:
        return None
    cpu = parse_registers(text, "oops")
    vector = int(Vector.PF) if address else int(_VECTORS[named[1]]) if named else 0
    return RaisedException(
        vector=vector,
        error_code=_error_code(text, vector),
        cr2=(int(address[1], 16) if address else cpu.cr2 if cpu else None) if vector == Vector.PF else None,
        rip=_rip(text) or (cpu.rip if cpu else None),
        rsp=cpu.rsp if cpu else None,
        cpl=cpu.general.get("cpl") if cpu else None,
        cpu=cpu,
        code=parse_code(text),
        entries=_entries(text),
    )


def _user_trap(match: re.Match[str], text: str) -> RaisedException | None:
    """A process was ended by an exception that is no page fault."""
    vector = _VECTORS.get(match[1].removesuffix(" fault"))
    if vector is None:
        return None
    rip, rsp, code = (int(number, 16) for number in match.groups()[1:])
    error_code = code if vector in HAS_ERROR_CODE else None
    cpu = parse_registers(text, "trap")
    return RaisedException(
        int(vector), None, error_code, None, rip, rsp, 3, vector == Vector.BP, cpu=cpu, code=parse_code(text)
    )


def _is_disguised(va: int) -> bool:
    """Whether Linux sets P in what it reports of a process, so as not to tell how the kernel's half is mapped.

    It does from TASK_SIZE_MAX on, a page below the end of the user half of the mode.
    """
    return any(end - 0x1000 <= va < end for end in (1 << 47, 1 << 56)) or va >= 1 << 56


def _overflow(va: int, text: str) -> RaisedException:
    """A kernel stack ran into its guard page; what is printed as the error code is that of the double fault."""
    cpu = parse_registers(text, "oops")
    if cpu is not None and cpu.cr2 is not None:
        # Kernels since 4.15 print the address hashed; CR2 below has it.
        va = cpu.cr2
    return RaisedException(
        int(Vector.PF), cr2=va, rip=_rip(text), rsp=cpu.rsp if cpu else None, cpl=0, cpu=cpu, code=parse_code(text),
        guard=True,
    )  # fmt: skip


def _error_code(text: str, vector: int) -> int | None:
    if vector == Vector.PF:
        match = _ERROR.search(text) or _OOPS.search(text)
    else:
        match = _CODE_OF.search(text)
    return int(match[1], 16) if match else None


def _rip(text: str) -> int | None:
    """RIP where a number is printed; kernels print ``symbol+offset`` since 4.15."""
    match = _RIP.search(text)
    number = match and (match[2] or match[3])
    return int(number, 16) if number else None


def _entries(text: str) -> tuple[int, ...]:
    """The page-table entries that were printed: PGD, P4D, … as far as the walk went.

    Since 4.12; before that there is no P4D, which is the PGD's entry then.
    """
    match = _ENTRIES.search(text)
    if match is None:
        return ()
    below = [int(number, 16) for number in re.findall(r" \S+ ([0-9a-f]+)", match[2])]
    top = int(match[1], 16)
    return (top, *below) if "P4D" in match[2] or not below else (top, top, *below)

"""The facts that a report of Linux states in words and numbers, each as far as the text can be believed.

Numbers that the kernel pads have 16 digits; others are left out. Where a report says a thing twice and not the same
both times, the fact is left out too, and `Facts.dropped` says so.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from fivefold.arch import LA48, Kind, PageFault, Vector
from fivefold.explain.logs.linux.reports import Report
from fivefold.explain.logs.trace import PrintedEntry

_ADDRESS: Final = re.compile(
    r"(?:page fault for address|paging request at(?: virtual address)?|NULL pointer dereference(?:, address| at)?)"
    r"[: ]+(?:(\(null\)|<null>|<NULL>)|(?:0x)?([0-9a-z]+))",
    re.I,
)
_CORRUPTED: Final = re.compile(r"Corrupted page table at address (?:0x)?([0-9a-f]{1,16})\s*$", re.I | re.M)
_GUARD: Final = re.compile(
    r"(\S+) stack guard page was hit at (?:0x)?([0-9a-fx]+)(?: \(stack is (\S+)\.\.(\S+)\))?", re.I
)
_ERROR: Final = re.compile(r"\bPF: error_code\((?:0x)?([0-9a-f]{4,8})\)(?: - (\S+))?", re.I)
_WORDS: Final = re.compile(r"\bPF: (supervisor|user) (read|write|instruction)(?: access| fetch)?", re.I)
_OOPS: Final = re.compile(r": ([0-9a-f]{4}|[0-9a-f]{8})(?:/\d+)? \[#?\d+\]", re.I)
_ERROR_CODE: Final = re.compile(r"\berror_code: *(?:0x)?([0-9a-f]{1,8})\b", re.I)
_NAMED: Final = re.compile(r"(non-canonical|LASS violation for|maybe for) address (?:0x)?([0-9a-f]{1,16}):", re.I)
_RANGE: Final = re.compile(
    r"KASAN: (null-ptr-deref|probably user-memory-access|maybe wild-memory-access|probably wild-memory-access)"
    r" in range \[0x([0-9a-f]{16})-0x([0-9a-f]{16})\]",
    re.I,
)
_ENTRIES: Final = re.compile(
    r"\bPGD ([0-9a-f]{1,16})(?![0-9a-z?~\ufffd])((?: +(?:P4D|PUD|PMD|PTE) [0-9a-z]+(?![?~\ufffd]))*)[ \t]*([^\n]*)$",
    re.I | re.M,
)
_ENTRY: Final = re.compile(r"(P4D|PUD|PMD|PTE) ([0-9a-z]+)", re.I)
_NO_ENDBR: Final = re.compile(r"Missing ENDBR: (\S+)", re.I)
_OVERFLOW: Final = re.compile(r"stack guard page|kernel stack overflow", re.I)
_RMP: Final = re.compile(r"\bRMP\b|\bSEV-SNP\b", re.I)
_BRANCH: Final = 3
"""The error code of #CP for an indirect branch to what is no ENDBR."""
_NUMBER: Final = r"(\d+\.\d+(?=[ ).+~_-].)[\w.+~-]*)"
"""A release. Something follows its second number, of which digits would be missing at the end of a cut line."""
_RELEASE: Final = re.compile(r"(?:Not tainted|Tainted: [A-Z\[\]=, ]+?) +\(?" + _NUMBER, re.I)
_BOOTED: Final = re.compile(r"Linux version " + _NUMBER, re.I)
_NAMES: Final = (
    ("general protection", Vector.GP),
    ("general_protection", Vector.GP),
    ("double fault", Vector.DF),
    ("stack segment", Vector.SS),
    ("invalid opcode", Vector.UD),
    ("divide error", Vector.DE),
    ("divide_error", Vector.DE),
    ("int3", Vector.BP),
    ("alignment check", Vector.AC),
    ("invalid TSS", Vector.TS),
    ("segment not present", Vector.NP),
    ("simd exception", Vector.XM),
    ("control protection", Vector.CP),
    ("VMM communication exception", Vector.VC),
    ("coprocessor", Vector.MF),
    ("bounds", Vector.BR),
    ("kernel BUG at", Vector.UD),
    ("Missing ENDBR", Vector.CP),
)
_PAGE_FAULT: Final = re.compile(
    r"unable to handle|NULL pointer dereference|Corrupted page table|Bad pagetable|stack guard page"
    r"|kernel stack overflow|\bPF: |Oops: [0-9a-f]{4} \[|kernel tried to execute NX|unable to execute userspace",
    re.I,
)
_DIGITS: Final = 16
_IN_OOPS: Final = 0xFFFF
"""The bits of an error code that ``Oops:`` prints; ``error_code(…)`` has all, RMP (bit 31) among them."""
_BELOW_TABLES: Final = 0x1000


@dataclass(frozen=True, slots=True)
class Facts:
    """What a report says of its exception. None, or an empty tuple, where it does not say.

    *named* is an address that the kernel itself calls *named_as*: ``non-canonical``, ``lass`` or ``maybe``.
    *shadowed* is the address that KASAN computes from its shadow. *hashed*: the address printed is a hash. *says* is
    what happened, where the kernel's own words are all that there is.
    """

    vector: int
    address: int | None = None
    error_code: int | None = None
    kind: Kind | None = None
    by_user: bool | None = None
    absent: bool = False
    says_null: bool = False
    guard: str | None = None
    hashed: bool = False
    named: int | None = None
    named_as: str | None = None
    shadowed: int | None = None
    entries: tuple[PrintedEntry, ...] = ()
    nx: bool = False
    smep: bool = False
    on_purpose: bool = False
    says: str | None = None
    dropped: tuple[str, ...] = ()

    @property
    def says_anything(self) -> bool:
        """Whether there is more than the name of an exception."""
        known = (self.address, self.error_code, self.kind, self.named, self.guard)
        return bool(any(fact is not None for fact in known) or self.entries or self.hashed or self.dropped)


def facts_of(report: Report) -> Facts | None:
    """The facts of *report*, None if it names no exception."""
    lines = [line.text for line in report.lines]
    head = "\n".join(lines[: _end_of_head(lines)])
    vector = _vector(head)
    if vector is None:
        return None
    dropped: list[str] = []
    guard = _GUARD.search(head)
    address, says_null = _address(head, dropped)
    endbr = _NO_ENDBR.search(head)
    # The BUG() that follows is an invalid opcode of its own.
    code = _BRANCH if endbr else _error_code(head, vector, dropped)
    if code is not None and any(_RMP.search(line.text) for line in report.unclaimed):
        code = None
        dropped.append("lines in a wrong order speak of an RMP violation, which may be of this report or of another")
    kind, by_user = _access(head)
    if kind is None and "kernel tried to execute" in head:
        kind = Kind.FETCH
    error = _ERROR.search(head)
    named = _named(head, dropped) if vector in (Vector.GP, Vector.SS) else None
    shadowed = _RANGE.search(head) if vector == Vector.GP else None
    hashed = guard is not None and _is_hash(guard[2])
    if guard and not hashed and len(guard[2].removeprefix("0x")) == _DIGITS:
        address = int(guard[2], 16)
    return Facts(
        vector=vector,
        address=address,
        error_code=code,
        kind=kind,
        by_user=by_user,
        absent=bool(error and error[2] and error[2].lower().startswith("not-present")),
        says_null=says_null,
        guard=guard[1].removeprefix("BUG:").strip() if guard else "kernel" if _OVERFLOW.search(head) else None,
        hashed=hashed,
        named=int(named[2], 16) if named else None,
        named_as=_as(named[1]) if named else None,
        shadowed=int(shadowed[2], 16) if shadowed else None,
        entries=_entries(head, dropped) if vector == Vector.PF else (),
        nx="NX-protected page" in head,
        smep="userspace code" in head,
        on_purpose="kernel BUG at" in head and endbr is None,
        says=f"an indirect call or jump to {endbr[1]}, which does not begin with ENDBR" if endbr else None,
        dropped=tuple(dropped),
    )


def release_of(report: str, text: str) -> str | None:
    """The kernel's release in a *report*, or of the one kernel whose start *text* has; None if neither says it."""
    if match := _RELEASE.search(report):
        return match[1]
    booted = set(_BOOTED.findall(text))
    return booted.pop() if len(booted) == 1 else None


def _end_of_head(lines: list[str]) -> int:
    """The lines before the trace: what comes after says nothing of the exception itself."""
    return next((index for index, text in enumerate(lines) if "Call Trace:" in text), len(lines))


def _vector(head: str) -> int | None:
    if _PAGE_FAULT.search(head) and not re.search(r"PANIC: double fault|^.*\bdouble fault: ", head, re.I | re.M):
        return int(Vector.PF)
    folded = head.lower()
    found = [(folded.find(name.lower()), vector) for name, vector in _NAMES if name.lower() in folded]
    return int(min(found)[1]) if found else None


def _address(head: str, dropped: list[str]) -> tuple[int | None, bool]:
    """The address of the line that has it, and whether that line speaks of a null pointer."""
    if match := _CORRUPTED.search(head):
        return int(match[1], 16), False
    says_null = "NULL pointer dereference" in head
    found = {_padded(match) for match in _ADDRESS.finditer(head)}
    if len(found) == 1 and (value := found.pop()) is not None:
        return value, says_null
    if found:
        dropped.append("the address is not given in 16 digits: the line was cut or damaged")
    return None, says_null


def _padded(match: re.Match[str]) -> int | None:
    if match[1]:
        return 0
    digits = match[2]
    is_number = len(digits) == _DIGITS and all(c in "0123456789abcdefABCDEF" for c in digits)
    return int(digits, 16) if is_number else None


def _is_hash(digits: str) -> bool:
    """``%p`` prints a hash of 32 bits since 4.15, which lies in no area of the kernel."""
    digits = digits.removeprefix("0x")
    return len(digits) == _DIGITS and digits.startswith("00000000") and digits.strip("0") != ""


def _error_code(head: str, vector: int, dropped: list[str]) -> int | None:
    found = {int(match[1], 16) for match in _ERROR.finditer(head)} if vector == Vector.PF else set()
    if _OVERFLOW.search(head):
        return None  # what is printed is the code of the double fault
    found |= {int(match[1], 16) for match in _OOPS.finditer(head)}
    if vector != Vector.PF:
        found |= {int(match[1], 16) for match in _ERROR_CODE.finditer(head)}
    words = _ERROR.search(head)
    whole = max(found, default=0)
    if found and {code & _IN_OOPS for code in found} == {whole & _IN_OOPS} and found <= {whole, whole & _IN_OOPS}:
        code = whole | (int(PageFault.RMP) if found and _RMP.search(head) else 0)
        kind, by_user = _access(head)
        wrong = words is not None and words[2] is not None and not _fits(code, words[2].lower())
        if vector == Vector.PF and (wrong or not _fits_access(code, kind, by_user)):
            dropped.append("the error code does not fit the words beside it")
            return None
        return code
    if found:
        dropped.append(f"the error code is given as {' and '.join(f'{code:#x}' for code in sorted(found))}")
    return None


def _fits(code: int, words: str) -> bool:
    if words.startswith("not-present"):
        return not code & PageFault.P
    if words.startswith("reserved"):
        return bool(code & PageFault.RSVD)
    return bool(code & PageFault.P) or not words.startswith("permissions")


def _fits_access(code: int, kind: Kind | None, by_user: bool | None) -> bool:
    """Whether W, I and U of *code* are what the words say; a CPU may not report fetches."""
    if kind is not None and bool(code & PageFault.W) != (kind is Kind.WRITE):
        return False
    if code & PageFault.I and kind not in (None, Kind.FETCH):
        return False
    return not (by_user is False and code & PageFault.U)


def _access(head: str) -> tuple[Kind | None, bool | None]:
    match = _WORDS.search(head)
    if match is None:
        return None, None
    kinds = {"read": Kind.READ, "write": Kind.WRITE, "instruction": Kind.FETCH}
    return kinds[match[2].lower()], match[1].lower() == "user"


def _named(head: str, dropped: list[str]) -> re.Match[str] | None:
    """The address that the kernel names; what it calls not canonical must be that, or digits are missing."""
    match = _NAMED.search(head)
    if match is None or _as(match[1]) != "non-canonical" or not LA48.is_canonical(int(match[2], 16)):
        return match
    dropped.append("the address that the kernel names is canonical: the line was cut or damaged")
    return None


def _as(words: str) -> str:
    words = words.lower()
    return "lass" if "lass" in words else "maybe" if "maybe" in words else "non-canonical"


def _entries(head: str, dropped: list[str]) -> tuple[PrintedEntry, ...]:
    """The entries that were printed, from the top, as far as each can be one."""
    lines = {match[0]: match for match in _ENTRIES.finditer(head)}
    if len(lines) != 1:
        if lines:
            dropped.append("two lines of page-table entries are mixed")
        return ()
    match = next(iter(lines.values()))
    found = [PrintedEntry("PGD", int(match[1], 16))]
    for name, digits in _ENTRY.findall(match[2]):
        if len(digits) > _DIGITS or any(c not in "0123456789abcdefABCDEF" for c in digits):
            break
        found.append(PrintedEntry(name.upper(), int(digits, 16)))
    if re.match(r"[0-9a-f?~\ufffd]", match[3]):
        dropped.append(f"more follows the {found.pop().name} entry: it was cut")
    if not found:
        return ()
    return tuple(_believable(found, dropped))


def _believable(entries: list[PrintedEntry], dropped: list[str]) -> list[PrintedEntry]:
    """Without the last one if it is neither empty nor present above the page table, as a number that was cut is.

    None at all where the walk would have ended earlier: only a folded P4D follows an entry that is not present.
    """
    for above, below in pairwise(entries):
        if not above.value & 1 and above.value != below.value:
            dropped.append(f"the {above.name} entry {above.value:#x} is not present, and yet one follows it")
            return []
    last = entries[-1]
    is_odd = last.value and not last.value & 1 and last.name != "PTE"
    is_short = 0 < last.value < _BELOW_TABLES
    if is_odd or is_short:
        dropped.append(f"the {last.name} entry {last.value:#x} is neither empty nor present: perhaps the line was cut")
        return entries[:-1]
    return entries

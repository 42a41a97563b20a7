"""The rules of the published table: their titles, and the sections of the manuals that hold them.

Titles use the manual's words. A title names what is decided, never who decides wrongly.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from fivefold.arch import (
    Allowed,
    Cpu,
    Entry,
    Fault,
    Flag,
    Legal,
    Level,
    PageFault,
    Refused,
    Register,
    Rule,
    Vendor,
    Verdict,
)
from fivefold.conform.cases.case import Case
from fivefold.conform.judging.expect import Expected, refused_invpcid
from fivefold.conform.judging.stale_answers import CACHING, title
from fivefold.units import MASK64

SDM: Final = "Intel SDM volume 3, "
CANONICAL: Final = "Intel SDM volume 1, Canonical Addressing"
RIGHTS: Final = SDM + "Determination of Access Rights"
KEYS: Final = SDM + "Protection Keys"
PAGE_FAULT: Final = SDM + "Page-Fault Exceptions"
FLAGS: Final = SDM + "Accessed and Dirty Flags"
FORMATS: Final = SDM + "4-Level Paging and 5-Level Paging"
FORMATS_AMD: Final = "AMD APM volume 2, Long-Mode Page Translation"
CONTROL: Final = SDM + "Control Registers"
SHADOW: Final = RIGHTS
LASS: Final = SDM + "Linear-Address Space Separation"
CLASSES: Final = SDM + "Exception Classifications"
STACK_FAULT: Final = SDM + "Interrupt 12—Stack Fault Exception (#SS)"
GENERAL: Final = SDM + "Interrupt 13—General Protection Exception (#GP)"

Named = tuple[str, str]


class Rules:
    """Rules beside the one that decides whether there is a fault."""

    CR2: Final = ("CR2 holds the linear address of the first byte that faulted", PAGE_FAULT)
    RMW: Final = ("a read-modify-write faults as a write (W/R=1), not as a read that comes first", PAGE_FAULT)
    KEYS: Final = ("protection keys: PKRU is for user pages, PKRS for supervisor pages, at every CPL", KEYS)
    SMAP_IMPLICIT: Final = ("SMAP: implicit supervisor access to a user page faults whatever RFLAGS.AC is", RIGHTS)
    WITHOUT_WP: Final = ("a supervisor's write to a read-only page goes ahead with WP=0", RIGHTS)
    STACK: Final = ("a non-canonical access through the stack raises #SS(0), not #GP(0)", STACK_FAULT)
    OWN_STACK: Final = ("RET and IRET at privilege level 3 read their stack as a user", RIGHTS)
    BRANCH: Final = (
        "a jump or return to a non-canonical address faults at the branch: the saved RIP is its own",
        "Intel SDM volume 2, JMP, RET, IRET",
    )
    SYSRET: Final = (
        "SYSRET to a non-canonical address (AMD) faults at its target, at privilege level 3",
        "AMD APM volume 3, SYSRET",
    )
    RIP: Final = ("the saved RIP is that of the instruction that faulted", CLASSES)
    ZERO_CODE: Final = ("the error code of #GP and #SS is 0", GENERAL)
    OTHER_BITS: Final = ("reserved bits of the page fault's error code are 0", PAGE_FAULT)
    CLEANED: Final = ("A and D are set again after software cleared them, and INVLPG", FLAGS)
    ACCESSED: Final = ("accessed flag (A): set in every entry used, after an access that went ahead", FLAGS)
    ACCESSED_FAULT: Final = (
        "accessed flag (A): not set in an entry with P=0 or a reserved bit, after a fault",
        FLAGS,
    )
    DIRTY: Final = ("dirty flag (D): set in the leaf of what was written and nowhere else", FLAGS)
    DIRTY_FAULT: Final = ("dirty flag (D): not set by a write that faults", FLAGS)
    OTHER_ENTRY: Final = ("no other bit of an entry changes", FLAGS)
    ADDRESS: Final = ("the access reaches the physical bytes that the tables name", FORMATS)
    TORN: Final = ("a write that faults writes nothing", CLASSES)


def _present(fault: Fault) -> Named:
    if fault.rule is Rule.PRESENT:
        return "error code bit 0 (P) is 0 for an entry that is not present", PAGE_FAULT
    if fault.rule is Rule.RESERVED:
        return "error code bit 0 (P) is 1 for a reserved bit", PAGE_FAULT
    return "error code bit 0 (P) is 1 for missing rights", PAGE_FAULT


def _key(fault: Fault) -> Named:
    if fault.rule is Rule.USER:
        return "error code bit 5 (PK) is 0 for a user access to a supervisor page", PAGE_FAULT
    if fault.error_code & PageFault.PK:
        return "error code bit 5 (PK) is 1 where a protection key forbids the access", PAGE_FAULT
    return "error code bit 5 (PK) is 0 where no protection key forbids the access", PAGE_FAULT


def _always(title: str) -> Callable[[Fault], Named]:
    return lambda _: (title, PAGE_FAULT)


ERROR_BITS: Final[tuple[tuple[int, Callable[[Fault], Named]], ...]] = (
    (int(PageFault.P), _present),
    (int(PageFault.W), _always("error code bit 1 (W/R): 1 for a write")),
    (
        int(PageFault.U),
        _always("error code bit 2 (U/S): 1 for a user access, 0 for an implicit supervisor access"),
    ),
    (int(PageFault.RSVD), _always("error code bit 3 (RSVD): 1 for a reserved bit only")),
    (int(PageFault.I), _always("error code bit 4 (I/D): 1 for a fetch with NXE=1 or SMEP=1")),
    (int(PageFault.PK), _key),
    (int(PageFault.SS), _always("error code bit 6 (SS): 1 for a shadow-stack access")),
)
"""Bits of the error code, and the rule of each."""

TITLES: Final = {
    Rule.USER: ("user access to a supervisor page (U/S=0) faults", RIGHTS),
    Rule.WRITE: ("write to a read-only page (R/W=0) faults", RIGHTS),
    Rule.EXECUTE: ("fetch from an execute-disable page (XD=1) faults", RIGHTS),
    Rule.SMEP: ("SMEP: supervisor fetch from a user page faults", RIGHTS),
    Rule.SMAP: ("SMAP: supervisor access to a user page faults", RIGHTS),
    Rule.SHADOW: ("shadow-stack access to a page that is no shadow stack faults", SHADOW),
    Rule.SHADOW_SIDE: ("supervisor shadow-stack access to a user page faults", SHADOW),
    Rule.PKU: ("PKU: the protection key of a user page forbids the access", KEYS),
    Rule.PKS: ("PKS: the protection key of a supervisor page forbids the access", KEYS),
}


CHANGED: Final = {
    "wp": "CR0.WP", "smap": "CR4.SMAP", "ac": "RFLAGS.AC", "pkru": "PKRU", "pkrs": "IA32_PKRS",
}  # fmt: skip
"""What a case changes between two accesses."""


def flush_rule(case: Case) -> Named | None:
    """The rule of an instruction that accesses nothing, but is checked as a read of a byte is."""
    section = {"CLFLUSH": "CLFLUSH, CLFLUSHOPT, CLWB", "MONITOR": "MONITOR"}.get(case.what.label)
    if section is None:
        return None
    return f"{case.what.label} is subject to all the checks of a read, and sets A", f"Intel SDM volume 2, {section}"


def _is_amd_bit(verdict: Verdict, expected: Expected) -> bool:
    """Whether it is bit 8 that decides: an engine which does not know it is to blame, whatever the instruction."""
    if not isinstance(verdict, Fault) or verdict.rule is not Rule.RESERVED or expected.cpu.vendor is not Vendor.AMD:
        return False
    return expected.space is not None and expected.space.reserved(verdict.steps[-1].entry) == 1 << 8


def rule_of(case: Case, expected: Expected) -> Named:
    """The rule that decides what happens in *case*: its title, and the section that holds it."""
    verdict = expected.verdict
    if expected.allowed is not None:
        return title(case), CACHING
    if expected.written is not None:
        return _written(expected.written, case)
    if verdict is None:
        return _no_access(case, expected)
    if (flush := flush_rule(case)) is not None and not _is_amd_bit(verdict, expected):
        return flush
    if case.what.then in CHANGED and expected.first is not None:
        return (
            f"{CHANGED[case.what.then]} counts as it is at the access, whatever was cached before it changed",
            CACHING,
        )
    if case.action == "accessed" and isinstance(verdict, Fault) and verdict.error_code & PageFault.W:
        return "an implicit supervisor write to a read-only page faults with WP=1", RIGHTS
    if isinstance(verdict, Allowed):
        return _allowed(case, verdict)
    if verdict.rule is Rule.CANONICAL:
        return _canonical(case)
    if verdict.rule is Rule.LASS:
        return "LASS: bit 63 of the address is the other privilege's", LASS
    if verdict.rule is Rule.PRESENT:
        return f"not-present {_level(verdict.level)} entry faults", PAGE_FAULT
    if verdict.rule is Rule.RESERVED:
        return _reserved(case, verdict, expected)
    if verdict.rule is Rule.SMAP and case.what.implicit:
        return Rules.SMAP_IMPLICIT
    if verdict.rule is Rule.WRITE and case.cpl == 0:
        return "write to a read-only page (R/W=0) by a supervisor faults with WP=1", RIGHTS
    return TITLES[verdict.rule]


def _written(found: Legal | Refused, case: Case) -> Named:
    """The rule of a register write. What one instruction writes shares its rules, but CR0 to CR4, EFER and PAT."""
    register = case.what.register
    assert register is not None
    instruction = case.what.text.partition(",")[0].upper()
    own = case.what.name.startswith("mov") or register in (Register.EFER, Register.PAT)
    section = CONTROL if case.what.name.startswith("mov") else f"Intel SDM volume 2, {instruction}"
    if isinstance(found, Legal):
        return f"legal write of {register.value}" if own else f"{instruction}: a legal write goes ahead", section
    rule = {
        "canonical base": "an address that is not canonical",
        "reserved bits": "a reserved bit that is set",
        "no such MSR": "an MSR that the CPU does not have",
    }.get(found.rule, found.rule)
    return (
        f"write of {register.value}: {rule} raises #GP(0)" if own else f"{instruction}: {rule} raises #GP(0)",
        section,
    )


def _level(level: Level | None) -> str:
    return level.name if level else "?"


def _no_access(case: Case, expected: Expected) -> Named:
    name = case.what.label
    if case.what.invpcid is not None:
        reason = refused_invpcid(case, expected.cpu)
        return (
            f"INVPCID: {reason} raises #GP(0)" if reason else "INVPCID: a legal descriptor is taken",
            "Intel SDM volume 2, INVPCID",
        )
    if case.action == "invlpg":
        return (
            f"{name}: never faults, and an address that is not canonical is no operation",
            "Intel SDM volume 2, INVLPG",
        )
    return f"{name}: never faults", "Intel SDM volume 2, PREFETCHh"


def _canonical(case: Case) -> Named:
    if case.paging.is_canonical(case.va):
        if case.what.fetches:
            return "page-crossing fetch into the non-canonical range raises #GP(0)", CANONICAL
        return (
            "page-crossing access into the non-canonical range faults as a whole, before any walk",
            CANONICAL,
        )
    if case.paging.is_canonical(case.va + case.what.size - 1 & MASK64):
        return "page-crossing access out of the non-canonical range faults", CANONICAL
    return "access to a non-canonical address raises #GP(0), or #SS(0) through the stack", CANONICAL


def _reserved(case: Case, fault: Fault, expected: Expected) -> Named:
    entry = fault.steps[-1].entry
    assert expected.space is not None
    bits = expected.space.reserved(entry)
    name = reserved_name(entry, bits, expected.space.cpu)
    return f"reserved bits of a {entry.level.name} entry: {name}", FORMATS_AMD if "AMD" in name else FORMATS


def reserved_name(entry: Entry, bits: int, cpu: Cpu) -> str:
    """What the reserved *bits* set in *entry* are; the first kind where they are of several."""
    if bits & Flag.BIT7:
        return "bit 7 (PS)" if entry.level > Level.PDPT else "bit 7 (PS) without 1 GiB pages"
    if bits & 1 << 8:
        return "bit 8 (AMD)"
    if bits & ((1 << cpu.width) - 1):
        size = "1 GiB" if entry.level is Level.PDPT else "2 MiB"
        return f"address bits below the alignment of a {size} page"
    if bits & ((1 << 52) - 1):
        return "address bits from MAXPHYADDR to 51"
    return "bit 63 (XD) with EFER.NXE=0"


def _allowed(case: Case, verdict: Allowed) -> Named:
    if len(verdict.pages) == 2 and case.second_page == 0:
        return "an access past 2^64 goes on at address 0", CANONICAL
    page = verdict.pages[0]
    size = {1: "4 KiB", 2: "2 MiB", 3: "1 GiB"}[int(page.page)]
    if case.what.access is not None and case.what.access.shadow:
        return "shadow-stack access to a shadow-stack page goes ahead", SHADOW
    if case.what.writes and not all(found.rights.write for found in verdict.pages):
        return Rules.WITHOUT_WP
    leaf = page.leaf.raw
    if page.page > Level.PT and leaf & Flag.BIT12:
        return f"bit 12 (PAT) of a {size} page is no reserved bit", FORMATS
    if any(_ignored(step.entry) for found in verdict.pages for step in found.steps):
        return "ignored bits of an entry change nothing", FORMATS
    if case.cpl == 0 and "smap" in case.flags and page.rights.user and "ac" in case.flags:
        return "SMAP: an explicit supervisor access with RFLAGS.AC=1 goes ahead", RIGHTS
    if case.cpl == 3 and case.what.implicit and not page.rights.user:
        return "implicit supervisor access at privilege level 3 reaches a supervisor page", RIGHTS
    return f"access that the rights allow, through a {size} page", RIGHTS


def _ignored(entry: Entry) -> bool:
    """Whether *entry* has bits set that this CPU ignores: software's, a key that is not asked, G or D in no leaf."""
    bits = 0x7F0_0000_0000_0E00 << 0 | 0x7FF0_0000_0000_0000 | (0 if entry.is_leaf else 1 << 8 | 1 << 6)
    return bool(entry.raw & bits & ~(1 << 63))

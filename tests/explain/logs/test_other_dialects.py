"""Text of Linux, KVM, Bochs and our own engines; invented numbers in the formats that these print."""

from __future__ import annotations

import io
from typing import Any

import pytest

from fivefold.errors import FormatError
from fivefold.explain import Explanation, explain

OOPS = """
[    1.601159] BUG: unable to handle page fault for address: ffffde4bdb12874b
[    1.601160] #PF: supervisor write access in kernel mode
[    1.601161] #PF: error_code(0x0002) - not-present page
[    1.601162] PGD 100000067 P4D 100000067 PUD 100001067 PMD 0
[    1.601163] Oops: 0002 [#1] PREEMPT SMP NOPTI
[    1.601164] CPU: 1 PID: 31 Comm: worker Not tainted 6.5.11 #1
[    1.601165] RIP: 0010:some_function+0x15c/0x2c0
[    1.601166] Code: 00 48 89 51 08 <48> 89 0a 48 89 38
[    1.601167] RSP: 0018:ffffa59acff6ba70 EFLAGS: 00010002
[    1.601168] RAX: ffffdecedb128708 RBX: ffff8bb09e779b80 RCX: ffff8bb09e779b98
[    1.601169] RDX: ffffde4bdb12874b RSI: 0000000000000000 RDI: dead000000000100
[    1.601170] R10: 0000000000000000 R11: 0000000000000000 R12: 0000000000000001
[    1.601171] CS:  0010 DS: 0000 ES: 0000 CR0: 0000000080050033
[    1.601172] CR2: ffffde4bdb12874b CR3: 0000000102f30002 CR4: 0000000000770ee0
[    1.601173] ---[ end trace 0000000000000000 ]---
"""
GENERAL = """
general protection fault, probably for non-canonical address 0xdffffc0000000001: 0000 [#1] PREEMPT SMP KASAN
CPU: 0 PID: 1 Comm: swapper/0 Not tainted 6.1.0 #1
RIP: 0010:other_function+0x20/0x90
Code: 00 00 <0f> b6 04 02 84 c0
RSP: 0000:ffffc90000013e50 EFLAGS: 00010246
RAX: dffffc0000000000 RBX: 0000000000000008 RCX: 0000000000000000
RDX: 0000000000000001 RSI: 0000000000000000 RDI: 0000000000000008
CS:  0010 DS: 0000 ES: 0000 CR0: 0000000080050033
CR2: 0000000000000000 CR3: 000000000260a000 CR4: 00000000000006f0
"""
EARLY = "PANIC: early exception 0x0e IP 10:ffffffff8f85cdeb error 0 cr2 0xffffffff9cb15000\n"
SEGFAULT = "program[77]: segfault at 8 ip 0000000000401136 sp 00007ffd2a1c1e60 error 4 in program[401000+1000]\n"
RESERVED = (
    OOPS.replace("Oops: 0002", "Oops: 000b")
    .replace("error_code(0x0002) - not-present page", "error_code(0x000b) - reserved bit violation")
    .replace(
        "PGD 100000067 P4D 100000067 PUD 100001067 PMD 0",
        "PGD 2e01067 P4D 2e01067 PUD 2e04067 PMD 58a30063 PTE 800fffffa7598063",
    )
)
FIVE = (
    OOPS.replace("0000000000770ee0", "0000000000771ee0")
    .replace("ffffde4bdb12874b", "ff1100000712874b")
    .replace("PGD 100000067 P4D 100000067 PUD 100001067 PMD 0", "PGD 100000067 P4D 100001067 PUD 0")
)
KVM = """
KVM internal error. Suberror: 1
emulation failure
RAX=0000800000000000 RBX=0000000000000000 RCX=000000000000001b RDX=00000000fee000f0
RSI=00000000fee00900 RDI=00000000000000f0 RBP=ffff800000ffff50 RSP=ffff800000ffff38
RIP=ffff80000020ea22 RFL=00010086 [--S--P-] CPL=0 II=0 A20=1 SMM=0 HLT=0
CS =0010 0000000000000000 00000000 00209900 DPL=0 CS64 [--A]
GDT=     ffff800001415000 00000fff
IDT=     ffff800001517000 00000fff
CR0=80000033 CR2=0000000000000000 CR3=0000000001413000 CR4=000626e8
EFER=0000000000000d01
Code=00 00 <48> 89 18 90 90
"""
DELIVERY = KVM.replace(
    "Suberror: 1\nemulation failure", "Suberror: 2\nextra data[0]: 80000b0e\nextra data[1]: 80000b0e"
)
BOCHS = """
00000100d[CPU0  ] page fault for address ffffffff7ffffff8 @ ffffffff80000122
00000100d[CPU0  ] exception(0x0e): error_code=0002
00000100d[CPU0  ] page fault for address ffffffff7ffffff8 @ ffffffff80000122
00000100d[CPU0  ] exception(0x0e): error_code=0002
00000100d[CPU0  ] exception(0x08): error_code=0000
00000100d[CPU0  ] page fault for address ffffffff7ffffff8 @ ffffffff80000122
00000100d[CPU0  ] exception(0x0e): error_code=0002
00000100i[CPU0  ] CPU is in long mode (active)
00000100i[CPU0  ] EFER   = 0x00000d00
00000100i[CPU0  ] | RAX=ffffffff80000166  RBX=0000000000009500
00000100i[CPU0  ] | RSP=ffffffff80000000  RBP=1122334455667788
00000100i[CPU0  ] | RIP=ffffffff80000122 (ffffffff80000122)
00000100i[CPU0  ] | CR0=0x80010011 CR2=0xffffffff7ffffff8
00000100i[CPU0  ] | CR3=0x00200000 CR4=0x00001020
00000100e[CPU0  ] exception(): 3rd (14) exception with no resolution
"""
EVENT = (
    "booting\ntriple fault: #PF(0x2) at 0xffffffff7ffffff8, rip 0xffffffff80000122 -> #PF(0x2) at 0xffffffff7ffffff8, "
    "rip 0xffffffff80000122 -> #DF(0x0), rip 0xffffffff80000122 -> #PF(0x2) at 0xffffffff7ffffff8, "
    "rip 0xffffffff80000122\n"
)
REGISTERS = """
RAX=0000000000000001 RBX=0000000000000000 RCX=0000000000000000 RDX=0000000000000000
RSI=0000000000000000 RDI=0000000000000000 RBP=0000000000000000 RSP=ffffffff82603eb0
RIP=ffffffff81a2d2cb RFL=00000246 [---Z-P-] CPL=0 II=0 A20=1 SMM=0 HLT=1
CR0=80050033 CR2=00007fffb0a6cff8 CR3=0000000002c10000 CR4=001016b0
EFER=0000000000000d01
"""


def told_of(text: str, **options: Any) -> Explanation:
    return explain(io.BytesIO(text.encode()), **options)


def told_in_short(told: Explanation) -> list[object]:
    cause = told.cause
    address = None if cause.address is None else f"{cause.address:x}"
    return [
        told.dialect,
        told.mode,
        told.outcome,
        cause.rule,
        cause.level.name if cause.level else None,
        address,
        cause.confidence,
    ]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (OOPS, ["Linux oops", "la48", "oops", "not-present", "PD", "ffffde4bdb12874b", "certain"]),
        (FIVE, ["Linux oops", "la57", "oops", "not-present", "PDPT", "ff1100000712874b", "certain"]),
        (RESERVED, ["Linux oops", "la48", "oops", "reserved-bit", "PT", "ffffde4bdb12874b", "certain"]),
        (GENERAL, ["Linux oops", "la48", "oops", "non-canonical", None, "dffffc0000000001", "certain"]),
        (EARLY, ["Linux oops", None, "oops", "not-present", None, "ffffffff9cb15000", "likely"]),
        (SEGFAULT, ["Linux oops", None, "handled", "not-present", None, "8", "likely"]),
        (KVM, ["KVM error", "la48", "emulation-failure", "non-canonical", None, "800000000000", "likely"]),
        (DELIVERY, ["KVM error", "la48", "emulation-failure", "unknown", None, None, "guess"]),
        (BOCHS, ["Bochs log", "la57", "triple-fault", "not-present", None, "ffffffff7ffffff8", "likely"]),
        (EVENT, ["engine's events", None, "triple-fault", "not-present", None, "ffffffff7ffffff8", "likely"]),
        (REGISTERS, ["registers", "la57", "unknown", "unknown", None, None, "guess"]),
    ],
    ids=["oops", "oops five levels", "oops reserved", "general protection", "early", "segfault", "kvm", "kvm delivery",
         "bochs", "event", "registers"],
)  # fmt: skip
def test_dialects(text: str, wanted: list[object]) -> None:
    assert told_in_short(told_of(text)) == wanted


def test_an_oops_shows_its_instruction() -> None:
    told = told_of(OOPS)
    assert "mov qword ptr [rdx], rcx" in told.cause.evidence[0]
    assert told.exceptions[0].finding.use is not None
    assert told.cause.level is not None


def test_kasan_of_a_null_pointer() -> None:
    evidence = " ".join(told_of(GENERAL).cause.evidence)
    assert "it is where KASAN's shadow of 0x0000000000000008 would be" in evidence
    assert "perhaps an instrumented access to a NULL pointer" in evidence


def test_the_first_oops_counts() -> None:
    told = told_of(OOPS + GENERAL)
    assert told.cause.rule == "not-present"
    assert told.remarks == ("2 reports in the log; this is the first",)


def test_events_pair_up() -> None:
    assert [(one.raised.during, one.raised.vector) for one in told_of(EVENT).exceptions] == [
        (None, 14),
        (14, 14),
        (8, 14),
    ]


def test_all_that_bochs_says_is_used() -> None:
    told = told_of(BOCHS)
    assert [(one.raised.during, one.raised.vector) for one in told.exceptions] == [(None, 14), (14, 14), (8, 14)]


def test_registers_of_several_cpus() -> None:
    told = told_of(REGISTERS + REGISTERS.replace("RAX=0000000000000001", "RAX=0000000000000002"))
    assert told.remarks[0] == "registers of 2 CPUs; these are the first"


@pytest.mark.parametrize("who", ["user", "supervisor"])
@pytest.mark.parametrize(("what", "bits"), [("read data", 0), ("write data", 2), ("read instruction", 16)])
@pytest.mark.parametrize(("why", "more"), [("page not present", 0), ("protection violation", 1)])
def test_freebsd_says_the_error_code_in_words(who: str, what: str, bits: int, why: str, more: int) -> None:
    """Source: FreeBSD, "trap_fatal" of amd64: the words for bits 0, 1, 2 and 4."""
    text = (
        "Fatal trap 12: page fault while in kernel mode\ncpuid = 2; apic id = 02\n"
        "fault virtual address\t= 0x801a00010\n"
        f"fault code\t\t= {who} {what}, {why}\ninstruction pointer\t= 0x20:0xffffffff80b5f2a3\n"
        "stack pointer\t        = 0x28:0xfffffe00a1b2c7d0\n"
    )
    (raised,) = explain(io.BytesIO(text.encode())).exceptions
    assert raised.raised.error_code == bits | more | (4 if who == "user" else 0)


RESET = """\
CPU Reset (CPU 0)
RAX=0000000000000000 RBX=0000000000000000 RCX=0000000000000000 RDX=0000000000000663
RSI=0000000000000000 RDI=0000000000000000 RBP=0000000000000000 RSP=ffffffff80010000
RIP=ffffffff80000123 RFL=00000246 [---Z-P-] CPL=0 II=0 A20=1 SMM=0 HLT=0
CS =0008 0000000000000000 ffffffff 00af9b00 DPL=0 CS64 [-RA]
GDT=     ffffffff80020000 00000037
IDT=     ffffffff80020100 00000fff
CR0=80050033 CR2=ffff90000000{last} CR3=0000000000200000 CR4=00001020
EFER=0000000000000d00
"""


def test_a_reset_without_an_exception_tells_the_registers_before_it() -> None:
    """The machine was reset by other means; the last dump that has paging on is of the kernel that ran."""
    before_paging = RESET.format(last="0000").replace("CR0=80050033", "CR0=60000010")
    told = explain(io.BytesIO((before_paging + RESET.format(last="1000")).encode()))
    assert (told.mode, told.exceptions) == ("la57", ())
    with pytest.raises(FormatError, match=r"no report of an exception that they belong to"):
        explain(io.BytesIO(before_paging.encode()))

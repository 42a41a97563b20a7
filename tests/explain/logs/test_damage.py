"""Damaged logs with a known cause: the answer may lose certainty, and is not wrong with "certain" or "likely"."""

from __future__ import annotations

import io
import random
from collections.abc import Callable
from typing import Final, NamedTuple

import pytest

from fivefold.errors import FormatError
from fivefold.explain import Explanation, explain

_ROUNDS: Final = 250


class KnownLog(NamedTuple):
    """A log and the truth about it; *rules* are those that are right where less is known, too."""

    text: str
    mode: str
    rules: tuple[str, ...]
    levels: tuple[str, ...]
    addresses: tuple[int, ...]
    instruction: str | None = None


LOGS: Final = {
    "four levels": KnownLog(
        """\
BUG: unable to handle page fault for address: ffffc90001a42ff8
#PF: supervisor write access in kernel mode
#PF: error_code(0x0002) - not-present page
PGD 100000067 P4D 100000067 PUD 1001d5067 PMD 1087aa067 PTE 0
Oops: 0002 [#1] PREEMPT SMP NOPTI
CPU: 2 PID: 640 Comm: demo Not tainted 6.6.9-demo #1
RIP: 0010:vec_push+0x19/0x50
Code: 00 55 48 89 e5 48 8b 5f 18 <48> 89 43 20 5d c3
RSP: 0018:ffffc90000222d40 EFLAGS: 00010282
RAX: 0000000000000005 RBX: ffffc90001a42fd8 RCX: 0000000000000000
CS:  0010 DS: 0000 ES: 0000 CR0: 0000000080050033
CR2: ffffc90001a42ff8 CR3: 000000010a5d4003 CR4: 0000000000370ef0
Call Trace:
 ksys_write+0x71/0xf0
RIP: 0033:0x7f4410d1c2ef
Code: 89 54 24 18 b8 01 00 00 00 0f 05 <48> 3d 00 f0 ff ff 77 31 c3
RSP: 002b:00007ffc5f0a9810 EFLAGS: 00000293 ORIG_RAX: 0000000000000001
---[ end trace 0000000000000000 ]---
""",
        "la48", ("not-present",), ("PT",), (0xFFFFC90001A42FF8,), "mov qword ptr [rbx + 0x20], rax",
    ),
    "five levels": KnownLog(
        """\
[   41.500000] BUG: unable to handle page fault for address: ff1100042c19e7f8
[   41.500001] #PF: supervisor read access in kernel mode
[   41.500002] #PF: error_code(0x0000) - not-present page
[   41.500003] PGD 3a801067 P4D 3a802067 PUD 0
[   41.500004] Oops: Oops: 0000 [#1] SMP NOPTI
[   41.500005] CPU: 5 UID: 0 PID: 77 Comm: demo Not tainted 6.12.3-demo #1
[   41.500006] RIP: 0010:demo_scan+0x2c/0x90
[   41.500007] RSP: 0018:ffa0000000222d40 EFLAGS: 00010282
""",
        "la57", ("not-present",), ("PDPT",), (0xFF1100042C19E7F8,),
    ),
    "no execute": KnownLog(
        """\
kernel tried to execute NX-protected page - exploit attempt? (uid: 0)
BUG: unable to handle page fault for address: ffff888101a42000
#PF: supervisor instruction fetch in kernel mode
#PF: error_code(0x0011) - permissions violation
PGD 5c01067 P4D 5c01067 PUD 1001d5067 PMD 1018001e3 PTE 8000000101a42163
Oops: 0011 [#1] SMP NOPTI
RIP: 0010:0xffff888101a42000
CR2: ffff888101a42000 CR3: 000000010a5d4003 CR4: 0000000000370ef0
""",
        "la48", ("no-execute",), ("PT",), (0xFFFF888101A42000,),
    ),
    "a non-canonical address": KnownLog(
        """\
general protection fault, probably for non-canonical address 0xdead000000000122: 0000 [#1] PREEMPT SMP NOPTI
CPU: 1 PID: 12 Comm: demo Not tainted 6.6.9-demo #1
RIP: 0010:demo_list+0x33/0x80
Code: 48 8b 07 <48> 89 42 08 5d c3
RSP: 0018:ffffc90000222d40 EFLAGS: 00010282
RAX: 0000000000000005 RBX: ffffc90001a42fd8 RCX: 0000000000000000
RDX: dead00000000011a RSI: 0000000000000001 RDI: ffff888105b4a000
CR2: 00007f1234567000 CR3: 000000010a5d4003 CR4: 0000000000370ef0
""",
        "la48", ("non-canonical", "unknown"), (), (0xDEAD000000000122,), "mov qword ptr [rdx + 8], rax",
    ),
    "QEMU": KnownLog(
        """\
check_exception old: 0xffffffff new 0xe
     7: v=0e e=0002 i=0 cpl=0 IP=0008:ffffffff80104a10 pc=ffffffff80104a10 SP=0010:ffffffff80208000 CR2=ffffffff80207ff8
RAX=0000000000000001 RBX=0000000000000000 RCX=0000000000000000 RDX=0000000000000000
RSI=0000000000000000 RDI=0000000000000000 RBP=ffffffff8020a000 RSP=ffffffff80208000
RIP=ffffffff80104a10 RFL=00000086 [--S--P-] CPL=0 II=0 A20=1 SMM=0 HLT=0
CS =0008 0000000000000000 ffffffff 00af9b00 DPL=0 CS64 [-RA]
GDT=     ffffffff80141000 00000037
IDT=     ffffffff80142000 00000fff
CR0=80010013 CR2=ffffffff80207ff8 CR3=0000000000106000 CR4=00000020
EFER=0000000000000d00
check_exception old: 0xe new 0xe
     8: v=08 e=0000 i=0 cpl=0 IP=0008:ffffffff80104a10 pc=ffffffff80104a10 SP=0010:ffffffff80208000 env->regs[R_EAX]=01
RAX=0000000000000001 RBX=0000000000000000 RCX=0000000000000000 RDX=0000000000000000
CR0=80010013 CR2=ffffffff80207ff8 CR3=0000000000106000 CR4=00000020
EFER=0000000000000d00
check_exception old: 0x8 new 0xe
""",
        "la48", ("not-present", "stack"), (), (0xFFFFFFFF80207FF8,),
    ),
    "UEFI": KnownLog(
        """\
!!!! X64 Exception Type - 0E(#PF - Page-Fault)  CPU Apic ID - 00000000 !!!!
ExceptionData - 0000000000000003  I:0 R:0 U:0 W:1 P:1 PK:0 SS:0 SGX:0
RIP  - 000000007E21A4C8, CS  - 0000000000000038, RFLAGS - 0000000000010046
RBX  - 000000007D5A1000, RSP - 000000007E7B1A80, RBP - 0000000000000020
CR0  - 0000000080010033, CR2 - 000000007D5A1018, CR3 - 000000007E801000
CR4  - 0000000000000668, CR8 - 0000000000000000
""",
        "la48", ("write-protected", "unknown"), (), (0x7D5A1018,),
    ),
}  # fmt: skip
OTHER_CPU: Final = """\
[   77.020000][    C2] BUG: kernel NULL pointer dereference, address: 0000000000000058
[   77.020001][    C2] #PF: supervisor read access in kernel mode
[   77.020002][    C2] #PF: error_code(0x0000) - not-present page
[   77.020003][    C2] PGD 0 P4D 0
[   77.020004][    C2] Oops: 0000 [#2] PREEMPT SMP NOPTI
[   77.020006][    C2] RIP: 0010:other_get+0x12/0x40
[   77.020007][    C2] Code: 55 48 89 e5 48 8b 07 <48> 8b 50 58 5d c3
[   77.020008][    C2] RSP: 0018:ffffc90000b5be10 EFLAGS: 00010246
[   77.040000][    C2] RAX: 0000000000000000 RBX: ffff888104c61400 RCX: 0000000000000ff8
[   77.040002][    C2] CR2: 0000000000000058 CR3: 0000000107d0c002 CR4: 0000000000370ef0
"""

Damage = Callable[[random.Random, list[str]], list[str]]


def remove_lines(chance: random.Random, lines: list[str]) -> list[str]:
    return [line for line in lines if chance.random() > 0.25]


def cut_lines(chance: random.Random, lines: list[str]) -> list[str]:
    return [line[: chance.randrange(len(line) + 1)] if chance.random() < 0.2 else line for line in lines]


def cut_head(chance: random.Random, lines: list[str]) -> list[str]:
    return [line[chance.randrange(len(line) + 1) :] if chance.random() < 0.1 else line for line in lines]


def spoil(chance: random.Random, lines: list[str]) -> list[str]:
    """Characters that no number has, as a terminal or a bad cable leaves them."""
    text = list("\n".join(lines) or "-")
    for _ in range(chance.choice((1, 3, 12))):
        text[chance.randrange(len(text))] = chance.choice("?~\x07\ufffd_ \t\n")
    return "".join(text).split("\n")


def drop_characters(chance: random.Random, lines: list[str]) -> list[str]:
    """Characters that are lost from numbers that the format pads, and from anything else but numbers."""
    found = []
    for line in lines:
        if chance.random() < 0.15 and line and "PGD" not in line and "non-canonical" not in line:
            at = chance.randrange(len(line))
            line = line[:at] + line[at + 1 :]
        found.append(line)
    return found


def break_lines(chance: random.Random, lines: list[str]) -> list[str]:
    found = []
    for line in lines:
        at = chance.randrange(len(line) + 1) if chance.random() < 0.2 else len(line)
        found += [line[:at], line[at:]] if at < len(line) else [line]
    return found


def end_early(chance: random.Random, lines: list[str]) -> list[str]:
    return lines[: chance.randrange(1, len(lines) + 1)]


def begin_late(chance: random.Random, lines: list[str]) -> list[str]:
    return lines[chance.randrange(len(lines)) :]


def mix_cpus(chance: random.Random, lines: list[str]) -> list[str]:
    """Lines of another CPU between these, with prefixes that say so."""
    own = [f"[   77.010000][    C6] {line}" for line in lines]
    other = OTHER_CPU.splitlines()
    at = sorted(chance.randrange(1, len(own) + 1) for _ in other)
    for number, line in reversed(list(zip(at, other, strict=True))):
        own.insert(number, line)
    return own


WITHOUT_PREFIX: Final = ("QEMU", "UEFI")
DAMAGES: Final = (
    remove_lines, cut_lines, cut_head, spoil, drop_characters, break_lines, end_early, begin_late, mix_cpus,
)  # fmt: skip


def check_not_wrong(found: Explanation, truth: KnownLog, also_null: bool) -> None:
    """What is said with certainty or likelihood is the truth, or a part of it."""
    cause = found.cause
    if cause.confidence == "guess":
        return
    if also_null and cause.address == 0x58:
        return  # where the lines of the first CPU are lost the other one is explained
    assert found.mode in (truth.mode, None)
    assert cause.rule in (*truth.rules, "unknown"), cause
    assert cause.address in (*truth.addresses, None), cause
    assert cause.level is None or cause.level.name in truth.levels, cause
    instruction = next((one.finding.instruction for one in found.exceptions if one.finding.instruction), None)
    assert instruction is None or instruction.text == truth.instruction, instruction


@pytest.mark.parametrize("name", LOGS)
@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_damage(name: str, damage: Damage) -> None:
    truth = LOGS[name]
    if damage is mix_cpus and name in WITHOUT_PREFIX:
        return  # nothing would tell their lines apart
    chance = random.Random(f"{name} {damage.__name__}")
    for _ in range(_ROUNDS // 6):
        text = "\n".join(damage(chance, truth.text.splitlines()))
        check(text, truth, damage is mix_cpus)


def check(text: str, truth: KnownLog, also_null: bool) -> None:
    try:
        found = explain(io.BytesIO(text.encode()))
    except FormatError:
        return
    try:
        check_not_wrong(found, truth, also_null)
    except AssertionError as error:
        raise AssertionError(f"{error}\n{text}") from error


@pytest.mark.parametrize("name", LOGS)
def test_several_kinds_of_damage(name: str) -> None:
    truth = LOGS[name]
    chance = random.Random(f"{name} all")
    for _ in range(_ROUNDS // 2):
        lines = truth.text.splitlines()
        for damage in chance.sample(DAMAGES[:-1], 2):
            lines = damage(chance, lines) or [""]
        check("\n".join(lines), truth, False)

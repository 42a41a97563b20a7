"""What guests made for the purpose, and real Linux oopses, showed to be told wrongly once; reduced to the few lines
that matter.
"""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import pytest

from fivefold.arch import LA48, LA57, ControlState, Flag, Level
from fivefold.explain import Explanation, GivenState, RaisedException, Trace, explain
from fivefold.explain.logs.links import link
from fivefold.memory import CpuState, Ram, Segment
from fivefold.units import PhysAddr

HIGH = 0xFFFF_FFFF_8000_0000
PAGE = HIGH + 0x18000
STACK = HIGH + 0x10000
USER = 0x40_0000_0000
REGISTERS = """\
RAX=0000000000001000 RBX=0000000000002000 RCX=0000000000000000 RDX=0000000000000000
RSI=0000000000000000 RDI=0000000000000000 RBP=0000000000000000 RSP={rsp:016x}
R8 =0000000000000000 R9 =0000000000000000 R10=0000000000000000 R11=0000000000000000
RIP={rip:016x} RFL=00000202 [-------] CPL=0 II=0 A20=1 SMM=0 HLT=0
CS =0008 0000000000000000 ffffffff 00af9b00 DPL=0 CS64 [-RA]
TR =0028 ffffffff81011800 00000067 00008b00 DPL=0 TSS64-busy
GDT=     ffffffff81011000 00000047
IDT=     {idt:016x} 00000fff
CR0=80010011 CR2={cr2:016x} CR3=0000000000400000 CR4=00001020
EFER=0000000000000d00
"""


def struck(vector: int, cr2: int = 0, code: int = 0, number: int = 0, **where: int) -> str:
    """A `v=` line of QEMU with its registers."""
    where = {"rip": 0xFFFF_FFFF_8100_00B6, "rsp": 0xFFFF_FFFF_8101_4000, "idt": 0xFFFF_FE00_0000_0000, **where}
    tail = f"CR2={cr2:016x}" if vector == 14 else "env->regs[R_EAX]=0000000000000000"
    return (
        f"     {number}: v={vector:02x} e={code:04x} i=0 cpl=0 IP=0008:{where['rip']:016x} pc={where['rip']:016x} "
        f"SP=0010:{where['rsp']:016x} {tail}\n" + REGISTERS.format(cr2=cr2, **where)
    )


def told_of(text: str, **rest: Any) -> Explanation:
    return explain(io.BytesIO(text.encode()), **rest)


# -- interrupts on vectors of the CPU -----------------------------------------------------------

TIMER = "Servicing hardware INT=0x08\n" + struck(8)
NEXT = "check_exception old: 0xffffffff new 0xe\n"


def test_a_timer_on_vector_8_is_no_double_fault() -> None:
    told = told_of(TIMER)
    assert [one.name for one in told.exceptions] == ["interrupt 0x8"]
    assert told.exceptions[0].raised.error_code is None
    assert told.exceptions[0].finding.legitimate
    assert "the interrupt controller still has the base that the firmware gave it" in told.cause.sentence
    assert told_of(struck(8)).exceptions[0].name == "#DF"


def test_what_stopped_a_timer_is_the_cause() -> None:
    gate = 0xFFFF_FE00_0000_0080
    log = TIMER + NEXT + struck(14, gate, 0, 1) + "check_exception old: 0xe new 0xe\n" + struck(8, gate + 0x60, 0, 2)
    told = told_of(log + "check_exception old: 0x8 new 0xe\nTriple fault\n")
    assert (told.cause.rule, told.cause.address, told.outcome) == ("idt-not-mapped", gate, "triple-fault")
    assert [one.raised.during for one in told.exceptions] == [None, 8, 14, 8]
    assert told.exceptions[0].delivery == "interrupt 0x8 could not be delivered"


@pytest.mark.parametrize("vector", [8, 0xEC, 7], ids=["low", "high", "#NM"])
def test_what_struck_where_an_interrupt_returned_to(vector: int) -> None:
    """A long copy is interrupted, goes on, and faults: RIP and RSP are the same, and the delivery was fine."""
    log = ("" if vector == 7 else f"Servicing hardware INT={vector:#04x}\n") + struck(vector)
    told = told_of(log + NEXT + struck(14, PAGE, 2, 1) + "check_exception old: 0xe new 0xd\n" + struck(8, number=2))
    assert (told.cause.rule, told.cause.address) == ("not-present", PAGE)
    assert [one.raised.during for one in told.exceptions][:2] == [None, None]


def test_the_story_begins_with_the_first_double_fault() -> None:
    """The handler of the double fault runs into a fault of its own, which is fatal."""
    double = NEXT + struck(14, PAGE, 2) + "check_exception old: 0xe new 0xd\n" + struck(8, number=1)
    later = "check_exception old: 0xffffffff new 0xd\n" + struck(13, code=0xC4, number=2, rip=HIGH, rsp=STACK)
    end = "check_exception old: 0xd new 0xd\n" + struck(8, number=3, rip=HIGH, rsp=STACK)
    end += "check_exception old: 0x8 new 0xd\nTriple fault\n"
    told = told_of(double + later + end)
    assert (told.cause.rule, told.cause.address, told.outcome) == ("not-present", PAGE, "triple-fault")
    idle = "".join(f"Servicing hardware INT=0xec\n{struck(0xEC, number=n, rip=HIGH + n, rsp=STACK)}" for n in range(60))
    told = told_of(double + idle)
    assert (told.cause.address, told.outcome) == (PAGE, "double-fault")


def test_two_cpus_at_once() -> None:
    """Lines of another CPU between an exception and its own line, and between it and what struck in its delivery."""
    user = struck(14, 0x7F00_0000_1000, 6, rip=0x40_1000, rsp=0x7FFD_0000_0000).replace(
        "TR =0028 ffffffff", "TR =0040 fffffe00"
    )
    gate = 0xFFFF_FE00_0000_0060
    log = struck(6) + NEXT + user + NEXT + NEXT + user.replace("cpl=0", "cpl=3") + struck(14, gate, 0, 1)
    told = told_of(log + "check_exception old: 0xe new 0xe\n" + struck(8, gate + 0x80) + "Triple fault\n")
    assert (told.cause.rule, told.cause.address) == ("idt-not-mapped", gate)


# -- an exception that struck at the first instruction of a handler ---------------------------------


def test_a_handler_on_a_stack_of_its_own() -> None:
    """With an IST the stack pointer says nothing; that no other register has changed does."""
    general = {f"r{n}": n for n in range(8, 16)} | {"rax": 1, "rbx": 2}
    cpu = CpuState("test", general=general)
    first = RaisedException(6, rip=HIGH, rsp=STACK, cpl=0, cpu=cpu, line=1)
    after = RaisedException(14, cr2=PAGE, rip=PAGE, rsp=PAGE + 0x1000 - 40, cpl=0, cpu=cpu, line=2)
    linked = link(first, after)
    assert linked is not None and linked.linked
    assert link(first, replace(after, cpu=CpuState("test", general={**general, "rax": 7}))) is None
    assert link(first, replace(after, rsp=PAGE + 0x1000 - 48)) is None
    assert link(first, replace(after, cr2=PAGE + 8)) is None
    # What an engine remembers has the registers at the end, which prove nothing.
    assert link(replace(first, line=0), replace(after, line=0)) is None


def test_a_gate_that_leads_to_no_address() -> None:
    bad = 0xFF11_0000_0000_1000
    first = RaisedException(6, rip=HIGH, rsp=STACK, cpl=0)
    after = RaisedException(13, error_code=0, rip=bad, rsp=STACK - 40, cpl=0, linked=True)
    cause = explain(Trace("by hand", "test", (first, after), "handled"), cr4=0x20).cause
    assert (cause.rule, cause.address) == ("idt-entry", None)
    assert cause.sentence == "the gate of #UD leads to 0xff11000000001000, which is not canonical"


def test_an_idt_at_no_address() -> None:
    log = struck(6, idt=0x0100_0000_0000_0000) + "check_exception old: 0xffffffff new 0xd\n"
    cause = told_of(log + struck(13, number=1, idt=0x0100_0000_0000_0000)).cause
    assert (cause.rule, cause.address) == ("idt-not-mapped", 0x0100_0000_0000_0060)


# -- reserved bits that no log names ---------------------------------------------------------------


def numbers(mode: Any, **more: int) -> GivenState:
    state = ControlState.long(mode, 0x30_0000)
    values = {"cr0": state.cr0, "cr3": state.cr3, "cr4": state.cr4, "rip": HIGH, "rsp": STACK}
    return GivenState(**{**values, "efer": state.efer, **more})


def test_a_stack_behind_a_reserved_bit(lab: Any) -> None:
    bench = lab.build(lab.case("stack", LA57, "reserved-bit"))
    bench.with_bits(PAGE, Level.PT, 1 << 44)
    first = RaisedException(6, rip=HIGH, rsp=PAGE + 0x1000, cpl=0)
    push = RaisedException(14, 6, 0xA, PAGE + 0xFF8, HIGH, PAGE + 0x1000, 0)
    trace = Trace("by hand", "QEMU log", (first, push), "handled")
    cause = explain(trace, bench.ram, given=numbers(LA57, rsp=PAGE + 0x1000)).cause
    assert (cause.rule, cause.level, cause.address) == ("reserved-bit", Level.PT, PAGE + 0xFF8)
    assert "MAXPHYADDR of at most 44 is inferred" in " ".join(cause.evidence)


def test_a_table_far_from_any_memory_is_malformed(lab: Any) -> None:
    """A pointer past 40 bits, and no error code: more likely a bit that is reserved than a table that is missing."""
    bench = lab.build(lab.case("pointer", LA48, "reserved-bit"))
    bench.with_bits(PAGE, Level.PD, 1 << 41)
    told = explain(None, bench.ram, given=numbers(LA48, cr2=PAGE))
    assert (told.cause.rule, told.cause.level) == ("reserved-bit", Level.PD)
    told = explain(None, bench.ram, given=numbers(LA48, cr2=PAGE, error_code=0))
    assert (told.cause.rule, told.cause.level) == ("table-outside-memory", Level.PD)


# -- what a core does not hold ------------------------------------------------------------------------


@pytest.mark.parametrize(("bits", "rule"), [(3 << 59, "protection-key"), (int(Flag.NX), "reserved-bit")])
def test_a_core_without_pkru_and_efer(lab: Any, bits: int, rule: str) -> None:
    """The tables allow it, the last page fault was there: what could have refused it is a guess, and called one."""
    bench = lab.build(lab.case("hidden", LA57, rule, user_maps=True))
    bench.with_bits(USER, Level.PT, bits)
    given = replace(numbers(LA57, cr2=USER, cr4=0x40_1020, rip=0x7000_0000), efer=None)
    cause = explain(None, bench.ram, given=given).cause
    assert (cause.rule, cause.level, cause.confidence) == (rule, Level.PT, "guess")


def test_a_fetch_is_no_access_of_what_lies_there(lab: Any) -> None:
    """Zeroes at RIP decode as a write; it was the fetch of them that failed."""
    bench = lab.build(lab.case("fetch", LA57, "no-execute"))
    bench.with_bits(PAGE, Level.PT, Flag.NX)
    cpu = CpuState("test", general={"rax": PAGE, "rip": PAGE, "rsp": STACK}, cr0=0x8001_0011, cr3=0x30_0000, cr4=0x1020)
    told = explain(Trace("by hand", "registers", cpu=cpu), bench.ram, efer=0xD00)
    assert (told.cause.rule, told.cause.level, told.exceptions[0].access) == ("no-execute", Level.PT, "fetch")


@pytest.mark.parametrize(("vector", "confidence"), [(14, "guess"), (6, "likely"), (32, "likely")])
def test_a_handler_that_cannot_be_fetched_and_who_called_it(lab: Any, vector: int, confidence: str) -> None:
    """From registers alone: a page fault has a cause of its own, which is lost; an undefined instruction has none."""
    bench = lab.build(lab.case("handler", LA57, "handler-not-mapped"))
    bench.clear(PAGE, Level.PT)
    bench.gate(vector, PAGE)
    idt = Segment(0, HIGH + bench.labels["idt"] - 0x20_0000, 0xFFF, 0)
    general = {"rip": PAGE, "rsp": STACK - 48}
    cpu = CpuState(
        "core", cr0=0x8001_0011, cr3=0x30_0000, cr4=0x1020, efer=0xD00, general=general, segments={"idt": idt}
    )
    cause = explain(Trace("by hand", "registers", cpu=cpu), bench.ram).cause
    assert (cause.rule, cause.level, cause.confidence) == ("handler-not-mapped", Level.PT, confidence)


def test_an_instruction_over_two_pages(lab: Any) -> None:
    bench = lab.build(lab.case("straddle", LA57, "no-execute"))
    bench.ram.write(PhysAddr(0x20_0000 + 0x17FFE), bytes.fromhex("48b81122334455667788"))
    bench.with_bits(PAGE, Level.PT, Flag.NX)
    cpu = CpuState(
        "test", general={"rip": PAGE - 2, "rsp": STACK}, cr0=0x8001_0011, cr2=PAGE, cr3=0x30_0000, cr4=0x1020
    )
    told = explain(Trace("by hand", "registers", cpu=cpu), bench.ram, efer=0xD00)
    assert (told.cause.rule, told.cause.address, told.exceptions[0].access) == ("no-execute", PAGE, "fetch")


@pytest.mark.parametrize(
    ("cr0", "cr4", "says"),
    [
        (0x8000_0000, 0x20, "paging is on without protected mode (CR0 0x80000000)"),
        (0x8000_0011, 0x1000, "64-bit code runs with paging on and CR4.PAE=0 (CR4 0x1000)"),
    ],
)
def test_states_that_no_cpu_can_be_in(cr0: int, cr4: int, says: str) -> None:
    cs = Segment(8, 0, 0xFFFF_FFFF, 0xAF9B00)
    general = {"rip": HIGH, "rsp": STACK}
    cpu = CpuState("core", cr0=cr0, cr2=PAGE, cr3=0x30_0000, cr4=cr4, general=general, segments={"cs": cs})
    cause = explain(Trace("by hand", "registers", cpu=cpu), Ram.of_size(0x1000, 0x30_0000)).cause
    assert (cause.rule, cause.address) == ("mode-change-refused", None)
    assert says in cause.sentence
    sound = CpuState("core", cr0=0x8000_0011, cr2=PAGE, cr3=0x30_0000, cr4=0x20, general=general, segments={"cs": cs})
    assert explain(Trace("by hand", "registers", cpu=sound), None).cause.rule == "unknown"


# -- the edges of canonical addresses -------------------------------------------------------------------

EDGES = """
la48  ffff800000000000  ffff7ffffffffff8  a push from the first address of the upper half
la48  0000800000000000  0000800000000000  a pop from past the lower half
la57  0100000000001000  -                 in the gap, where a push and a pop are refused alike
"""


@pytest.mark.parametrize("line", EDGES.strip().split("\n"), ids=lambda line: line.split()[1])
def test_a_stack_pointer_at_the_edge(line: str) -> None:
    mode, rsp, address, *_ = line.split()
    text = struck(13, rsp=int(rsp, 16)).replace("CR4=00001020", "CR4=00000020" if mode == "la48" else "CR4=00001020")
    cause = told_of("check_exception old: 0xffffffff new 0xd\n" + text).cause
    assert (cause.rule, cause.address) == ("non-canonical", None if address == "-" else int(address, 16))


def test_an_access_that_reaches_the_gap(lab: Any) -> None:
    bench = lab.build(lab.case("gap", LA48, "non-canonical"))
    bench.ram.write(PhysAddr(0x20_0000), bytes.fromhex("488b03"))
    general = {"rbx": 0x7FFF_FFFF_FFFC, "rip": HIGH, "rsp": STACK}
    cpu = CpuState("test", cr0=0x8001_0011, cr3=0x30_0000, cr4=0x20, efer=0xD00, general=general)
    trace = Trace("by hand", "test", (RaisedException(13, error_code=0, rip=HIGH, rsp=STACK, cpl=0, cpu=cpu),))
    cause = explain(trace, bench.ram).cause
    assert (cause.rule, cause.address) == ("non-canonical", 0x8000_0000_0000)
    assert "at 0x00007ffffffffffc was refused: it reaches 0x0000800000000000, which is not canonical" in cause.sentence


# -- Linux 6.1, as it reported faults that were made in it -------------------------------------------------

OVERFLOW = """\
[   40.843880] BUG: TASK stack guard page was hit at 000000002be41db5 (stack is 000000005234a89a..00000000f6e6dc13)
[   40.844760] stack guard page: 0000 [#2] PREEMPT SMP NOPTI
[   40.845048] RIP: 0010:__do_sys_getppid+0x0/0x40
[   40.846034] Code: cc cc cc 66 90 <50> eb fd 09 2e 81 ff ff ff ff bf 00 10 00 00 53 48 83 ec 10 ff d0
[   40.846295] RSP: 0018:ffa00000005a8000 EFLAGS: 00000202
[   40.846551] CS:  0010 DS: 0000 ES: 0000 CR0: 0000000080050033
[   40.846568] CR2: ffa00000005a7ff8 CR3: 000000000558c000 CR4: 0000000000751eb0
"""
BAD_STACK = """\
[   10.679163] traps: PANIC: double fault, error_code: 0x0
[   10.681164] double fault: 0000 [#1] PREEMPT SMP NOPTI
[   10.685322] RSP: 0018:0100000000001000 EFLAGS: 00000202
[   10.695755] CS:  0010 DS: 0000 ES: 0000 CR0: 0000000080050033
[   10.695770] CR2: 0000000000579662 CR3: 00000000055fe000 CR4: 0000000000751eb0
"""
PRETENDED = (
    "ukern[84]: segfault at ffff888000001000 ip 000000000040100a sp 00007ffd8127e9f0 error 5 in ukern[401000+1000]"
)
BREAKPOINT = """\
[   33.572584] int3: 0000 [#18] PREEMPT SMP NOPTI
[   33.572817] RIP: 0010:__do_sys_getppid+0x1/0x40
"""
GENERAL = """\
[   21.1] traps: unc2[87] general protection fault ip:40100a sp:7ffd8127e9f0 error:0 in unc2[401000+1000]
[   21.2] RIP: 0033:0x40100a
[   21.3] RAX: 0000000000000000 RBX: 0100000000000000 RCX: 0000000000000000
"""
OTHER_MODE = GENERAL.replace("RBX: 01", "RBX: ff")
JUMP = "traps: uncjmp[95] general protection fault ip:8000000000000000 sp:7ffd8127e9f0 error:0"
TABLE = """\
a.out: Corrupted page table at address 7f0000001000
PGD 5588067 P4D 5589067 PUD 558e067 PMD 558f067 PTE 80002000055a2067
Bad pagetable: 000d [#1] PREEMPT SMP
CR2: 00007f0000001000 CR3: 000000000558c000 CR4: 0000000000751eb0
"""
WITHOUT_P4D = """\
kernel tried to execute NX-protected page - exploit attempt? (uid: 0)
BUG: unable to handle kernel paging request at ffff88003a4c3000
IP: [<ffff88003a4c3000>] 0xffff88003a4c2fff
PGD 1e0f067 PUD 1e10067 PMD 3ff9c067 PTE 800000003a4c3163
Oops: 0011 [#1] SMP
CR2: ffff88003a4c3000 CR3: 000000001f5d2000 CR4: 00000000001406f0
"""


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (WITHOUT_P4D, ("no-execute", "PT", "ffff88003a4c3000", "fetch", "certain")),
        (OVERFLOW, ("not-present", None, "ffa00000005a7ff8", "write", "likely")),
        (BAD_STACK, ("non-canonical", None, "100000000000ff8", None, "likely")),
        (PRETENDED, ("user-supervisor", None, "ffff888000001000", "read", "guess")),
        (BREAKPOINT, ("unknown", None, None, None, "guess")),
        (GENERAL, ("non-canonical", None, "100000000000000", None, "guess")),
        (OTHER_MODE, ("unknown", None, None, None, "guess")),
        (JUMP, ("non-canonical", None, "8000000000000000", "fetch", "certain")),
        (TABLE, ("reserved-bit", "PT", "7f0000001000", "read", "certain")),
    ],
    ids=[
        "before 4.12",
        "guard page",
        "no stack",
        "pretended",
        "breakpoint",
        "user protection",
        "other mode",
        "user jump",
        "corrupted table",
    ],
)
def test_reports_of_linux(text: str, wanted: tuple[str | None, ...]) -> None:
    told = told_of(text)
    cause = told.cause
    level = cause.level.name if cause.level else None
    address = None if cause.address is None else f"{cause.address:x}"
    assert (cause.rule, level, address, told.exceptions[0].access, cause.confidence) == wanted


def test_linux_prints_pkru() -> None:
    told = told_of(OVERFLOW + "[   40.846751] PKRU: 55555554\n")
    assert told.exceptions[0].finding.here.state.pkru == 0x5555_5554


def test_a_log_alone_is_not_certain_of_an_absent_entry() -> None:
    """A root of the wrong depth, and a table where there is no memory, look just like that."""
    told = told_of(NEXT + struck(14, PAGE))
    assert (told.cause.rule, told.cause.confidence) == ("not-present", "likely")
    assert "a root of the wrong depth and a missing table look just like that" in " ".join(told.cause.evidence)

"""The parts that decide: instructions, error codes, remedies, the depth of a root."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fivefold.arch import (
    LA57,
    READ,
    Access,
    AddressSpace,
    ControlState,
    Flag,
    Frames,
    Kind,
    Level,
    PageFault,
    map_range,
    walk,
)  # fmt: skip
from fivefold.explain import GivenState, RaisedException, Trace, explain
from fivefold.explain.logs.links import link
from fivefold.explain.rules.depth import wrong_depth
from fivefold.explain.rules.error_codes import decode_error, rule_from_code
from fivefold.explain.rules.instruction import decode
from fivefold.explain.rules.ruling import Granted, Refusal, rule_on
from fivefold.explain.rules.situation import Situation, situation
from fivefold.memory import CpuState, Ram, Segment
from fivefold.units import PhysAddr, VirtAddr

HIGH = 0xFFFF_FFFF_8000_0000
PAGE = HIGH + 0x18000
REGISTERS = CpuState(
    "test",
    cr0=0x8001_0011,
    cr3=0x30_0000,
    cr4=0x1020,
    efer=0xD00,
    general={"rax": 0x1111, "rbx": 0x2000, "rcx": 0xC000_0080, "rdx": 0, "rsi": 0x3000, "rdi": 0x4000, "rsp": 0x8000,
             "rbp": 0x9000, "r8": 0x5000, "rip": HIGH},
    segments={"gs": Segment(0, 0xFFFF_8880_0000_0000, 0, 0), "cs": Segment(8, 0, 0xFFFF_FFFF, 0xAF9B00)},
)  # fmt: skip

# bytes, text, accesses as kind:address:size
INSTRUCTIONS = """
488b03              mov rax, qword ptr [rbx]                    read:2000:8
66894bfe            mov word ptr [rbx - 2], cx                  write:1ffe:2
6a00                push 0                                      write:7ff8:8
8f00                pop qword ptr [rax]                         write:1111:8 read:8000:8
4883042401          add qword ptr [rsp], 1                      write:8000:8
65488b042510000000  mov rax, qword ptr gs:[0x10]                read:ffff888000000010:8
890500100000        mov dword ptr [rip + 0x1000], eax           write:ffffffff80001006:4
f348a5              rep movsq qword ptr [rdi], qword ptr [rsi]  read:3000:8 write:4000:8
ffe3                jmp rbx                                     fetch:2000:1
e8fb000000          call 0xffffffff80000100                     write:7ff8:8 fetch:ffffffff80000100:1
c3                  ret                                         read:8000:8 fetch:77:1
488d03              lea rax, [rbx]
0f013b              invlpg byte ptr [rbx]
0f0b                ud2
cc                  int3
c9                  leave                                       read:9000:8
0f1103              movups xmmword ptr [rbx], xmm0              write:2000:16
660fd603            movq qword ptr [rbx], xmm0                  write:2000:8
0fc70b              cmpxchg8b qword ptr [rbx]                   write:2000:8
dd1b                fstp qword ptr [rbx]                        write:2000:8
0fae03              fxsave [rbx]                                write:2000:512
0fae23              xsave ptr [rbx]                             write:2000:576
0fab03              bts dword ptr [rbx], eax                    write:2220:4
480fa313            bt qword ptr [rbx], rdx                     read:2000:8
"""


@pytest.mark.parametrize("line", INSTRUCTIONS.strip().split("\n"), ids=lambda line: line.split()[0])
def test_instructions(line: str) -> None:
    code, _, rest = line.partition(" ")
    text, _, uses = rest.strip().partition("  ")
    found = decode(bytes.fromhex(code), HIGH, REGISTERS, lambda va, size: 0x77)
    assert found is not None
    assert found.text == text
    assert [f"{use.how.kind.value}:{use.va:x}:{use.how.size}" for use in found.uses] == uses.split()
    assert found.on_purpose == (text in ("ud2", "int3"))


def test_instruction_that_is_none() -> None:
    assert decode(b"\x0f", HIGH, REGISTERS, lambda va, size: None) is None
    assert decode(b"", HIGH, REGISTERS, lambda va, size: None) is None


def test_writes_to_control_registers() -> None:
    def write(code: str) -> object:
        found = decode(bytes.fromhex(code), HIGH, REGISTERS, lambda va, size: 0x77)
        assert found is not None and found.write is not None
        return found.write.register.value, found.write.value

    assert write("0f22e3") == ("CR4", 0x2000)
    assert write("0f30") == ("EFER", 0x1111)
    assert write("0f011b") == ("IDTR base", 0x77)


def here(**changes: int) -> Situation:
    registers = replace(REGISTERS, **{k: v for k, v in changes.items() if k in ("cr4", "cr0", "efer")})  # type: ignore[arg-type]
    return situation(registers, changes.get("cpl"), None)


# error code (hex), CR4, kind, address, rule, certain: what a code leaves over without tables
CODES = """
0    20      read   ff11000000000000  not-present      yes
2    20      write  ff11000000000000  not-present      yes
8    20      read   ff11000000000000  reserved-bit     no
9    20      read   ff11000000000000  reserved-bit     yes
3    20      write  ffffffff80000000  write-protected  yes
3    200020  write  ffffffff80000000  write-protected  no
3    200020  write  0000004000000000  smap             no
1    200020  read   0000004000000000  smap             yes
11   20      fetch  ffffffff80000000  no-execute       yes
11   100020  fetch  ffffffff80000000  no-execute       no
11   100020  fetch  0000004000000000  smep             no
5    20      read   ffffffff80000000  user-supervisor  yes
7    20      write  ffffffff80000000  user-supervisor  no
7    20      write  0000004000000000  write-protected  no
15   20      fetch  0000004000000000  no-execute       no
25   400020  read   0000004000000000  protection-key   yes
1    20      read   ffffffff80000000  unknown          no
"""


@pytest.mark.parametrize("line", CODES.strip().split("\n"), ids=lambda line: "-".join(line.split()[:4]))
def test_error_codes_alone(line: str) -> None:
    code, cr4, kind, va, rule, certain = line.split()
    found = rule_from_code(here(cr4=int(cr4, 16)), int(code, 16), int(va, 16), Access(Kind(kind)))
    assert (found.rule, found.certain) == (rule, certain == "yes")


def test_error_codes_in_words() -> None:
    assert decode_error(14, PageFault.P | PageFault.U | 1 << 20) == (
        "P: a present translation", "W clear: a read or fetch", "U: user mode", "unknown bits 0x100000",
    )  # fmt: skip
    assert decode_error(13, 0x73) == (
        "IDT entry 14, #PF", "EXT: raised while another event was being delivered",
    )  # fmt: skip
    assert decode_error(13, 0x28) == ("GDT entry 5",)
    assert decode_error(13, 0) == ("0: no selector is involved",)


def told_of(bench: Any, mode: Any, va: int, code: int, what_if: tuple[str, ...] = (), **cpu: int) -> Any:
    """A page fault at *va* in the memory of *bench*."""
    state = ControlState.long(mode, 0x30_0000)
    values = {"cr0": state.cr0, "cr3": state.cr3, "cr4": state.cr4, "efer": state.efer, "rip": HIGH, **cpu}
    return explain(None, bench.ram, given=GivenState(cr2=va, error_code=code, **values), what_if=what_if)


def test_smallest_changes_are_offered_and_work(lab: Any) -> None:
    case = lab.case("remedy", LA57, "write-protected", user_maps=True)
    bench = lab.build(case)
    bench.without(PAGE, Level.PT, Flag.RW)
    cause = told_of(bench, LA57, PAGE, 3).cause
    place = (
        f"{next(s for s in told_of(bench, LA57, PAGE, 3).exceptions[0].finding.steps if s.entry.level == 1).at:#018x}"
    )
    assert cause.legal == (f"set R/W in the PT entry at {place}", "CR0.WP=0")
    # Where a supervisor may write anywhere, that error code cannot be.
    assert told_of(bench, LA57, PAGE, 3, cr0=0x8000_0011).cause.rule == "unknown"


def test_two_faults_on_one_path_get_no_wrong_advice(lab: Any) -> None:
    """XD above and below: clearing both is offered, as one change; clearing one would not do."""
    bench = lab.build(lab.case("remedy", LA57, "no-execute"))
    bench.with_bits(PAGE, Level.PT, Flag.NX)
    bench.with_bits(PAGE, Level.PD, Flag.NX)
    cause = told_of(bench, LA57, PAGE, 0x11).cause
    assert cause.level is Level.PD
    assert cause.legal[0].count("entry at") == 2
    # NXE=0 would make both bits reserved, so it is not offered.
    assert len(cause.legal) == 1


def test_tables_that_allow_what_was_refused(lab: Any) -> None:
    bench = lab.build(lab.case("stale", LA57, "write-protected"))
    told = told_of(bench, LA57, PAGE, 3)
    assert (told.cause.rule, told.cause.confidence) == ("write-protected", "likely")
    assert told.exceptions[0].finding.agrees is False
    assert "they changed since, or a stale translation was used" in " ".join(told.cause.evidence)


def test_tables_that_refuse_for_another_reason(lab: Any) -> None:
    bench = lab.build(lab.case("changed", LA57, "not-present"))
    bench.clear(PAGE, Level.PT)
    told = told_of(bench, LA57, PAGE, 3)
    assert (told.cause.rule, told.cause.confidence) == ("write-protected", "likely")
    assert "give error code 0x2" in " ".join(told.cause.evidence)


@pytest.fixture
def low_kernel() -> Ram:
    """Five levels that map the first 4 GiB to themselves in 2 MiB pages, but for one at 6 MiB."""
    ram = Ram.of_size(2 << 20, 0x20_0000)
    space = AddressSpace(ram, PhysAddr(0x30_0000), LA57)
    flags = int(Flag.P | Flag.RW)
    map_range(ram, space, range(4 << 30), flags, Frames(ram, PhysAddr(0x30_1000), 20), largest=Level.PD)
    hole = next(step for step in walk(space, VirtAddr(0x60_0000)) if step.entry.level is Level.PD)
    ram.write(hole.at, bytes(8))
    return ram


def low_code(memory: Ram, cr4: int) -> Situation:
    general = {"rip": 0x20_0026, "rsp": 0x21_0000}
    return situation(replace(REGISTERS, general=general, cr4=cr4), 0, memory)


def test_a_hole_in_an_identity_map_is_no_wrong_depth(low_kernel: Ram) -> None:
    """Read one level off, the low megabytes of this sound tree look mapped too: that is not enough."""
    found = low_code(low_kernel, 0x1020)
    other = low_code(low_kernel, 0x20)
    assert isinstance(rule_on(found, 0x60_0000, READ), Refusal)
    assert isinstance(rule_on(other, 0x60_0000, READ), Granted)
    assert wrong_depth(found, 0x60_0000, READ) is None


def test_code_that_strayed_for_a_root_of_the_wrong_depth(low_kernel: Ram) -> None:
    """Four levels on over a tree of five: RIP is mapped by accident, to where there is no memory."""
    found = wrong_depth(low_code(low_kernel, 0x20), 0x1_8001_0011, READ)
    assert found is not None
    assert found.fits is LA57
    assert "RIP lies at physical 0x0000000040000026, the other way at 0x0000000000200026" in found.evidence[-1]


def test_frames_link_an_exception_to_the_one_before() -> None:
    fault = RaisedException(14, cr2=0x1000, rip=HIGH, rsp=0x8008, cpl=0)
    trap = RaisedException(3, rip=HIGH, rsp=0x8008, cpl=0, software=True)
    after = RaisedException(14, cr2=PAGE, rip=PAGE, cpl=0)
    for first, words in ((fault, 6), (trap, 5)):
        for pushed in range(4, 8):
            linked = link(first, replace(after, rsp=0x8000 - 8 * pushed))
            assert (linked is not None) == (pushed == words), (first.vector, pushed)
    assert link(fault, replace(after, rip=HIGH, rsp=0x8008)) is None
    struck = link(trap, replace(after, rip=HIGH, rsp=0x8008))
    assert struck is not None and struck.during == 3


def test_what_if_a_supervisor_did_it(lab: Any) -> None:
    bench = lab.build(lab.case("user", LA57, "user-supervisor"))
    told = told_of(bench, LA57, PAGE, 5, what_if=("supervisor", "supervisor,write", "cr4.smap=1,supervisor"))
    assert told.cause.rule == "user-supervisor"
    assert [answer.allowed for answer in told.what_if] == [True, True, True]


def test_given_numbers_go_before_the_log(data: Path) -> None:
    told = explain(data / "nx_exec.log", data / "nx_exec.elf.xz", efer=0x500)
    # With NXE=0 bit 63 is reserved; the error code still says what it said.
    assert told.exceptions[0].finding.agrees is False


def test_a_trace_can_be_given() -> None:
    raised = RaisedException(14, error_code=2, cr2=0x7FF8, rsp=0x8000, rip=HIGH)
    told = explain(Trace("by hand", "test", (raised,), "handled"), cr4=0x20)
    assert (told.source, told.mode, told.cause.rule) == ("by hand", "la48", "not-present")
    assert told.exceptions[0].finding.use is not None


def test_what_is_not_known_is_said() -> None:
    told = explain(cr2=0xFFFF_FFFF_8000_0000)
    assert told.mode is None
    assert "CR4 is not known, and with it the number of levels, SMEP and SMAP" in told.unknown
    assert told.cause.confidence == "guess"


def test_numbers_beside_memory_are_what_was_said_and_nothing_inferred() -> None:
    ram = Ram.of_size(2 << 20, 0x20_0000)
    found = explain(None, ram, cr2=0x1000, error_code=0, cr3=0x20_0000, cr4=0x20)
    assert (found.cause.rule, found.cause.confidence) == ("not-present", "certain")
    assert not any("inferred from registers" in remark for remark in found.remarks)


def test_an_instruction_whose_table_is_where_there_is_no_memory() -> None:
    """Without a log: what the instruction at RIP is about to do leads to a table that nothing holds."""
    ram = Ram.of_size(2 << 20, 0x20_0000)
    for at, entry in ((0x30_0000, 0x30_1003), (0x30_1000, 0x30_2003), (0x30_1008, 0x7000_0003), (0x30_2008, 0x20_0083)):
        ram.write(PhysAddr(at), entry.to_bytes(8, "little"))
    ram.write(PhysAddr(0x20_0026), bytes.fromhex("488b03"))
    registers = CpuState(
        "test", cr0=0x8001_0011, cr3=0x30_0000, cr4=0x20, efer=0x500, general={"rip": 0x20_0026, "rbx": 0x4000_0000}
    )
    found = explain(Trace("test", "registers", cpu=registers), ram)
    assert (found.cause.rule, found.cause.address) == ("table-outside-memory", 0x4000_0000)
    assert found.exceptions[0].name == "#PF"

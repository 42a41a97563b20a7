"""What an instruction is about to touch: bytes, the mode, and each access, by the manual's pages of the instructions.

The registers are the worst that there are: all bits set, a stack pointer that a push takes below zero.
"""

from __future__ import annotations

import pytest

from fivefold.explain.rules.instruction import Instruction, decode, listing
from fivefold.memory import CpuState, Segment
from fivefold.units import MASK64

HIGH = 0xFFFF_FFFF_8000_0000
REGISTERS = CpuState(
    "test",
    general={"rax": MASK64, "rbx": MASK64, "rcx": 0, "rdx": MASK64 - 0x7FFE, "rsi": 0x3000, "rdi": 0x4000, "rsp": 4,
             "rbp": 0x9001, "r8": MASK64, "r9": 0x1_0000_0010, "rip": HIGH, "gs_base": 0x7000},
    segments={"ds": Segment(0x10, 0x10_0000, 0xFFFF_FFFF, 0)},
)  # fmt: skip

# bytes, bits, p: an exception on purpose, 0: needs level 0; text : kind:address:size of accesses, s: on the stack
INSTRUCTIONS = """
678b03            64 -  mov eax, dword ptr [ebx] : read:ffffffff:4
67418b00          64 -  mov eax, dword ptr [r8d] : read:ffffffff:4
678b437f          64 -  mov eax, dword ptr [ebx + 0x7f] : read:7e:4
678b07            32 -  mov eax, dword ptr [bx] : read:10ffff:4
678b4702          32 -  mov eax, dword ptr [bx + 2] : read:110001:4
660fa307          64 -  bt word ptr [rdi], ax : read:3ffe:2
66440fa307        64 -  bt word ptr [rdi], r8w : read:3ffe:2
480fa307          64 -  bt qword ptr [rdi], rax : read:3ff8:8
0fa317            64 -  bt dword ptr [rdi], edx : read:3000:4
66440fa30f        64 -  bt word ptr [rdi], r9w : read:4002:2
65488b0425f8ffffff 64 -  mov rax, qword ptr gs:[0xfffffffffffffff8] : read:6ff8:8
65488b0410        64 -  mov rax, qword ptr gs:[rax + rdx] : read:fffffffffffff000:8
64488b042500000000 64 -  mov rax, qword ptr fs:[0] :
8b06              32 -  mov eax, dword ptr [esi] : read:103000:4
c3                32 -  ret : read:4:4s fetch:74:1
50                32 -  push eax : write:0:4s
58                32 -  pop eax : read:4:4s
50                64 -  push rax : write:fffffffffffffffc:8s
6650              64 -  push ax : write:2:2s
6658              64 -  pop ax : read:4:2s
48cf              64 0  iretq : read:4:40s fetch:78:1
cf                64 0  iretd : read:4:20s fetch:74:1
66cf              64 0  iret : read:4:10s fetch:72:1
cf                32 0  iretd : read:4:12s fetch:74:1
cf                16 0  iret : read:4:6s fetch:72:1
cb                64 -  retf : read:4:8s fetch:74:1
48cb              64 -  retfq : read:4:16s fetch:78:1
cb                32 -  retf : read:4:8s fetch:74:1
66cb              64 -  retf : read:4:4s fetch:72:1
c9                64 -  leave : read:9001:8s
c8000000          64 -  enter 0, 0 : write:fffffffffffffffc:8s
9c                64 -  pushfq : write:fffffffffffffffc:8s
9d                64 -  popfq : read:4:8s
669c              64 -  pushf : write:2:2s
cd80              64 p  int 0x80 :
f1                64 p  int1 :
ce                32 p  into :
0fb9              64 p  ud1 :
0fff              64 p  ud0 :
f4                64 0  hlt :
0f32              64 0  rdmsr :
0f30              64 0  wrmsr :
f390              64 -  pause :
0f0d0b            64 -  prefetchw byte ptr [rbx] :
0f180b            64 -  prefetcht0 byte ptr [rbx] :
f3a4              64 -  rep movsb byte ptr [rdi], byte ptr [rsi] :
a4                64 -  movsb byte ptr [rdi], byte ptr [rsi] : read:3000:1 write:4000:1
f3ac              64 -  rep lodsb al, byte ptr [rsi] :
f2ae              64 -  repne scasb al, byte ptr [rdi] :
67f3a4            64 -  rep movsb byte ptr [edi], byte ptr [esi] :
ffd3              64 -  call rbx : write:fffffffffffffffc:8s fetch:ffffffffffffffff:1
ff13              64 -  call qword ptr [rbx] : read:ffffffffffffffff:8 write:fffffffffffffffc:8s fetch:78:1
ff23              64 -  jmp qword ptr [rbx] : read:ffffffffffffffff:8 fetch:78:1
ff15fcffffff      64 -  call qword ptr [rip - 4] : read:ffffffff80000002:8 write:fffffffffffffffc:8s fetch:78:1
48ff2d00000000    64 -  ljmp [rip] : read:ffffffff80000007:10
7402              64 -  je 0xffffffff80000004 :
ff33              64 -  push qword ptr [rbx] : read:ffffffffffffffff:8 write:fffffffffffffffc:8s
8f03              64 -  pop qword ptr [rbx] : write:ffffffffffffffff:8 read:4:8s
0fae0b            64 -  fxrstor [rbx] : read:ffffffffffffffff:512
dd33              64 -  fnsave dword ptr [rbx] : write:ffffffffffffffff:108
dd23              64 -  frstor dword ptr [rbx] : read:ffffffffffffffff:108
0fae2b            64 -  xrstor ptr [rbx] : read:ffffffffffffffff:576
0fae33            64 -  xsaveopt ptr [rbx] : write:ffffffffffffffff:576
0fc723            64 -  xsavec ptr [rbx] : write:ffffffffffffffff:576
480fae03          64 -  fxsave64 ptr [rbx] : write:ffffffffffffffff:512
480fae0b          64 -  fxrstor64 ptr [rbx] : read:ffffffffffffffff:512
0fae1b            64 -  stmxcsr dword ptr [rbx] : write:ffffffffffffffff:4
0fae13            64 -  ldmxcsr dword ptr [rbx] : read:ffffffffffffffff:4
db3b              64 -  fstp xword ptr [rbx] : write:ffffffffffffffff:10
d913              64 -  fst dword ptr [rbx] : write:ffffffffffffffff:4
df3b              64 -  fistp qword ptr [rbx] : write:ffffffffffffffff:8
660f3a140307      64 -  pextrb byte ptr [rbx], xmm0, 7 : write:ffffffffffffffff:1
660f3a170307      64 -  extractps dword ptr [rbx], xmm0, 7 : write:ffffffffffffffff:4
c5fc1103          64 -  vmovups ymmword ptr [rbx], ymm0 : write:ffffffffffffffff:32
6d                64 -  insd dword ptr [rdi], dx : write:4000:4
6f                64 -  outsd dx, dword ptr [rsi] : read:3000:4
f0480fb113        64 -  lock cmpxchg qword ptr [rbx], rdx : write:ffffffffffffffff:8
480fc70f          64 -  cmpxchg16b xmmword ptr [rdi] : write:4000:16
860b              64 -  xchg byte ptr [rbx], cl : write:ffffffffffffffff:1
0113              64 -  add dword ptr [rbx], edx : write:ffffffffffffffff:4
3913              64 -  cmp dword ptr [rbx], edx : read:ffffffffffffffff:4
8413              64 -  test byte ptr [rbx], dl : read:ffffffffffffffff:1
488b8483f0ffffff  64 -  mov rax, qword ptr [rbx + rax*4 - 0x10] : read:ffffffffffffffeb:8
488b44c3f8        64 -  mov rax, qword ptr [rbx + rax*8 - 8] : read:ffffffffffffffef:8
488b0485f0ffffff  64 -  mov rax, qword ptr [rax*4 - 0x10] : read:ffffffffffffffec:8
a10000000000000080 64 -  movabs eax, dword ptr [0x8000000000000000] : read:8000000000000000:4
0f22d8            64 0  mov cr3, rax : CR3=ffffffffffffffff
0f22c0            64 0  mov cr0, rax : CR0=ffffffffffffffff
0f22e0            64 0  mov cr4, rax : CR4=ffffffffffffffff
0f20d8            64 0  mov rax, cr3 :
0f23f8            64 0  mov dr7, rax :
f3480faed0        64 -  wrfsbase rax : FS-base=ffffffffffffffff
f3480faed8        64 -  wrgsbase rax : GS-base=ffffffffffffffff
f30faed0          64 -  wrfsbase eax : FS-base=ffffffff
0f0113            64 0  lgdt [rbx] : read:ffffffffffffffff:10 GDTR-base=78
0f011b            64 0  lidt [rbx] : read:ffffffffffffffff:10 IDTR-base=78
0f0113            32 0  lgdt [ebx] : read:fffff:6 GDTR-base=74
0f01f8            64 0  swapgs :
0f09              64 0  wbinvd :
fa                64 0  cli :
d923              64 -  fldenv [rbx] : read:ffffffffffffffff:28
d92b              64 -  fldcw word ptr [rbx] : read:ffffffffffffffff:2
d93b              64 -  fnstcw word ptr [rbx] : write:ffffffffffffffff:2
dd3b              64 -  fnstsw word ptr [rbx] : write:ffffffffffffffff:2
d933              64 -  fnstenv [rbx] : write:ffffffffffffffff:28
df23              64 -  fbld tbyte ptr [rbx] : read:ffffffffffffffff:10
db2b              64 -  fld xword ptr [rbx] : read:ffffffffffffffff:10
df33              64 -  fbstp tbyte ptr [rbx] : write:ffffffffffffffff:10
da03              64 -  fiadd dword ptr [rbx] : read:ffffffffffffffff:4
0f01d1            64 0  xsetbv :
0f06              64 0  clts :
0f01f0            64 0  lmsw ax :
0f0133            64 0  lmsw word ptr [rbx] : read:ffffffffffffffff:2
0f00d0            64 0  lldt ax :
0f00d8            64 0  ltr ax :
0f0003            64 -  sldt word ptr [rbx] : write:ffffffffffffffff:2
66660f388203      64 0  invpcid rax, xmmword ptr [rbx] : read:ffffffffffffffff:16
660f388203        64 0  invpcid rax, xmmword ptr [rbx] : read:ffffffffffffffff:16
0f01c8            64 0  monitor :
0f01c9            64 0  mwait :
0f08              64 0  invd :
0f37              64 -  getsec :
0f33              64 0  rdpmc :
0f0d13            64 -  prefetchwt1 byte ptr [rbx] :
0f0d03            64 -  prefetch byte ptr [rbx] :
0f1803            64 -  prefetchnta byte ptr [rbx] :
0f1c03            64 -  cldemote byte ptr [rbx] :
0f1f03            64 -  nop dword ptr [rbx] :
0fae3b            64 -  clflush byte ptr [rbx] : read:ffffffffffffffff:1
660fae3b          64 -  clflushopt byte ptr [rbx] : read:ffffffffffffffff:1
660fae33          64 -  clwb byte ptr [rbx] : read:ffffffffffffffff:1
f30fae33          64 -  clrssbsy dword ptr [rbx] : read:ffffffffffffffff:4
0fc733            64 0  vmptrld qword ptr [rbx] : read:ffffffffffffffff:8
0fc73b            64 0  vmptrst qword ptr [rbx] : write:ffffffffffffffff:8
f30f1efa          64 -  endbr64 :
0f0103            64 -  sgdt [rbx] : write:ffffffffffffffff:10
0f010b            64 -  sidt [rbx] : write:ffffffffffffffff:10
0f0123            64 -  smsw word ptr [rbx] : write:ffffffffffffffff:2
8c1b              64 -  mov word ptr [rbx], ds : write:ffffffffffffffff:2
8e1b              64 -  mov ds, word ptr [rbx] : read:ffffffffffffffff:2
0f20c0            64 0  mov rax, cr0 :
e400              64 -  in al, 0 :
ec                64 -  in al, dx :
0f05              64 -  syscall :
0f07              64 0  sysret :
480f07            64 0  sysretq :
0f34              64 -  sysenter :
0f35              64 0  sysexit :
480fc313          64 -  movnti qword ptr [rbx], rdx : write:ffffffffffffffff:8
0fe713            64 -  movntq qword ptr [rbx], mm2 : write:ffffffffffffffff:8
0f2b03            64 -  movntps xmmword ptr [rbx], xmm0 : write:ffffffffffffffff:16
660f2b03          64 -  movntpd xmmword ptr [rbx], xmm0 : write:ffffffffffffffff:16
660f7f03          64 -  movdqa xmmword ptr [rbx], xmm0 : write:ffffffffffffffff:16
f30f7f03          64 -  movdqu xmmword ptr [rbx], xmm0 : write:ffffffffffffffff:16
660fe713          64 -  movntdq xmmword ptr [rbx], xmm2 : write:ffffffffffffffff:16
0f1303            64 -  movlps qword ptr [rbx], xmm0 : write:ffffffffffffffff:8
0f1703            64 -  movhps qword ptr [rbx], xmm0 : write:ffffffffffffffff:8
660f1303          64 -  movlpd qword ptr [rbx], xmm0 : write:ffffffffffffffff:8
660fd603          64 -  movq qword ptr [rbx], xmm0 : write:ffffffffffffffff:8
0f7f03            64 -  movq qword ptr [rbx], mm0 : write:ffffffffffffffff:8
0ff7c1            64 -  maskmovq mm0, mm1 :
660ff7c1          64 -  maskmovdqu xmm0, xmm1 :
c5f8ae13          64 -  vldmxcsr dword ptr [rbx] : read:ffffffffffffffff:4
c5fe7f03          64 -  vmovdqu ymmword ptr [rbx], ymm0 : write:ffffffffffffffff:32
c4e2792e03        64 -  vmaskmovps xmmword ptr [rbx], xmm0, xmm0 : write:ffffffffffffffff:16
c4e37d390301      64 -  vextracti128 xmmword ptr [rbx], ymm0, 1 : write:ffffffffffffffff:16
c5f9d603          64 -  vmovq qword ptr [rbx], xmm0 : write:ffffffffffffffff:8
62f17c481103      64 -  vmovups zmmword ptr [rbx], zmm0 : write:ffffffffffffffff:64
0f9403            64 -  sete byte ptr [rbx] : write:ffffffffffffffff:1
d7                64 -  xlatb :
f20f38f003        64 -  crc32 eax, byte ptr [rbx] : read:ffffffffffffffff:1
0f38f003          64 -  movbe eax, dword ptr [rbx] : read:ffffffffffffffff:4
0f38f103          64 -  movbe dword ptr [rbx], eax : write:ffffffffffffffff:4
aa                64 -  stosb byte ptr [rdi], al : write:4000:1
ab                64 -  stosd dword ptr [rdi], eax : write:4000:4
48ab              64 -  stosq qword ptr [rdi], rax : write:4000:8
a6                64 -  cmpsb byte ptr [rsi], byte ptr [rdi] : read:3000:1 read:4000:1
480fc70b          64 -  cmpxchg16b xmmword ptr [rbx] : write:ffffffffffffffff:16
0fc113            64 -  xadd dword ptr [rbx], edx : write:ffffffffffffffff:4
f00fc113          64 -  lock xadd dword ptr [rbx], edx : write:ffffffffffffffff:4
fe03              64 -  inc byte ptr [rbx] : write:ffffffffffffffff:1
f713              64 -  not dword ptr [rbx] : write:ffffffffffffffff:4
f71b              64 -  neg dword ptr [rbx] : write:ffffffffffffffff:4
f723              64 -  mul dword ptr [rbx] : read:ffffffffffffffff:4
f733              64 -  div dword ptr [rbx] : read:ffffffffffffffff:4
8703              64 -  xchg dword ptr [rbx], eax : write:ffffffffffffffff:4
c603aa            64 -  mov byte ptr [rbx], 0xaa : write:ffffffffffffffff:1
c703aaaaaaaa      64 -  mov dword ptr [rbx], 0xaaaaaaaa : write:ffffffffffffffff:4
d303              64 -  rol dword ptr [rbx], cl : write:ffffffffffffffff:4
c10305            64 -  rol dword ptr [rbx], 5 : write:ffffffffffffffff:4
0fa403aa          64 -  shld dword ptr [rbx], eax, 0xaa : write:ffffffffffffffff:4
0fac13aa          64 -  shrd dword ptr [rbx], edx, 0xaa : write:ffffffffffffffff:4
f20f1103          64 -  movsd qword ptr [rbx], xmm0 : write:ffffffffffffffff:8
660f2903          64 -  movapd xmmword ptr [rbx], xmm0 : write:ffffffffffffffff:16
0f2903            64 -  movaps xmmword ptr [rbx], xmm0 : write:ffffffffffffffff:16
d10b              64 -  ror dword ptr [rbx], 1 : write:ffffffffffffffff:4
d113              64 -  rcl dword ptr [rbx] : write:ffffffffffffffff:4
d11b              64 -  rcr dword ptr [rbx], 1 : write:ffffffffffffffff:4
d123              64 -  shl dword ptr [rbx], 1 : write:ffffffffffffffff:4
d12b              64 -  shr dword ptr [rbx], 1 : write:ffffffffffffffff:4
d13b              64 -  sar dword ptr [rbx], 1 : write:ffffffffffffffff:4
c4e2792c03        64 -  vmaskmovps xmm0, xmm0, xmmword ptr [rbx] : read:ffffffffffffffff:16
c4e2798e03        64 -  vpmaskmovd xmmword ptr [rbx], xmm0, xmm0 : write:ffffffffffffffff:16
8ed8              64 -  mov ds, eax :
67660fa307        32 -  bt word ptr [bx], ax : read:10fffd:2
c8000000          32 -  enter 0, 0 : write:0:4s
c9                32 -  leave : read:9001:4s
8b4500            64 -  mov eax, dword ptr [rbp] : read:9001:4s
368b4500          32 -  mov eax, dword ptr ss:[ebp] : read:9001:4
8b4500            32 -  mov eax, dword ptr [ebp] : read:109001:4s
8b442408          64 -  mov eax, dword ptr [rsp + 8] : read:c:4s
6a00              16 -  push 0 : write:2:2s
6a00              32 -  push 0 : write:0:4s
"""


def decoded(code: str, bits: int = 64) -> Instruction:
    """*code* at HIGH, or at 0x100; memory holds 0x70 and the size that is read."""
    found = decode(bytes.fromhex(code), HIGH if bits == 64 else 0x100, REGISTERS, lambda va, size: 0x70 + size, bits)
    assert found is not None
    return found


@pytest.mark.parametrize("line", INSTRUCTIONS.strip().split("\n"), ids=lambda line: "-".join(line.split()[:2]))
def test_what_an_instruction_does(line: str) -> None:
    head, _, wanted = line.partition(" :")
    code, bits, flags, text = head.split(maxsplit=3)
    found = decoded(code, int(bits))
    told = [f"{use.how.kind.value}:{use.va:x}:{use.how.size}{'s' if use.how.stack else ''}" for use in found.uses]
    if found.write:
        told.append(f"{found.write.register.value.replace(' ', '-')}={found.write.value:x}")
    assert (found.text, told) == (text, wanted.split())
    assert found.size == len(bytes.fromhex(code))
    assert (found.on_purpose, found.privileged) == ("p" in flags, "0" in flags)


@pytest.mark.parametrize(
    ("code", "texts"),
    [
        ("678b03", ["[ebx]"]),
        ("65488b0410", ["[rax + rdx]"]),
        ("488b44c3f8", ["[rbx + rax * 8 - 0x8]"]),
        ("488b0485f0ffffff", ["[rax * 4 - 0x10]"]),
        ("8b442408", ["[rsp + 0x8]"]),
        ("65488b0425f8ffffff", ["[0xfffffffffffffff8]"]),
        ("65488b042500000000", ["[0x0000000000000000]"]),
        ("ff13", ["[rbx]", "a push to RSP - 8", "the target of the branch"]),
        ("6650", ["a push to RSP - 2"]),
        ("c9", ["a pop from RBP"]),
        ("58", ["a pop from RSP"]),
    ],
)
def test_parts_are_spelled(code: str, texts: list[str]) -> None:
    assert [use.text for use in decoded(code).uses] == texts


# RCX of all ones counts; index, low and high half of an MSR; bytes of which an address needs RIP.
def test_a_count_that_is_not_zero() -> None:
    registers = CpuState("test", general={"rcx": 1, "rsi": 0x3000, "rdi": 0x4000})
    found = decode(bytes.fromhex("f3a4"), HIGH, registers, lambda va, size: None)
    assert found is not None and [use.va for use in found.uses] == [0x3000, 0x4000]
    plain = decode(bytes.fromhex("a4"), HIGH, CpuState("test", general={"rcx": 0, "rsi": 1, "rdi": 2}), lambda *_: None)
    assert plain is not None and [use.va for use in plain.uses] == [1, 2]


@pytest.mark.parametrize(
    ("numbers", "wanted"),
    [
        ({"rcx": 0xC000_0080, "rax": 0x500, "rdx": 0}, ("EFER", 0x500)),
        ({"rcx": 0xF_C000_0080, "rax": 0xF_FFFF_FFFF, "rdx": 0xF_FFFF_FFFF}, ("EFER", MASK64)),
        ({"rcx": 0xC000_0101, "rax": 1, "rdx": 0x8000_0000}, ("GS base", 0x8000_0000_0000_0001)),
        ({"rcx": 0x10, "rax": 1, "rdx": 1}, None),
        ({"rax": 1, "rdx": 1}, None),
        ({"rcx": 0xC000_0080, "rdx": 1}, None),
        ({"rcx": 0xC000_0080, "rax": 1}, None),
    ],
)
def test_writes_to_model_specific_registers(numbers: dict[str, int], wanted: tuple[str, int] | None) -> None:
    found = decode(bytes.fromhex("0f30"), HIGH, CpuState("test", general=numbers), lambda va, size: None)
    assert found is not None
    assert (found.write and (found.write.register.value, found.write.value)) == wanted


def test_what_is_not_known_is_left_out() -> None:
    nothing = CpuState("test", general={})

    def uses(code: str, at: int | None = HIGH, registers: CpuState = nothing) -> list[int]:
        found = decode(bytes.fromhex(code), at, registers, lambda va, size: None)
        assert found is not None and found.write is None
        return [use.va for use in found.uses]

    assert uses("488b03") == uses("50") == uses("58") == uses("c3") == uses("ffe3") == uses("0f011b") == []
    assert uses("488b0500100000", None) == []
    assert uses("488b0500100000") == [HIGH + 0x1007]
    assert uses("e8fb000000", None) == []
    assert uses("e8fb000000") == [HIGH + 0x100]
    assert uses("ffe3", None, REGISTERS) == [MASK64]
    assert uses("c9", HIGH, CpuState("test", general={"rsp": 8})) == []
    assert uses("0f22d8") == []
    assert uses("0fa303", HIGH, CpuState("test", general={"rbx": 0x2000})) == [0x2000]


def test_a_listing_ends_at_what_is_no_instruction() -> None:
    assert list(listing(bytes.fromhex("90c30f"))) == [(0, b"\x90", "nop"), (1, b"\xc3", "ret")]
    assert [text for _, _, text in listing(bytes.fromhex("40"), 32)] == ["inc eax"]


def test_fifteen_bytes_are_an_instruction_and_no_more() -> None:
    longest = "66" * 12 + "0f1f00"
    assert decoded(longest).size == 15
    assert decode(bytes.fromhex("66" + longest), HIGH, REGISTERS, lambda va, size: None) is None

"""What a case does to its address: the instruction, and which access `arch` is asked about.

One instruction each, at a fixed place in both code pages; an INT3 follows it, so that every case ends in an exception.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from fivefold.arch import MSRS, WRUSS, Access, Kind, Register
from fivefold.conform.places import CODE, USER_CODE

SLOT: Final = 32
"""Bytes from one instruction to the next in the code pages."""
INT3: Final = 0xCC
VALUE: Final = 0xCCCC_CCCC_CCCC_CCCC
"""RBX: what is written. A page that holds it can be fetched from."""
LDT_SELECTOR: Final = 4
"""The first descriptor of the LDT; the privilege level is added."""


@dataclass(frozen=True, slots=True)
class Action:
    """One instruction. *label* is the kind of access as the tables name it.

    *access* is None for an instruction that accesses nothing. *stack* says where RSP has to point:
    this far above the address.
    """

    name: str
    label: str
    code: bytes
    access: Access | None
    text: str
    stack: int = 0
    fetches: bool = False
    implicit: bool = False
    supervisor_only: bool = False
    scratch: bool = False
    """It uses the stack for itself: RSP is the driver's."""
    needs: str | None = None
    """The feature without which it is no instruction, as `Cpu` names it."""
    stale: str | None = None
    """What follows a store to the leaf entry, for a list of steps: none, invlpg, other, cr3, keep, pge, invpcid0 to 3.

    After "pd" the store is to the PD entry above.
    """
    then: str | None = None
    """The access is made twice; what lies between: nothing, or a change of a register that rights depend on.

    write (after a read), wp, smap, ac, pkru, pkrs; "clean" is a store to the leaf entry that clears A and D; INVLPG.
    """
    tss: bool = False
    """The address is where a TSS holds the stack of a gate: IST2."""
    invpcid: int | None = None
    """The type, for an INVPCID; the case's address is then part of its descriptor."""
    register: Register | None = None
    """What is written, for an instruction that writes a register; the case's address is then the value."""
    msr: int | None = None
    to_user: bool = False
    """It goes on at privilege level 3, whichever it was made at: its access is a user's."""
    align: int = 1
    """What the address has to be a multiple of."""

    @property
    def size(self) -> int:
        """Bytes accessed."""
        return self.access.size if self.access else 1

    @property
    def writes(self) -> bool:
        """Whether memory is written."""
        return self.access is not None and self.access.kind is Kind.WRITE


def _a(name: str, label: str, code: str, access: Access | None, text: str, **more: object) -> Action:
    return Action(name, label, bytes.fromhex(code), access, text, **more)  # type: ignore[arg-type]


_READ, _WRITE = Kind.READ, Kind.WRITE
RMW: Final = "read-modify-write"
IMPLICIT: Final = "implicit supervisor access"
IMPLICIT_WRITE: Final = "implicit supervisor write"

REGISTER: Final = "register write"
INVPCID: Final = "INVPCID"
STALE: Final = "read after a store to its leaf entry"
_INVPCID: Final = {"supervisor_only": True, "scratch": True, "needs": "invpcid"}
_WRITTEN_MSRS: Final = {
    index: register
    for index, register in MSRS.items()
    if register.name
    in {
        *("SYSENTER_ESP", "SYSENTER_EIP", "PAT", "EFER", "LSTAR", "CSTAR", "FS_BASE", "GS_BASE", "KERNEL_GS_BASE"),
        *("PKRS", "PL0_SSP", "PL3_SSP", "INT_SSP_TAB", "U_CET", "S_CET"),
    }
}


def _registers() -> Iterator[Action]:
    """The instructions that write a register from RDI, the table registers by way of the stack."""
    for number, name in ((0, "CR0"), (3, "CR3"), (4, "CR4")):
        code = bytes((0x0F, 0x22, 0xC7 | number << 3))
        yield Action(f"mov{name.lower()}", REGISTER, code, None, f"mov {name.lower()}, rdi", register=Register[name])
    for name, save, load in (("GDTR", "44", "54"), ("IDTR", "4c", "5c")):
        # push rdi; push -1; save the old one below the stack; load the new one; load the old one again
        code = bytes.fromhex(f"576aff0f01{save}24f00f01{load}24060f01{load}24f0")
        text = f"l{name.lower()[:3]}, base rdi"
        yield Action(f"l{name.lower()[:3]}", REGISTER, code, None, text, register=Register[name])
    for index, register in _WRITTEN_MSRS.items():
        yield Action(
            f"msr{index:x}", REGISTER, b"\x0f\x30", None, f"wrmsr, ecx={index:#x}", register=register, msr=index
        )


def _bases() -> Iterator[Action]:
    """The instructions that load a segment's base, from RDI or from a descriptor whose upper half is RDI's."""
    for name, opcode, register in (("fs", "f3480faed7", Register.FS_BASE), ("gs", "f3480faedf", Register.GS_BASE)):
        text = f"wr{name}base, rdi"
        yield Action(f"wr{name}base", REGISTER, bytes.fromhex(opcode), None, text, register=register, needs="fsgsbase")
    # sgdt [rsp-16]; mov rax, [rsp-14]; shr rdi, 32; mov [rax+LDT+8], edi; mov eax, LDT; lldt ax
    code = bytes.fromhex("0f014424f0488b4424f248c1ef20897840b8380000000f00d0")
    yield Action("lldt", REGISTER, code, None, "lldt, base rdi", register=Register.LDTR)


def _steps() -> Iterator[Action]:
    """mov rax, [rdi]; mov [rcx], rdx: a store to the leaf entry; an invalidation; mov rax, [rdi]."""
    for name, code, text in (
        ("none", "", ""),
        ("invlpg", "0f013f", "; invlpg [rdi]"),
        ("other", "4881f7001000000f013f4881f700100000", "; invlpg of the page beside"),
        ("cr3", "0f20d80f22d8", "; mov cr3, cr3"),
        ("pge", "0f20e034800f22e034800f22e0", "; CR4.PGE changed and changed back"),
    ):
        whole = bytes.fromhex(f"488b07488911{code}488b07")
        text = f"mov rax, [rdi]; mov [rcx], rdx to its leaf entry{text}; mov rax, [rdi]"
        yield Action(f"stale{name}", STALE, whole, None, text, supervisor_only=True, stale=name)
        if name in ("none", "invlpg", "other"):
            text = text.replace("leaf", "PD")
            yield Action(f"stalepd{name}", STALE, whole, None, text, supervisor_only=True, stale=f"pd{name}")
    # bit 63 of CR3: keep the entries
    whole = bytes.fromhex("488b07488911" + "0f20d8480fbae83f0f22d8" + "488b07")
    text = "mov rax, [rdi]; mov [rcx], rdx to its leaf entry; mov cr3, cr3 | 1 << 63; mov rax, [rdi]"
    yield Action("stalekeep", STALE, whole, None, text, supervisor_only=True, stale="keep", needs="pcid")
    for kind in range(4):
        # push rdi; push 0; mov eax, kind; invpcid rax, [rsp]
        whole = bytes.fromhex(f"488b07488911576a00b80{kind}000000660f38820424488b07")
        text = f"mov rax, [rdi]; mov [rcx], rdx to its leaf entry; invpcid, type {kind}, PCID 0; mov rax, [rdi]"
        yield Action(f"staleinvpcid{kind}", STALE, whole, None, text, stale=f"invpcid{kind}", **_INVPCID)  # type: ignore[arg-type]


def _more_accesses() -> Iterator[Action]:
    """Other instructions of the same kinds, which engines write in other ways."""
    through_stack = Access(_READ, 8, stack=True), Access(_WRITE, 8, stack=True)
    yield _a("readbp8", "read", "4889fd488b4500", through_stack[0], "mov rbp, rdi; mov rax, [rbp]")
    yield _a("writebp8", "write", "4889fd48895d00", through_stack[1], "mov rbp, rdi; mov [rbp], rbx")
    yield _a("call8", "push", "e800000000", through_stack[1], "call to the next instruction", stack=8)
    yield _a("stos8", "write", "48ab", Access(_WRITE, 8), "stosq")
    yield _a("movnti8", "write", "480fc31f", Access(_WRITE, 8), "movnti [rdi], rbx")
    yield _a("not8", RMW, "48f717", Access(_WRITE, 8), "not qword [rdi]")
    text = "lock cmpxchg16b [rdi], which differs"
    yield _a("cmpxchg16", RMW, "f0480fc70f", Access(_WRITE, 16), text, align=16)
    yield _a("bts8", RMW, "480fab07", Access(_WRITE, 8), "bts [rdi], rax, which is 0")
    yield _a("popm8", "write", "6a008f07", Access(_WRITE, 8), "push 0; pop qword [rdi]", scratch=True)
    yield _a("pushm8", "read", "ff37", Access(_READ, 8), "push qword [rdi]", scratch=True)
    text = "lar ebx, eax, from an LDT at the address"
    yield _a("lar", IMPLICIT, "0f02d8", Access(_READ, 8, implicit=True), text, implicit=True)


def _large_steps() -> Iterator[Action]:
    """The same with a 2 MiB page, which is read at two places; the other one's address is what is invalidated."""
    for name, code, text in (("bignone", "", ""), ("biginvlpg", "0f013f", "; invlpg [rdi]")):
        # btc rdi, 12
        whole = bytes.fromhex(f"488b07480fbaff0c488b07488911{code}480fbaff0c488b07")
        text = f"mov rax, [rdi], also 4 KiB beside; mov [rcx], rdx to their PD entry{text} there; mov rax, [rdi]"
        yield Action(f"stale{name}", STALE, whole, None, text, supervisor_only=True, stale=name)


def _twice() -> Iterator[Action]:
    """Two accesses to the address, with something between them. The second meets a translation that may be cached."""
    write, read = "48891f", "488b07"
    for name, kind, between, text, more in (
        ("write", _READ, "", "", {}),
        ("wp", _WRITE, "0f20c0480fbaf8100f22c0", "CR0.WP changed; ", {"supervisor_only": True}),
        ("smap", _READ, "0f20e0480fbaf8150f22e0", "CR4.SMAP changed; ", {"supervisor_only": True, "needs": "smap"}),
        ("ac", _READ, "9c0fba3c24129d", "RFLAGS.AC changed; ", {"supervisor_only": True, "scratch": True}),
        ("pkru", _WRITE, "31c90f01ee83f0fc0f01ef", "PKRU changed, but for key 0; ", {"needs": "pku"}),
        (
            "pkrs",
            _WRITE,
            "b9e10600000f3283f0fc0f30",
            "PKRS changed, but for key 0; ",
            {"supervisor_only": True, "needs": "pks"},
        ),
        (
            "clean",
            _WRITE,
            "4889110f013f",
            "A and D cleared in its leaf entry; invlpg [rdi]; ",
            {"supervisor_only": True},
        ),
    ):
        last = read if kind is _READ and name != "write" else write
        first, how = (read if kind is _READ else write), Access(_WRITE if name == "write" else kind, 8)
        texts = {read: "mov rax, [rdi]", write: "mov [rdi], rbx"}
        label = "read" if last == read else "write"
        yield _a(
            f"then{name}", label, first + between + last, how, f"{texts[first]}; {text}{texts[last]}", then=name, **more
        )


def _flushes() -> Iterator[Action]:
    """Instructions that access nothing, but are checked as a read of a byte is."""
    yield _a("clflushopt", "CLFLUSH", "660fae3f", Access(_READ, 1), "clflushopt [rdi]", needs="clflushopt")
    yield _a("clwb", "CLFLUSH", "660fae37", Access(_READ, 1), "clwb [rdi]", needs="clwb")
    text = "monitor, rax the address, ecx and edx 0"
    yield _a("monitor", "MONITOR", "4889f80f01c8", Access(_READ, 1), text, needs="monitor", supervisor_only=True)


def _returns() -> Iterator[Action]:
    """Returns to another segment or privilege level."""
    fetch = Access(Kind.FETCH, 1)
    returns: dict[str, object] = {"fetches": True, "scratch": True}
    # push cs, rdi; retfq
    yield _a("retfq", "fetch", "8cc8505748cb", fetch, "retfq to an int3", **returns)
    # push 0x23, rsp, rflags, 0x1b, rdi; iretq
    code, text = "6a23549c6a1b5748cf", "iretq to an int3 at privilege level 3"
    yield _a("iretq3", "fetch", code, fetch, text, supervisor_only=True, to_user=True, **returns)
    # mov rcx, rdi; mov r11d, 2; sysretq
    code, text = "4889f941bb02000000480f07", "sysretq to an int3 at privilege level 3"
    yield _a("sysretq", "fetch", code, fetch, text, supervisor_only=True, to_user=True, needs="syscall", **returns)


ACTIONS: Final = {
    action.name: action
    for action in (
        _a("read1", "read", "8a07", Access(_READ, 1), "mov al, [rdi]"),
        _a("read8", "read", "488b07", Access(_READ, 8), "mov rax, [rdi]"),
        _a("write1", "write", "881f", Access(_WRITE, 1), "mov [rdi], bl"),
        _a("write8", "write", "48891f", Access(_WRITE, 8), "mov [rdi], rbx"),
        _a("rmw1", RMW, "081f", Access(_WRITE, 1), "or [rdi], bl"),
        _a("rmw8", RMW, "48091f", Access(_WRITE, 8), "or [rdi], rbx"),
        _a("lock8", RMW, "f048091f", Access(_WRITE, 8), "lock or [rdi], rbx"),
        _a("xchg8", RMW, "48871f", Access(_WRITE, 8), "xchg [rdi], rbx"),
        # RAX differs from memory: the comparison fails, and the CPU writes back what it read.
        _a("cmpxchg8", RMW, "f0480fb11f", Access(_WRITE, 8), "lock cmpxchg [rdi], rbx"),
        _a("push8", "push", "53", Access(_WRITE, 8, stack=True), "push rbx", stack=8),
        _a("pop8", "pop", "58", Access(_READ, 8, stack=True), "pop rax"),
        _a("fetch", "fetch", "ffe7", Access(Kind.FETCH, 1), "jmp rdi, to an int3", fetches=True),
        _a("fetch10", "fetch", "ffe7", Access(Kind.FETCH, 10), "jmp rdi, to a mov rax, imm64", fetches=True),
        _a(
            "descriptor", IMPLICIT, "8ee0", Access(_READ, 8, implicit=True),
            "mov fs, ax, from an LDT at the address", implicit=True,
        ),
        _a("clflush", "CLFLUSH", "0fae3f", Access(_READ, 1), "clflush [rdi]"),
        _a("prefetch", "PREFETCH", "0f180f", None, "prefetcht0 [rdi]"),
        _a("invlpg", "INVLPG", "0f013f", None, "invlpg [rdi]", supervisor_only=True),
        *_registers(),
        *_bases(),
        _a("ret", "fetch", "57c3", Access(Kind.FETCH, 1), "ret to an int3", fetches=True, scratch=True),
        # push ss, rsp, rflags, cs, rdi; iretq
        _a(
            "iretq", "fetch", "8cd050549c8cc8505748cf", Access(Kind.FETCH, 1), "iretq to an int3",
            fetches=True, scratch=True,
        ),
        _a(
            "accessed", IMPLICIT_WRITE, "8ee0", Access(_WRITE, 8, implicit=True),
            "mov fs, ax, from an LDT at the address, whose descriptor gets its accessed bit", implicit=True,
        ),
        _a(
            "wruss8", "shadow-stack write", "66480f38f51f", WRUSS, "wrussq [rdi], rbx",
            supervisor_only=True, needs="cet",
        ),
        *_steps(),
        *_more_accesses(),
        *_returns(),
        *_twice(),
        *_large_steps(),
        _a(
            "ist", IMPLICIT, "cd20", Access(_READ, 8, implicit=True),
            "int 32, whose gate has its stack from a TSS, 44 bytes before the address", implicit=True,
            supervisor_only=True, scratch=True, tss=True,
        ),
        *_flushes(),
        # push the descriptor, its first word last; mov al, type; invpcid rax, [rsp]
        _a("invpcid0", INVPCID, "576a0031c0660f38820424", None, "invpcid, type 0, address rdi", invpcid=0, **_INVPCID),
        _a("invpcid1", INVPCID, "6a0057b001660f38820424", None, "invpcid, type 1, PCID rdi", invpcid=1, **_INVPCID),
        _a("invpcid2", INVPCID, "576a00b002660f38820424", None, "invpcid, type 2, address rdi", invpcid=2, **_INVPCID),
        _a("invpcid3", INVPCID, "6a0057b003660f38820424", None, "invpcid, type 3, PCID rdi", invpcid=3, **_INVPCID),
        _a("invpcid4", INVPCID, "576a00b004660f38820424", None, "invpcid, type 4", invpcid=4, **_INVPCID),
    )
}  # fmt: skip
"""By name. The order is that of the code pages, so new ones go last."""

_NUMBER: Final = {name: number for number, name in enumerate(ACTIONS)}
MOV_IMM64: Final = b"\x48\xb8"
"""The first bytes of the instruction of 10 bytes that `fetch10` goes to; the rest is data."""


def code_page() -> bytes:
    """The bytes of either code page."""
    page = bytearray([INT3]) * 4096
    for name, action in ACTIONS.items():
        at = SLOT * _NUMBER[name]
        page[at : at + len(action.code)] = action.code
    return bytes(page)


def address_of(action: Action, cpl: int) -> int:
    """Where the instruction lies for this privilege level; virtual and physical are the same."""
    return (USER_CODE if cpl == 3 else CODE) + SLOT * _NUMBER[action.name]

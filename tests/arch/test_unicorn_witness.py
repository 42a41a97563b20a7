"""Random small trees x accesses x control state: arch's verdict against Unicorn's.

Unicorn is a witness, not the truth. Where it is known not to follow the manual, the deviation is
named below and taken out of the comparison:

- reserved address bits do not follow MAXPHYADDR: the CPU here has 52 bits;
- fetches from, pushes to, and straddles into non-canonical addresses: the branch would have
  faulted first, #SS comes as #GP, and the first page is judged before the address as a whole;
- the translator fetches past the instruction: fetches here stay away from the end of their page.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from dataclasses import dataclass, replace
from random import Random

import pytest

from fivefold.arch import (
    LA48,
    LA57,
    RFLAGS_AC,
    Access,
    AddressSpace,
    Allowed,
    ControlState,
    Cpu,
    Cr0,
    Cr4,
    Efer,
    Entry,
    Fault,
    Flag,
    Frames,
    Kind,
    Level,
    PagingMode,
    Vector,
    access,
    accessed_and_dirty,
    map_page,
)
from fivefold.units import MASK64, PhysAddr, VirtAddr, hex64

unicorn = pytest.importorskip("unicorn", reason="unicorn is not installed")
x86 = pytest.importorskip("unicorn.x86_const")

SIZE = 4 << 20
INT3 = 0xCC
SUPERVISOR_CODE = VirtAddr(0x4000_0000)
USER_CODE = VirtAddr(0x4000_1000)
TREE = 0x40000
"""Where a trial's tables lie: root first, one a level."""

CODE = {
    (Kind.READ, 1): bytes.fromhex("8a07"),  # mov al, [rdi]
    (Kind.WRITE, 1): bytes.fromhex("881f"),  # mov [rdi], bl
    (Kind.READ, 8): bytes.fromhex("488b07"),  # mov rax, [rdi]
    (Kind.WRITE, 8): bytes.fromhex("48891f"),  # mov [rdi], rbx
}
WRPKRU = bytes.fromhex("0f01ef")  # PKRU := eax, with ecx and edx 0; no register shows it
SYSRETQ = bytes.fromhex("480f07")
MSR_EFER, MSR_STAR = 0xC000_0080, 0xC000_0081


class Memory:
    """Physical memory that arch and the engine share."""

    def __init__(self) -> None:
        self.bytes = (ctypes.c_uint8 * SIZE)()
        self.view = memoryview(self.bytes).cast("B")
        self.view[0x20_0000:] = bytes([INT3]) * (SIZE - 0x20_0000)

    def read(self, pa: PhysAddr, size: int, /) -> bytes:
        return bytes(self.view[pa : pa + size])

    def write(self, pa: PhysAddr, data: bytes, /) -> None:
        self.view[pa : pa + len(data)] = data


@dataclass(frozen=True)
class Outcome:
    """What an access came to; *cr2* is None but for a page fault."""

    vector: int | None
    error_code: int = 0
    cr2: int | None = None

    def __str__(self) -> str:
        return "allowed" if self.vector is None else f"vector {self.vector}({self.error_code:#x}) cr2={self.cr2}"


class Engine:
    """One Unicorn CPU with LA57, probed from a clean context each time."""

    def __init__(self) -> None:
        self.memory = Memory()
        self.uc = unicorn.Uc(unicorn.UC_ARCH_X86, unicorn.UC_MODE_64)
        self.uc.ctl_set_cpu_model(x86.UC_CPU_X86_ICELAKE_SERVER)
        self.uc.mem_map_ptr(0, SIZE, unicorn.UC_PROT_ALL, ctypes.addressof(self.memory.bytes))
        self.code_entry = {mode: self._map_code(mode, 0x10000 * number) for number, mode in ((1, LA57), (2, LA48))}
        self.outcome = Outcome(None)
        self.error_at: int | None = None
        self.uc.hook_add(unicorn.UC_HOOK_INTR, self._on_exception)
        self.contexts = {0: self.uc.context_save()}
        self.error_at = self._calibrate()
        self.contexts[3] = self._enter_user()

    def _map_code(self, mode: PagingMode, tables: int) -> int:
        """Map the two code pages; the root's entry for them, the same for every trial."""
        frames = Frames(self.memory, PhysAddr(tables), 16)
        space = AddressSpace(self.memory, frames.take(), mode)
        done = int(Flag.P | Flag.A | Flag.D)
        map_page(self.memory, space, SUPERVISOR_CODE, Entry(0x2000 | done, Level.PT), frames)
        map_page(self.memory, space, USER_CODE, Entry(0x3000 | done | Flag.US, Level.PT), frames)
        for page in (0x2000, 0x3000):
            self.memory.write(PhysAddr(page), bytes([INT3]) * 4096)
            for number, code in enumerate(CODE.values()):
                self.memory.write(PhysAddr(page + 16 * number), WRPKRU + code)
            self.memory.write(PhysAddr(page + 0x100), SYSRETQ)
        return space.entry_at(space.root, mode.top).raw

    def set_root(self, mode: PagingMode) -> None:
        """An empty root at `TREE`, but for the code."""
        self.memory.write(PhysAddr(TREE), bytes(4096 * 6))
        self.memory.write(PhysAddr(TREE), self.code_entry[mode].to_bytes(8, "little"))

    def _set(self, state: ControlState) -> None:
        self.uc.reg_write(x86.UC_X86_REG_CR4, state.cr4)
        self.uc.reg_write(x86.UC_X86_REG_MSR, (MSR_EFER, state.efer | Efer.SCE))
        self.uc.reg_write(x86.UC_X86_REG_CR3, state.cr3)
        self.uc.reg_write(x86.UC_X86_REG_CR0, state.cr0)
        self.uc.reg_write(x86.UC_X86_REG_RFLAGS, state.rflags)

    def probe(self, state: ControlState, va: int, how: Access) -> Outcome:
        """Make one access by one instruction. It ends in an exception; `INT3` says that all went well."""
        self.uc.context_restore(self.contexts[state.cpl])
        self._set(state)
        self.uc.reg_write(x86.UC_X86_REG_RDI, va)
        self.uc.reg_write(x86.UC_X86_REG_RBX, int.from_bytes(bytes([INT3] * 8), "little"))
        for register, value in ((x86.UC_X86_REG_RAX, state.pkru), (x86.UC_X86_REG_RCX, 0), (x86.UC_X86_REG_RDX, 0)):
            self.uc.reg_write(register, value)
        self.outcome = Outcome(-1)
        self.uc.emu_start(self._rip(state, va, how), MASK64)
        return self.outcome

    def _rip(self, state: ControlState, va: int, how: Access) -> int:
        if how.kind is Kind.FETCH:
            return va
        base = USER_CODE if state.cpl == 3 else SUPERVISOR_CODE
        # WRPKRU is #UD without PKE.
        skip = 0 if state.cr4_has(Cr4.PKE) else len(WRPKRU)
        return base + 16 * list(CODE).index((how.kind, how.size)) + skip

    def _on_exception(self, uc: object, vector: int | None, _: object) -> None:
        """Note the exception from the saved state: no register shows its error code."""
        context = self.uc.context_save()
        self.saved = ctypes.string_at(context.context, context.size)
        code = 0
        if self.error_at is not None:
            code = int.from_bytes(self.saved[self.error_at : self.error_at + 4], "little")
        if vector == Vector.BP:
            vector = None  # the int3 behind every access, or at the address that was fetched
        cr2 = self.uc.reg_read(x86.UC_X86_REG_CR2) if vector == Vector.PF else None
        self.outcome = Outcome(vector, code, cr2) if vector is not None else Outcome(None)
        self.uc.emu_stop()

    def _calibrate(self) -> int:
        """Find the error code in the saved state: 0, 2 and 0x10 for three faults we know."""
        self.set_root(LA57)
        state = ControlState.long(LA57, TREE)
        candidates = set(range(0, 1 << 13, 4))
        for how, code in ((Access(Kind.READ), 0), (Access(Kind.WRITE), 2), (Access(Kind.FETCH), 0x10)):
            self.probe(state, 0x5000_0000, how)
            words = {at for at in candidates if self.saved[at : at + 4] == code.to_bytes(4, "little")}
            candidates &= words
        assert len(candidates) == 1, f"error code not found in the saved context: {sorted(candidates)}"
        return candidates.pop()

    def _enter_user(self) -> object:
        """The context of a CPU that has just returned to ring 3: writing CS would not do."""
        self.uc.context_restore(self.contexts[0])
        self._set(ControlState.long(LA57, TREE))
        found = []
        landing = USER_CODE + 0x800
        self.uc.reg_write(x86.UC_X86_REG_MSR, (MSR_STAR, 0x20 << 48))
        self.uc.reg_write(x86.UC_X86_REG_RCX, landing)
        self.uc.reg_write(x86.UC_X86_REG_R11, 0x202)

        def arrived(uc: object, *_: object) -> None:
            found.append(self.uc.context_save())
            self.uc.emu_stop()

        hook = self.uc.hook_add(unicorn.UC_HOOK_CODE, arrived, None, landing, landing)
        self.uc.emu_start(SUPERVISOR_CODE + 0x100, MASK64)
        self.uc.hook_del(hook)
        return found[0]


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    yield Engine()


def random_state(random: Random, mode: PagingMode) -> ControlState:
    """Any mixture of WP, NXE, SMEP, SMAP, AC, keys and privilege."""
    state = ControlState.long(mode, TREE, cpl=random.choice((0, 3)))
    cr4 = sum(int(bit) for bit in (Cr4.SMEP, Cr4.SMAP, Cr4.PKE) if random.getrandbits(1))
    cr0 = state.cr0 if random.getrandbits(1) else state.cr0 & ~Cr0.WP
    efer = state.efer if random.random() < 0.8 else state.efer & ~Efer.NXE
    rflags = 2 | (RFLAGS_AC if random.getrandbits(1) else 0)
    pkru = random.getrandbits(32) & random.getrandbits(32)
    return replace(state, cr0=int(cr0), cr4=state.cr4 | cr4, efer=int(efer), rflags=rflags, pkru=pkru)


def random_entry(random: Random, level: Level, below: int) -> int:
    """An entry that is mostly well formed, mostly present, and mostly allows things.

    Large pages map memory from 0x200000 or from 0, where offsets lead to the data above 0x300000.
    """
    raw = sum(int(flag) for flag in (Flag.RW, Flag.US) if random.random() < 0.8)
    raw |= int(Flag.P) if random.random() < 0.95 else 0
    raw |= random.getrandbits(64) & 0x7FF0_0000_0000_0F78  # what no rule here looks at
    raw |= int(Flag.NX) if random.random() < 0.1 else 0
    large = random.random() < 0.15
    if large:
        raw |= int(Flag.BIT7)
        raw |= random.getrandbits(1) << 12  # PAT
        below = {Level.PD: 0x20_0000, Level.PDPT: 0}.get(level, below)
        if random.random() < 0.2 and level in (Level.PD, Level.PDPT):
            below |= 1 << random.randrange(13, level.shift)
    return raw | below


def random_tree(random: Random, memory: Memory, mode: PagingMode, va: int) -> None:
    """A path for *va*, and at the last level for the page after it too."""
    table = TREE
    for level in mode.levels:
        below = table + 0x1000 if level > Level.PT else 0x30_0000 + 0x1000 * random.randrange(0x80)
        memory.write(PhysAddr(table + 8 * level.index(va)), random_entry(random, level, below).to_bytes(8, "little"))
        table += 0x1000
    after = random_entry(random, Level.PT, 0x3F_0000)
    memory.write(PhysAddr(table - 0x1000 + 8 * Level.PT.index(va + 0x1000)), after.to_bytes(8, "little"))


def random_address(random: Random, mode: PagingMode) -> VirtAddr:
    """An address whose offset in any page size leads to data; one in twenty is not canonical."""
    raw = random.choice((1, 0x7F, 0xFF, 0x100, 0x188, 0x1FF)) << mode.top.shift
    raw |= random.randrange(4) << 39 if mode.top > Level.PML4 else 0
    raw |= random.randrange(512) << 30 | 1 << 21 | random.randrange(0x100, 0x1F0) << 12
    raw |= random.choice((random.randrange(0xFF0), random.randrange(0xFF9, 0x1000)))
    va = mode.sign_extend(raw)
    return VirtAddr(va ^ 1 << random.randrange(mode.va_bits, 64)) if random.random() < 0.05 else va


def seen(verdict: Allowed | Fault) -> Outcome:
    """What an engine shows of *verdict*."""
    if isinstance(verdict, Allowed):
        return Outcome(None)
    return Outcome(verdict.vector, verdict.error_code, verdict.cr2)


@pytest.mark.parametrize("mode", [LA48, LA57], ids=lambda mode: mode.name)
def test_verdicts_agree(engine: Engine, mode: PagingMode) -> None:
    random = Random(f"witness {mode.name}")
    met: dict[str, int] = {}
    for trial in range(1500):
        engine.set_root(mode)
        va = random_address(random, mode)
        random_tree(random, engine.memory, mode, va)
        kind = random.choice(list(Kind))
        how = Access(kind, 1 if kind is Kind.FETCH else random.choice((1, 8)))
        if kind is Kind.FETCH:
            if not mode.is_canonical(va):
                continue
            va = VirtAddr(va & ~0xF)
        state = random_state(random, mode)
        space = AddressSpace.from_state(engine.memory, state, Cpu())
        verdict = access(space, state, va, how)
        got = engine.probe(state, va, how)

        assert str(got) == str(seen(verdict)), f"trial {trial}: {how} at {hex64(va)}, {verdict}, {state}"
        if isinstance(verdict, Allowed):
            for at, raw in accessed_and_dirty(verdict, how):
                assert int.from_bytes(engine.memory.read(at, 8), "little") == raw, f"trial {trial}: {hex64(at)}"
        name = verdict.rule.name if isinstance(verdict, Fault) else "ALLOWED"
        met[name] = met.get(name, 0) + 1

    wanted = {"ALLOWED", "CANONICAL", "PRESENT", "RESERVED", "USER", "WRITE", "EXECUTE", "SMEP", "SMAP", "PKU"}
    assert {name for name, count in met.items() if count >= 10} >= wanted, met

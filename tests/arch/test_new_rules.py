"""Rules of today's CPUs that no engine here has: each row is from the manual's text."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fivefold.arch import (
    FETCH,
    HLAT_RESTART,
    LA48,
    LA57,
    READ,
    RFLAGS_AC,
    RSTORSSP,
    SHADOW_POP,
    WRITE,
    WRSS,
    WRUSS,
    Access,
    AddressSpace,
    Allowed,
    ControlState,
    Cpu,
    Cr4,
    Efer,
    Entry,
    Fault,
    Frames,
    Hlat,
    Kind,
    Legal,
    Level,
    Owned,
    PageFault,
    PagingMode,
    Refused,
    Register,
    Vendor,
    access,
    check_write,
    cpu_from_cpuid,
    history,
    map_page,
)
from fivefold.memory import Ram
from fivefold.units import PhysAddr, VirtAddr

LOW, HIGH = VirtAddr(0x7F12_3456_7000), VirtAddr(0xFFFF_8012_3456_7000)
CODE_READ = Access(Kind.READ, 8, implicit=True)


def world(raw: int, va: VirtAddr = LOW, mode: PagingMode = LA48, above: int = 7) -> AddressSpace:
    """*va* mapped by the leaf *raw*, the entries above it with the rights *above*."""
    ram = Ram.of_size(0x20000, start=0x1000)
    space = AddressSpace(ram, PhysAddr(0x1000), mode, Cpu(phys_bits=46))
    map_page(ram, space, va, Entry(0x9001, Level.PT), Frames(ram, PhysAddr(0x2000), 8))
    table = 0x1000
    for level in mode.levels:
        at = PhysAddr(table + 8 * level.index(va))
        entry = int.from_bytes(ram.read(at, 8), "little")
        new = raw if level is Level.PT else entry & ~7 | above
        ram.write(at, new.to_bytes(8, "little"))
        table = entry & ~0xFFF
    return space


def verdict(space: AddressSpace, how: Access, va: int = LOW, cpl: int = 0, **changes: int) -> str:
    state = ControlState.long(space.mode, 0x1000, cpl)
    state = replace(state, **{name: getattr(state, name) | value for name, value in changes.items()})
    found = access(space, state, VirtAddr(va), how)
    return "ok" if isinstance(found, Allowed) else f"{found.rule.name} {found.vector.name} {found.error_code:#x}"


U57, U48, SUP, LASS = 1 << 61, 1 << 62, int(Cr4.LAM_SUP), int(Cr4.LASS | Cr4.SMAP)
TAGGED = 0x7E00_0000_0000_0000 | LOW


@pytest.mark.parametrize(
    ("how", "changes", "want"),
    [
        (READ, {"cr3": U57}, "ok"),
        (CODE_READ, {"cr3": U57}, "CANONICAL GP 0x0"),
        (FETCH, {"cr3": U57}, "CANONICAL GP 0x0"),
        (READ, {}, "CANONICAL GP 0x0"),
        (Access(Kind.WRITE, 8, stack=True), {}, "CANONICAL SS 0x0"),
        (READ, {"efer": int(Efer.UAIE)}, "ok"),
        (CODE_READ, {"efer": int(Efer.UAIE)}, "CANONICAL GP 0x0"),
    ],
)
def test_a_tag_is_for_explicit_data_only(how: Access, changes: dict[str, int], want: str) -> None:
    assert verdict(world(0x9067), how, TAGGED, **changes) == want


def test_a_tag_is_for_64_bit_code_only() -> None:
    space = world(0x9067)
    state = replace(ControlState.long(LA48, 0x1000 | U57), cs_long=False)
    found = access(space, state, VirtAddr(TAGGED), READ)
    assert isinstance(found, Fault)


@pytest.mark.parametrize("mode", [LA48, LA57])
def test_both_widths_of_masking_in_both_modes(mode: PagingMode) -> None:
    space = world(0x9067, mode=mode)
    assert verdict(space, READ, 0x7FFF << 48 | LOW, cr3=U48) == "ok"
    assert verdict(space, READ, 0x3F << 57 | LOW, cr3=U57) == "ok"
    # Bit 56 is no tag of U57: it stands for the bits above it.
    assert verdict(space, READ, 0x3F << 57 | LOW, cr3=U57 | U48) == "ok"
    assert verdict(space, READ, 1 << 50 | LOW, cr3=U57) == ("CANONICAL GP 0x0" if mode is LA48 else "PRESENT PF 0x0")


@pytest.mark.parametrize(
    ("va", "how", "cpl", "changes", "want"),
    [
        (LOW, READ, 3, {}, "ok"),
        (HIGH, READ, 3, {}, "LASS GP 0x0"),
        (HIGH, FETCH, 3, {}, "LASS GP 0x0"),
        (HIGH, Access(Kind.WRITE, 8, stack=True), 3, {}, "LASS SS 0x0"),
        (HIGH, CODE_READ, 3, {}, "ok"),
        (LOW, CODE_READ, 3, {}, "LASS GP 0x0"),
        (LOW, READ, 0, {}, "LASS GP 0x0"),
        (LOW, READ, 0, {"rflags": RFLAGS_AC}, "ok"),
        (LOW, CODE_READ, 0, {"rflags": RFLAGS_AC}, "LASS GP 0x0"),
        (LOW, FETCH, 0, {"rflags": RFLAGS_AC}, "LASS GP 0x0"),
        (LOW, WRUSS, 0, {}, "SHADOW PF 0x47"),
        (HIGH, WRUSS, 0, {}, "LASS GP 0x0"),
    ],
)
def test_lass(va: VirtAddr, how: Access, cpl: int, changes: dict[str, int], want: str) -> None:
    """No table is read for what bit 63 refuses: the page is a user's and would allow it."""
    space = world(0x9067, va)
    if va == HIGH and how is CODE_READ:
        space = world(0x9063, va)
    assert verdict(space, how, va, cpl, cr4=LASS, **changes) == want


def test_lass_leaves_supervisor_data_alone_without_smap() -> None:
    assert verdict(world(0x9067), READ, LOW, 0, cr4=int(Cr4.LASS)) == "ok"
    assert verdict(world(0x9067), FETCH, LOW, 0, cr4=int(Cr4.LASS)) == "LASS GP 0x0"


# Leaf 0x41: P, D, no R/W: a supervisor's shadow stack; 0x45: a user's.
@pytest.mark.parametrize(
    ("raw", "above", "how", "cpl", "want"),
    [
        (0x9045, 7, SHADOW_POP, 3, "ok"),
        (0x9045, 7, WRSS, 3, "ok"),
        (0x9045, 7, WRUSS, 0, "ok"),
        (0x9041, 7, WRSS, 0, "ok"),
        (0x9041, 7, RSTORSSP, 0, "ok"),
        (0x9045, 7, WRITE, 3, "WRITE PF 0x7"),
        (0x9045, 7, READ, 3, "ok"),
        (0x9047, 7, WRSS, 3, "SHADOW PF 0x47"),
        (0x9047, 7, SHADOW_POP, 3, "SHADOW PF 0x45"),
        (0x9005, 7, SHADOW_POP, 3, "SHADOW PF 0x45"),
        (0x9045, 5, SHADOW_POP, 3, "SHADOW PF 0x45"),
        (0x9045, 7, WRSS, 0, "SHADOW_SIDE PF 0x43"),
        (0x9041, 7, WRSS, 3, "USER PF 0x47"),
        (0x9041, 7, WRUSS, 0, "USER PF 0x47"),
        (0x9040, 7, WRUSS, 0, "PRESENT PF 0x46"),
    ],
)
def test_shadow_stacks(raw: int, above: int, how: Access, cpl: int, want: str) -> None:
    assert verdict(world(raw, above=above), how, LOW, cpl, cr4=int(Cr4.CET | Cr4.SMAP)) == want


def test_hlat_starts_again_where_an_entry_says_so() -> None:
    ordinary, ram = world(0x9067), Ram.of_size(0x20000, start=0x1000)
    ram.write(PhysAddr(0x1000), ordinary.memory.read(PhysAddr(0x1000), 0x20000))
    ram.write(PhysAddr(0x10000 + 8 * Level.PML4.index(LOW)), (0x2001 | HLAT_RESTART).to_bytes(8, "little"))
    space = replace(ordinary, memory=ram, hlat=Hlat(PhysAddr(0x10000)))
    assert verdict(space, READ) == "ok"
    entries = history(space, ControlState.long(LA48, 0x1000), LOW, READ)
    assert PhysAddr(0x10000 + 8 * Level.PML4.index(LOW)) in {part.at for part in entries if part.must}
    ram.write(PhysAddr(0x10000 + 8 * Level.PML4.index(LOW)), bytes(8))
    assert verdict(space, WRITE) == "PRESENT PF 0x82"
    assert verdict(replace(space, hlat=Hlat(PhysAddr(0x10000), 1)), WRITE) == "ok"


def test_pages_with_another_owner() -> None:
    space = replace(world(0x9067), owned=Owned(rmp=(range(0x9000, 0xA000),)))
    assert (verdict(space, READ), verdict(space, WRITE)) == ("ok", "RMP PF 0x80000003")
    space = replace(world(0x9067), owned=Owned(epcm=(range(0x9000, 0xA000),)))
    assert verdict(space, READ, cpl=3) == "SGX PF 0x8005"
    assert PageFault.SGX == 0x8000


def test_encryption_narrows_addresses_but_the_bit_itself_is_not_reserved() -> None:
    cpu = Cpu(phys_bits=48, phys_reduction=5, c_bit=47)
    leaf = Entry(1 << 47 | 0x9067, Level.PT)
    assert (cpu.frame(leaf), cpu.reserved(leaf)) == (0x9000, 0)
    assert cpu.reserved(Entry(1 << 43 | 0x9067, Level.PT)) == 1 << 43
    assert Cpu(phys_bits=52, shared_bit=51).frame(Entry(1 << 51 | 0x9067, Level.PT)) == 0x9000
    keyed = Cpu(phys_bits=46, key_id_bits=6)
    assert (keyed.frame(Entry(0x3F << 40 | 0x9067, Level.PT)), keyed.reserved(Entry(1 << 45 | 1, Level.PT))) == (
        0x9000,
        0,
    )


def test_cpuid_of_a_cpu_that_encrypts() -> None:
    leaves = {
        0: (7, 0x68747541, 0x444D4163, 0x69746E65), 0x8000_0000: (0x8000_0021, 0, 0, 0),
        0x8000_0008: (0x3030, 0, 0, 0), 0x8000_001F: (1, 5 << 6 | 51, 0, 0), 0x8000_0021: (1 << 7, 0, 0, 0),
        0x8000_0001: (0, 0, 4, 1 << 29),
    }  # fmt: skip
    cpu = cpu_from_cpuid(lambda leaf, _: leaves.get(leaf, (0, 0, 0, 0)))
    assert (cpu.width, cpu.c_bit, cpu.vendor, cpu.uai, cpu.svm) == (43, 51, Vendor.AMD, True, True)
    assert cpu_from_cpuid(lambda leaf, _: leaves.get(leaf, (0, 0, 0, 0)), encrypts=False).width == 48


AMD = Cpu(phys_bits=48, vendor=Vendor.AMD, svm=True, uai=True, cet=True)
INTEL = Cpu(phys_bits=46, cet=True, uintr=True, fred=True)
BAD = 1 << 60


@pytest.mark.parametrize(
    ("cpu", "register", "value", "rule"),
    [
        (AMD, Register.EFER, 1 << 12 | 0xD01, None),
        (INTEL, Register.EFER, 1 << 12 | 0xD01, "reserved bits"),
        (AMD, Register.EFER, 1 << 13 | 0xD01, "reserved bits"),
        (AMD, Register.SYSENTER_EIP, BAD, None),
        (INTEL, Register.SYSENTER_EIP, BAD, "canonical base"),
        (INTEL, Register.PAT, 0x0007_0406_0007_0406, None),
        (INTEL, Register.PAT, 0x0007_0406_0007_0402, "reserved bits"),
        (INTEL, Register.PAT, 8 << 56, "reserved bits"),
        (INTEL, Register.S_CET, 0x1F, None),
        (INTEL, Register.S_CET, 1 << 6, "reserved bits"),
        (INTEL, Register.S_CET, 3 << 10, "reserved bits"),
        (INTEL, Register.S_CET, BAD, "canonical base"),
        (AMD, Register.S_CET, 4, "reserved bits"),
        (INTEL, Register.PL0_SSP, 0x1002, "reserved bits"),
        (INTEL, Register.PL3_SSP, BAD, "canonical base"),
        (Cpu(), Register.PL3_SSP, 0, "no such MSR"),
        (INTEL, Register.DS_AREA, BAD, "canonical base"),
        (INTEL, Register.RTIT_ADDR2_B, BAD, "canonical base"),
        (INTEL, Register.BNDCFGS, 4, "reserved bits"),
        (INTEL, Register.UINTR_PD, 0x1020, "reserved bits"),
        (INTEL, Register.FRED_CONFIG, 1 << 11, "reserved bits"),
        (INTEL, Register.FRED_RSP1, 0x1040, None),
        (INTEL, Register.LDTR, BAD, "canonical base"),
    ],
)
def test_register_rules(cpu: Cpu, register: Register, value: int, rule: str | None) -> None:
    found = check_write(ControlState.long(LA57, 0x1000), register, value, cpu, selector=0x28 | 3)
    if rule is None:
        assert isinstance(found, Legal)
    else:
        assert isinstance(found, Refused)
        assert (found.rule, found.error_code) == (rule, 0x28 if register is Register.LDTR else 0)


def flags(space: AddressSpace, how: Access, va: int = LOW, cpl: int = 0) -> list[tuple[int, int]]:
    state = ControlState.long(space.mode, 0x1000, cpl)
    return [(part.must, part.may) for part in history(space, state, VirtAddr(va), how)]


def test_flags_that_must_may_and_must_not_be_set() -> None:
    assert flags(world(0x9007), WRITE) == [(0x20, 0)] * 3 + [(0x60, 0)]
    assert flags(world(0x9007), READ) == [(0x20, 0)] * 4
    assert flags(world(0x9001), WRITE) == [(0, 0x20)] * 4  # read-only: D must not be set
    assert flags(world(0x9006), READ) == [(0, 0x20)] * 3 + [(0, 0)]
    assert flags(world(1 << 50 | 0x9007), READ) == [(0, 0x20)] * 3 + [(0, 0)]
    straddle = flags(world(0x9007), Access(Kind.WRITE, 8), LOW + 0xFFC)
    assert straddle == [(0, 0x20)] * 3 + [(0, 0x60), (0, 0)]  # the page after it is absent
    assert flags(world(0x9007), READ, 1 << 60) == []

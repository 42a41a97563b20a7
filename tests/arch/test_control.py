from __future__ import annotations

import re
from dataclasses import replace

import pytest

from fivefold.arch import (
    LA48,
    LA57,
    MSRS,
    ControlState,
    Cpu,
    Cr0,
    Cr4,
    Efer,
    Flush,
    Legal,
    Paging,
    Refused,
    Register,
    Vector,
    check_write,
    cr4_bits,
    efer_bits,
)

LONG5 = ControlState.long(LA57, 0x1000)
LONG4 = ControlState.long(LA48, 0x1000)
PROT = replace(LONG4, cr0=int(Cr0.PE | Cr0.ET | Cr0.NE), efer=int(Efer.LME), cs_long=False)
PAE = replace(PROT, cr0=LONG4.cr0, efer=0)
STARTS = {
    "reset": ControlState.reset(),
    "prot": PROT,
    "pae": PAE,
    "compat4": replace(LONG4, cs_long=False),
    "compat5": replace(LONG5, cs_long=False),
    "long4": LONG4,
    "long5": LONG5,
}
BITS = {"CR0": Cr0, "CR4": Cr4, "EFER": Efer}
FIELDS = {"CR0": "cr0", "CR3": "cr3", "CR4": "cr4", "EFER": "efer"}
CPU = Cpu(phys_bits=46)


def bit_of(register: str, name: str) -> int:
    return 1 << int(name[3:]) if name.startswith("BIT") else int(BITS[register][name])


def changed(register: str, old: int, words: list[str]) -> int:
    """*old* after words such as ``+PG``, ``-PE`` and ``=0x1000``."""
    for word in words:
        if word[0] == "=":
            old = int(word[1:], 16)
        elif word[0] == "+":
            old |= bit_of(register, word[1:])
        else:
            old &= ~bit_of(register, word[1:])
    return old


def start_state(text: str) -> ControlState:
    name, *words = text.split()
    state = STARTS[name]
    for word in words:
        match = re.fullmatch(r"(CR\d|EFER)(.*)", word)
        if match:
            field = FIELDS[match[1]]
            state = replace(state, **{field: changed(match[1], getattr(state, field), [match[2]])})
        elif word.startswith("cpl="):
            state = replace(state, cpl=int(word[4:]))
        else:
            state = replace(state, **{word: True})
    return state


def cpu_of(text: str) -> Cpu:
    words = dict(word.split("=") for word in text.split())
    width = int(words.pop("phys_bits", "46"))
    return replace(CPU, phys_bits=width, **{name: value == "1" for name, value in words.items()})


def shown(state: ControlState, name: str) -> str:
    """One thing of *state*, as the verdict column asks for it."""
    if name == "LMA":
        return f"{bool(state.efer & Efer.LMA):d}"
    if name == "ET":
        return f"{bool(state.cr0 & Cr0.ET):d}"
    return hex(getattr(state, FIELDS[name]))


def test_control(control_vector: list[str]) -> None:
    start, cpu, write, want = control_vector
    register, *words = write.split()
    state = start_state(start)
    old = getattr(state, FIELDS.get(register, ""), 0)
    verdict = check_write(state, Register[register], changed(register, old, words), cpu_of(cpu))
    if isinstance(verdict, Refused):
        assert verdict.rule == want
        assert (verdict.vector, verdict.error_code) == (Vector.GP, 0)
        assert verdict.bits
    else:
        _, flush, *rest = want.split()
        shown_rest = [f"{name}={shown(verdict.state, name)}" for name in (word.partition("=")[0] for word in rest)]
        assert ["legal", verdict.flush.name, *shown_rest] == ["legal", flush, *rest]


def test_every_rule_has_a_vector(vectors: dict[str, list[list[str]]]) -> None:
    from fivefold.arch.registers.control import _ADDRESS_RULES, _RULES_OF

    tables = {register.name: rules for register, rules in _RULES_OF.items()} | {"address": _ADDRESS_RULES}
    seen = {(row[2].split()[0], row[3]) for row in vectors["control"]}
    missing = [
        (register, rule.name)
        for register, rules in tables.items()
        for rule in rules
        if not any(verdict == rule.name and register in (name, "address") for name, verdict in seen)
    ]
    assert missing == []


def write(state: ControlState, register: Register, value: int) -> ControlState:
    verdict = check_write(state, register, value, CPU)
    assert isinstance(verdict, Legal), str(verdict)
    return verdict.state


@pytest.mark.parametrize(
    ("bits", "paging", "mode"),
    [(Cr4.PAE, Paging.LONG4, LA48), (Cr4.PAE | Cr4.LA57, Paging.LONG5, LA57)],
)
def test_from_reset_to_each_depth(bits: Cr4, paging: Paging, mode: object) -> None:
    """PE; PAE and LA57; CR3; LME and NXE; PG."""
    state = write(ControlState.reset(), Register.CR0, int(Cr0.PE))
    state = write(state, Register.CR4, int(bits))
    state = write(state, Register.CR3, 0x1000)
    state = write(state, Register.EFER, int(Efer.LME | Efer.NXE))
    assert (state.paging, state.mode) == (Paging.NONE, None)
    state = write(state, Register.CR0, state.cr0 | int(Cr0.PG))

    assert (state.paging, state.mode, state.nxe) == (paging, mode, True)
    assert state.root(46) == 0x1000
    assert not state.in_64bit
    assert replace(state, cs_long=True).in_64bit


@pytest.mark.parametrize(("start", "mode"), [(LONG4, LA57), (LONG5, LA48)])
def test_the_other_depth_is_reached_only_through_paging_off(start: ControlState, mode: object) -> None:
    flipped = start.cr4 ^ int(Cr4.LA57)
    assert isinstance(check_write(start, Register.CR4, flipped, CPU), Refused)
    state = replace(start, cs_long=False)  # a far jump to 32-bit code
    assert isinstance(check_write(state, Register.CR4, flipped, CPU), Refused)
    state = write(state, Register.CR0, state.cr0 & ~int(Cr0.PG))
    assert state.efer & Efer.LME
    state = write(state, Register.CR4, flipped)
    state = write(state, Register.CR3, 0x2000)
    state = write(state, Register.CR0, state.cr0 | int(Cr0.PG))

    assert state.mode is mode


@pytest.mark.parametrize(
    ("cr0", "cr4", "efer", "paging"),
    [
        (Cr0.PE, Cr4.PAE | Cr4.LA57, Efer.LME, Paging.NONE),
        (Cr0.PG | Cr0.PE, 0, 0, Paging.BITS32),
        (Cr0.PG | Cr0.PE, Cr4.LA57, 0, Paging.BITS32),
        (Cr0.PG | Cr0.PE, Cr4.PAE, 0, Paging.PAE),
        (Cr0.PG | Cr0.PE, Cr4.PAE | Cr4.LA57, 0, Paging.PAE),
        (Cr0.PG | Cr0.PE, Cr4.PAE, Efer.LME | Efer.LMA, Paging.LONG4),
        (Cr0.PG | Cr0.PE, Cr4.PAE | Cr4.LA57, Efer.LME | Efer.LMA, Paging.LONG5),
    ],
)
def test_paging_follows_from_the_registers(cr0: int, cr4: int, efer: int, paging: Paging) -> None:
    assert ControlState(cr0=int(cr0), cr3=0, cr4=int(cr4), efer=int(efer)).paging is paging


def test_pcid_counts_only_with_pcide() -> None:
    state = replace(LONG5, cr3=0x1018)

    assert state.pcid == 0
    assert replace(state, cr4=state.cr4 | int(Cr4.PCIDE)).pcid == 0x18


def test_every_reserved_bit_of_cr4_and_efer_is_refused() -> None:
    for register, mask in ((Register.CR4, cr4_bits(CPU)), (Register.EFER, efer_bits(CPU))):
        for bit in range(64):
            old = PROT.cr4 if register is Register.CR4 else PROT.efer
            verdict = check_write(PROT, register, old | 1 << bit, CPU)
            reserved = isinstance(verdict, Refused) and verdict.rule == "reserved bits"

            assert reserved == (not mask >> bit & 1)


def test_a_refusal_on_one_line() -> None:
    texts = [
        str(check_write(LONG4, Register.CR4, LONG5.cr4, CPU)),
        str(check_write(LONG5, Register.CR3, 3 << 46, CPU)),
        str(check_write(LONG5, Register.IDTR, 1 << 63, CPU)),
    ]

    assert texts == [
        "#GP(0) CR4: LA57 does not change while EFER.LMA is set",
        "#GP(0) CR3: bits 0x0000c00000000000 are reserved on this CPU in this state",
        "#GP(0) IDTR base: 0x8000000000000000 is not canonical in the widest mode that this CPU supports",
    ]


@pytest.mark.parametrize("value", [-1, 1 << 64])
def test_a_value_of_more_than_64_bits_is_a_mistake(value: int) -> None:
    with pytest.raises(ValueError, match=r"written to CR3; expected 64 bits without a sign$"):
        check_write(LONG5, Register.CR3, value, CPU)


def test_msrs_are_by_index() -> None:
    assert MSRS[0xC000_0080] is Register.EFER
    assert MSRS[0xC000_0082] is Register.LSTAR
    no_msr = {"CR0", "CR3", "CR4", "GDTR", "IDTR", "LDTR", "TR"}
    assert {register.name for register in set(Register) - set(MSRS.values())} == no_msr


def test_a_write_that_changes_nothing_is_legal_and_flushes_little() -> None:
    for register, value in ((Register.CR0, LONG5.cr0), (Register.CR4, LONG5.cr4), (Register.EFER, LONG5.efer)):
        assert check_write(LONG5, register, value, CPU) == Legal(LONG5, Flush.NONE)

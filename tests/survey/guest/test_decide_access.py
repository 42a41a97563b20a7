"""What a CPU answers by the registers that a source holds, one vector a line; the answers are the manual's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from fivefold.arch import FETCH, LA48, LA57, READ, WRITE, Allowed, ControlState
from fivefold.errors import NotKnownError
from fivefold.memory import CpuState, Segment, Source
from fivefold.survey.guest.decide_access import decide
from fivefold.survey.guest.identify import GivenPaging
from fivefold.survey.space import Space

VA = 0x40_0000
BITS = {"P": 1, "RW": 2, "US": 4, "KEY": 1 << 59, "NX": 1 << 63}
ROOT = 0x1000


def cpu_of(registers: str) -> CpuState:
    told = {name: int(value, 16) for name, value in (part.split("=") for part in registers.split())}
    general = {
        name: told[short] for name, short in (("cpl", "cpl"), ("rflags", "fl"), ("pkru", "pkru")) if short in told
    }
    segments = {"cs": Segment(told["cs"], 0, 0xFFFFFFFF, 0x00A0_9B00)} if "cs" in told else {}
    return CpuState("test", told["CR0"], None, ROOT, told["CR4"], told.get("EFER"), general, segments)


def answer(space: Space, how: str, by: str = "", **given: Any) -> str:
    user = {"": None, "cpl0": False, "cpl3": True}[by]
    try:
        verdict = decide(space, VA, {"read": READ, "write": WRITE, "fetch": FETCH}[how], user=user, **given)
    except NotKnownError as error:
        assert str(error).startswith(f"{space.source.name} does not hold ") and str(error).endswith("; give state=")
        return f"? {str(error).partition('does not hold ')[2].partition(', on which')[0]}"
    return "allowed" if isinstance(verdict, Allowed) else verdict.rule.name


@pytest.mark.parametrize("mode", [LA48, LA57], ids=["la48", "la57"])
def test_decide(build: Callable[..., Any], decide_access_row: list[str], mode: Any) -> None:
    registers, by, how, page, expected = decide_access_row
    cpu = cpu_of(registers)
    cr4 = cpu.cr4 | (1 << 12 if mode is LA57 else 0)  # type: ignore[operator]
    built = build(mode).page(VA, 0x20_0000 | sum(BITS[bit] for bit in page.split()))
    source = built.space().source
    cpu = CpuState("test", cpu.cr0, None, ROOT, cr4, cpu.efer, cpu.general, cpu.segments)
    assert answer(Space(Source(source.memory, "test", (cpu,))), how, by) == expected


@pytest.mark.parametrize("lacks", ["cpu", "cr0", "cr4"])
def test_control_registers_are_not_made_up(build: Callable[..., Any], lacks: str) -> None:
    memory = build(LA48).page(VA, 0x20_0000 | 7).space().source.memory
    cpu = CpuState("test", None if lacks == "cr0" else 0x8001_0033, None, ROOT, None if lacks == "cr4" else 0x20)
    space = Space(Source(memory, "raw image", () if lacks == "cpu" else (cpu,)), GivenPaging(cr3=ROOT, levels=4))
    with pytest.raises(NotKnownError, match=r"\(raw image\) does not hold CR0 and CR4 of CPU 0; give state="):
        decide(space, VA)
    assert answer(space, "write", state=ControlState.long(LA48, ROOT)) == "allowed"


def test_given_registers_come_before_the_sources(build: Callable[..., Any]) -> None:
    """CR4 and the number of levels may be given: the answer is that of a CPU with them."""
    source = build(LA48).page(VA, 0x20_0000 | 5).space().source
    cpu = CpuState("test", 0x8001_0033, None, ROOT, 0x20, 0xD01, {"cpl": 0})
    held = Source(source.memory, "test", (cpu,))
    assert answer(Space(held), "fetch") == "allowed"
    assert answer(Space(held, GivenPaging(cr4=0x10_0020)), "fetch") == "SMEP"
    without = CpuState("test", 0x8001_0033, None, ROOT, None, 0xD01, {"cpl": 0})
    space = Space(Source(source.memory, "test", (without,)), GivenPaging(cr4=0x10_0020))
    assert answer(space, "fetch") == "SMEP"
    five = CpuState("test", 0x8001_0033, None, ROOT, 0x1020, 0xD01, {"cpl": 0})
    forced = Space(Source(source.memory, "test", (five,)), GivenPaging(levels=4, force=True))
    assert answer(forced, "read") == "allowed"


def test_a_state_is_taken_as_it_is(build: Callable[..., Any]) -> None:
    space = build(LA48).page(VA, 0x20_0000 | 5).space()
    state = ControlState.long(LA48, ROOT, cpl=3)
    assert answer(space, "write", state=state) == "WRITE"
    assert answer(space, "read", state=state) == "allowed"
    assert answer(space, "write", by="cpl0", state=state) == "WRITE"
    supervisor = build(LA48).page(VA, 0x20_0000 | 1).space()
    assert answer(supervisor, "read", state=state) == "USER"
    assert answer(supervisor, "read", by="cpl0", state=state) == "allowed"


@pytest.mark.parametrize(("flags", "expected"), [(0x00A0_FB00, "allowed"), (0x00C0_FB00, "CANONICAL")])
def test_only_code_of_64_bits_has_tags(build: Callable[..., Any], flags: int, expected: str) -> None:
    """LAM takes the tag away where CS.L, bit 21 of the flags, is set; where CS is not told it turns on that."""
    source = build(LA48).page(VA, 0x20_0000 | 5).space().source
    registers = (0x8001_0033, None, ROOT | 1 << 61, 0x20, 0xD01)
    tagged = VA | 0x15 << 58
    cpu = CpuState("test", *registers, {}, {"cs": Segment(0x33, 0, 0xFFFF_FFFF, flags)})
    verdict = decide(Space(Source(source.memory, "test", (cpu,))), tagged)
    assert ("allowed" if isinstance(verdict, Allowed) else verdict.rule.name) == expected
    untold = CpuState("test", *registers, {"cpl": 3})
    with pytest.raises(NotKnownError, match=r"does not hold CS\.L, on which"):
        decide(Space(Source(source.memory, "test", (untold,))), tagged)


@pytest.mark.parametrize(
    ("lam", "tag", "expected"),
    [
        (0, 0, "allowed"),
        (0, 0x15 << 58, "CANONICAL"),
        (1 << 61, 0x15 << 58, "allowed"),
        (1 << 61, 0x15 << 50, "CANONICAL"),
        (1 << 62, 0x15 << 50, "allowed"),
        (3 << 61, 0x15 << 50, "CANONICAL"),
    ],
)
def test_tags_are_those_of_cr3(build: Callable[..., Any], lam: int, tag: int, expected: str) -> None:
    """Of another root's tags the CPU says nothing; PCID, bits 11:0 of CR3, are no part of the root."""
    source = build(LA48).page(VA, 0x20_0000 | 5).space().source
    told: tuple[Any, Any] = ({"cpl": 3}, {"cs": Segment(0x33, 0, 0xFFFF_FFFF, 0x00A0_FB00)})
    cpu = CpuState("test", 0x8001_0033, None, ROOT | lam | 7, 0x2_0020, 0xD01, *told)
    verdict = decide(Space(Source(source.memory, "test", (cpu,))), VA | tag)
    assert ("allowed" if isinstance(verdict, Allowed) else verdict.rule.name) == expected
    elsewhere = CpuState("test", 0x8001_0033, None, 0x5000 | lam, 0x2_0020, 0xD01, *told)
    space = Space(Source(source.memory, "test", (elsewhere,)), GivenPaging(cr3=ROOT, levels=4))
    if not tag:
        assert isinstance(decide(space, VA), Allowed)
    else:
        with pytest.raises(NotKnownError, match=r"does not hold LAM in CR3, on which"):
            decide(space, VA | tag)

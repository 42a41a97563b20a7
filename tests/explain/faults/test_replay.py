"""Deliveries that are replayed on tables made by hand: which gate, which stack, and what stands in the way."""

from __future__ import annotations

import struct
from dataclasses import replace

import pytest

from fivefold.arch import Flag
from fivefold.explain.faults.delivery import replay
from fivefold.explain.rules.situation import Situation, situation
from fivefold.memory import CpuState, Ram, Segment
from fivefold.units import PhysAddr

ROOT, IDT, GDT, TSS, HANDLER, STACK = (
    0x20_0000 + offset for offset in (0, 0x10000, 0x11000, 0x12000, 0x13008, 0x14000)
)
CODE = 0x00AF_9B00_0000_FFFF
INTERRUPT, TRAP = 0xE, 0xF


def put(ram: Ram, at: int, value: int) -> None:
    ram.write(PhysAddr(at), struct.pack("<Q", value))


def gate(ram: Ram, vector: int, *, ist: int = 0, kind: int = INTERRUPT, dpl: int = 0, p: int = 1, to: int = HANDLER,
         selector: int = 8) -> None:  # fmt: skip
    low = to & 0xFFFF | selector << 16 | ist << 32 | kind << 40 | dpl << 45 | p << 47 | (to >> 16 & 0xFFFF) << 48
    put(ram, IDT + 16 * vector, low)
    put(ram, IDT + 16 * vector + 8, to >> 32)


@pytest.fixture
def ram() -> Ram:
    """2 MiB at 2 MiB, mapped to themselves and nothing else; stacks of RSP0, IST 1 and IST 2 in the TSS."""
    ram = Ram.of_size(2 << 20, 0x20_0000)
    put(ram, ROOT, ROOT + 0x1000 | Flag.P | Flag.RW)
    put(ram, ROOT + 0x1000, ROOT + 0x2000 | Flag.P | Flag.RW)
    put(ram, ROOT + 0x2008, 0x20_0000 | Flag.P | Flag.RW | Flag.BIT7)
    put(ram, GDT + 8, CODE)
    put(ram, TSS + 4, STACK)
    put(ram, TSS + 0x24, STACK + 0x1000)
    put(ram, TSS + 0x2C, STACK + 0x2008)
    gate(ram, 14)
    gate(ram, 13)
    return ram


def here(ram: Ram | None, cpl: int = 0, **changes: int) -> Situation:
    limits = {"idt": 0xFFF, "gdt": 0xF, "tr": 0x67} | changes
    bases = {"idt": IDT, "gdt": GDT, "tr": TSS}
    segments = {name: Segment(0, base, limits[name], 0) for name, base in bases.items() if limits[name] >= 0}
    general = {"rip": 0x21_5000, **({"rsp": changes["rsp"]} if changes.get("rsp", 0) >= 0 and "rsp" in changes else {})}
    registers = CpuState(
        "test", cr0=0x8001_0011, cr3=ROOT, cr4=0x20, efer=0xD00, general={**general, "cpl": cpl}, segments=segments
    )
    return situation(registers, cpl, ram)


@pytest.mark.parametrize(
    ("ist", "cpl", "top"),
    [(0, 0, 0x21_8010), (0, 3, STACK), (1, 0, STACK + 0x1000), (1, 3, STACK + 0x1000), (2, 0, STACK + 0x2000)],
)
def test_which_stack(ram: Ram, ist: int, cpl: int, top: int) -> None:
    """RSP where the level stays and no IST is named, RSP0 where it changes; the frame begins at a multiple of 16."""
    gate(ram, 14, ist=ist)
    route = replay(here(ram, cpl, rsp=0x21_801F), 14)
    assert (route.obstacle, route.missing) == (None, None)
    assert (route.top, route.ist, route.handler, route.gate) == (top, ist, HANDLER, IDT + 14 * 16)


@pytest.mark.parametrize(("base", "is_there"), [(0x60_0000, True), (0x5F_FFDC, True), (0x5F_FFDB, False)])
def test_a_task_state_segment_where_memory_begins(ram: Ram, base: int, is_there: bool) -> None:
    """What is read is IST 1, 0x24 bytes into it, and nothing before that."""
    put(ram, ROOT + 0x2018, 0x20_0000 | Flag.P | Flag.RW | Flag.BIT7)  # once more, with nothing mapped below
    gate(ram, 14, ist=1)
    before = here(ram, rsp=0x21_8000)
    segments = {**before.registers.segments, "tr": Segment(0, base, 0x67, 0)}
    route = replay(replace(before, registers=replace(before.registers, segments=segments)), 14)
    said = route.obstacle.sentence if route.obstacle else ""
    assert ("the stack pointer in the TSS" in said) == (not is_there)


@pytest.mark.parametrize("kind", range(16))
def test_kinds_of_gates(ram: Ram, kind: int) -> None:
    gate(ram, 14, kind=kind)
    route = replay(here(ram, rsp=0x21_8000), 14)
    if kind in (INTERRUPT, TRAP):
        assert route.obstacle is None and route.handler == HANDLER
    else:
        assert route.obstacle is not None and (route.obstacle.rule, route.obstacle.vector) == ("idt-entry", 13)
        assert f"the gate of #PF has type {kind:#x}; expected an interrupt or trap gate" in route.obstacle.sentence


# what is changed, and what stands in the way: rule, vector, words; @ is a frame that could not be pushed
OBSTACLES = {
    "an IDT that ends before": ({"idt": 14 * 16 + 14}, "idt-limit", 13, "at offset 0xef, and the IDT's limit is 0xee"),
    "an IDT that ends with it": ({"idt": 14 * 16 + 15}, None, 0, ""),
    "a GDT that ends before": ({"gdt": 14}, "idt-entry", 13, "has selector 0x8, past the GDT's limit 0xe"),
    "a TSS that ends before": ({"cpl": 3, "tr": 10}, "stack", 10, "the TSS ends at 0xa, before the stack"),
    "a TSS that ends with it": ({"cpl": 3, "tr": 11}, None, 0, ""),
    "a stack at the start of memory": ({"rsp": 0x20_0030}, None, 0, ""),
    "a stack just above it": ({"rsp": 0x20_002F}, "not-present", 14, "word 5@ 0x00000000001ffff8"),
    "a stack below it": ({"rsp": 0x20_0000}, "not-present", 14, "word 1@ 0x00000000001ffff8"),
    "a stack that is not canonical": ({"rsp": 0x8000_0000_0010}, "non-canonical", 12, "word 1@ 0x0000800000000008"),
}  # fmt: skip


@pytest.mark.parametrize("name", OBSTACLES)
def test_obstacles(ram: Ram, name: str) -> None:
    changes, rule, vector, words = OBSTACLES[name]
    route = replay(here(ram, **{"rsp": 0x21_8000, **changes}), 14)  # type: ignore[arg-type]
    if rule is None:
        assert route.obstacle is None
    else:
        assert route.obstacle is not None
        assert (route.obstacle.rule, route.obstacle.vector) == (rule, vector)
        assert words.replace("@", " of the frame could not be pushed to") in route.obstacle.sentence


GATES = {
    "empty": ({"kind": 0, "p": 0, "selector": 0, "to": 0}, "idt-entry", 13, "is empty"),
    "not present": ({"p": 0}, "idt-entry", 11, "is not present"),
    "null": ({"selector": 0}, "idt-entry", 13, "has a null code selector"),
    "null with a level": ({"selector": 3}, "idt-entry", 13, "has a null code selector"),
    "a handler that is not mapped": ({"to": 0x40_0000}, "handler-not-mapped", 14, "of #PF at 0x0000000000400000"),
    "a handler that is not canonical": ({"to": 1 << 47}, "idt-entry", 13, "leads to 0x0000800000000000, which is"),
}  # fmt: skip


@pytest.mark.parametrize("name", GATES)
def test_gates_that_cannot_be_used(ram: Ram, name: str) -> None:
    changes, rule, vector, words = GATES[name]
    gate(ram, 14, **changes)
    obstacle = replay(here(ram, rsp=0x21_8000), 14).obstacle
    assert obstacle is not None and (obstacle.rule, obstacle.vector) == (rule, vector)
    assert words in obstacle.sentence


@pytest.mark.parametrize(
    ("descriptor", "vector", "words"),
    [
        (CODE, 0, ""),
        (CODE & ~(1 << 43), 13, "which is no code segment"),
        (CODE & ~(1 << 44), 13, "which is no code segment"),
        (CODE & ~(1 << 47), 11, "which is not present"),
        (CODE & ~(1 << 53), 13, "which is no 64-bit code segment"),
        (CODE | 1 << 54, 13, "which is no 64-bit code segment"),
    ],
)
def test_segments_of_a_handler(ram: Ram, descriptor: int, vector: int, words: str) -> None:
    put(ram, GDT + 8, descriptor)
    obstacle = replay(here(ram, rsp=0x21_8000), 14).obstacle
    assert (obstacle.vector if obstacle else 0) == vector
    assert words in (obstacle.sentence if obstacle else "")


def test_who_may_call_a_gate(ram: Ram) -> None:
    """INT n from level 3 needs a DPL of 3; an exception does not."""
    for dpl, software, is_refused in ((0, True, True), (2, True, True), (3, True, False), (0, False, False)):
        gate(ram, 3, dpl=dpl)
        obstacle = replay(here(ram, 3, rsp=0x21_8000), 3, software).obstacle
        assert (obstacle is not None) == is_refused
        if obstacle:
            assert f"has DPL {dpl}, the caller level 3" in obstacle.sentence


def test_an_error_code_is_a_word_more(ram: Ram) -> None:
    gate(ram, 6)
    for vector, software, words in ((14, False, 6), (14, True, 5), (6, False, 5)):
        for room in (words, words - 1):
            route = replay(here(ram, rsp=0x20_0000 + 8 * room + 8 * (room % 2)), vector, software)
            # A stack is a multiple of 16: five words need six.
            assert (route.obstacle is None) == (room + room % 2 >= words)


def test_what_is_not_known_is_said(ram: Ram) -> None:
    assert replay(here(ram, idt=-1), 14).missing == "IDTR is not known"
    assert replay(here(None), 14).missing == "there is no memory to read the gate from"
    assert replay(here(ram), 14).missing == "RSP is not known"
    assert replay(here(ram, 3, tr=-1), 14).missing == "TR is not known, and the stack comes from the TSS"
    assert replay(here(ram, gdt=-1, rsp=0x21_8000), 14).obstacle is None

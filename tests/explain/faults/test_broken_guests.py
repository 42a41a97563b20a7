"""Faults made on purpose, one thing broken in each, on machines that nobody here wrote: the stated
cause must be the true one, from the engine's events, from the log with memory, and from the log alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fivefold.arch import LA48, LA57, Flag, Level, PagingMode
from fivefold.explain import Explanation, explain, explain_event
from fivefold.machine import Guest, start
from fivefold.memory import open_source

RAM_MAP = "0-32M"
HIGH = 0xFFFF_FFFF_8000_0000
STACK = HIGH + 0x10000
PAGE = HIGH + 0x18000
USER = 0x40_0000_0000
FAR = 0x80_0000_0000
PT, PD, PDPT, PML4, PML5 = Level.PT, Level.PD, Level.PDPT, Level.PML4, Level.PML5
CR4_SMEP, CR4_SMAP, CR4_PKE = 1 << 20, 1 << 21, 1 << 22


def read(va: int) -> str:
    return f"movabsq ${va:#x}, %rbx\n movq (%rbx), %rax"


def write(va: int) -> str:
    return f"movabsq ${va:#x}, %rbx\n movq %rax, (%rbx)"


def jump(va: int) -> str:
    return f"movabsq ${va:#x}, %rbx\n jmp *%rbx"


def case(name: str, mode: PagingMode, **rest: Any) -> dict[str, Any]:
    """One row: what the guest is made of (see the laboratory) and what is true of it."""
    return {"name": name, "mode": mode, **rest}


CASES: list[dict[str, Any]] = [
    # -- absent entries, at every level
    case("direct map without PML5", LA57, snippet=read(0xFF11 << 48), rule="not-present", level=PML5,
         address=0xFF11 << 48, access="read"),
    case("direct map without PML4", LA48, snippet=write(0xFFFF_8880_0000_1000), rule="not-present",
         level=PML4, address=0xFFFF_8880_0000_1000, access="write"),
    case("vmalloc without PDPT", LA57, snippet=read(0xFFFF_FFFF_4000_0000), rule="not-present", level=PDPT,
         address=0xFFFF_FFFF_4000_0000, access="read"),
    case("image without PD entry", LA48, snippet=jump(HIGH + 0x40_0000), rule="not-present", level=PD,
         address=HIGH + 0x40_0000, access="fetch"),
    case("page without PTE", LA57, snippet=write(PAGE + 8), rule="not-present", level=PT, address=PAGE + 8,
         access="write", broken=lambda bench: bench.clear(PAGE, PT)),
    # -- rights
    case("read-only page", LA57, snippet=write(PAGE), rule="write-protected", level=PT, address=PAGE,
         access="write", broken=lambda bench: bench.without(PAGE, PT, Flag.RW)),
    case("read-only above", LA48, user_maps=True, snippet=write(USER + 16), rule="write-protected",
         level=PDPT, address=USER + 16, access="write", broken=lambda bench: bench.without(USER, PDPT, Flag.RW)),
    case("no-execute page", LA48, snippet=jump(PAGE), rule="no-execute", level=PT, address=PAGE,
         access="fetch", broken=lambda bench: bench.with_bits(PAGE, PT, Flag.NX)),
    case("no-execute above", LA57, user_maps=True, snippet=jump(USER), rule="no-execute", level=PDPT,
         address=USER, access="fetch", broken=lambda bench: bench.with_bits(USER, PDPT, Flag.NX)),
    case("user reads the kernel", LA57, user=read(PAGE), rule="user-supervisor", level=PML5, address=PAGE,
         access="read", broken=lambda bench: bench.without(PAGE, PML5, Flag.US)),
    case("user writes read-only", LA48, user=write(USER + 0x1000), rule="write-protected", level=PT,
         address=USER + 0x1000, access="write", broken=lambda bench: bench.map(USER + 0x1000, 0x21B000, 0x5)),
    case("SMEP", LA57, user_maps=True, cr4=CR4_SMEP, snippet=jump(USER), rule="smep", level=PT, address=USER,
         access="fetch"),
    case("SMAP", LA57, user_maps=True, cr4=CR4_SMAP, snippet=read(USER + 8), rule="smap", level=PT,
         address=USER + 8, access="read"),
    case("protection key", LA57, user_maps=True, cr4=CR4_PKE,
         snippet=f"movl $0xc, %eax\n wrpkru\n {read(USER)}", rule="protection-key", level=PT, address=USER,
         access="read", broken=lambda bench: bench.with_bits(USER, PT, 1 << 59)),
    # -- malformed entries
    case("address bit 45", LA57, snippet=read(PAGE), rule="reserved-bit", level=PT, address=PAGE,
         access="read", broken=lambda bench: bench.with_bits(PAGE, PT, 1 << 45)),
    case("PS in the PML4", LA48, snippet=read(FAR), rule="reserved-bit", level=PML4, address=FAR,
         access="read", broken=lambda bench: bench.map(FAR, 0x21B000, 3) or bench.with_bits(FAR, PML4, 0x80)),
    case("XD without NXE", LA57, efer=0x500, snippet=read(PAGE), rule="reserved-bit", level=PT, address=PAGE,
         access="read", broken=lambda bench: bench.with_bits(PAGE, PT, Flag.NX)),
    case("misaligned 2 MiB page", LA57, user_maps=True, snippet=read(USER), rule="reserved-bit", level=PD,
         address=USER, access="read", broken=lambda bench: bench.edit(USER, PD, lambda raw: 0x20_2087)),
    # -- addresses
    case("not canonical", LA57, snippet=read(0x0100_0000_0000_0000), rule="non-canonical",
         address=0x0100_0000_0000_0000, access="read"),
    case("canonical in the other mode", LA48, snippet=write(0xFF11_0000_0000_0000), rule="non-canonical",
         address=0xFF11_0000_0000_0000, access="write"),
    case("push not canonical", LA48, snippet="movabsq $0x800000000000, %rsp\n addq $8, %rsp\n pushq %rax",
         rule="non-canonical", address=0x8000_0000_0000, access="write"),
    case("jump not canonical", LA57, snippet=jump(0x0123_0000_0000_0000), rule="non-canonical",
         address=0x0123_0000_0000_0000, access="fetch"),
    # -- control registers
    case("LA57 on in long mode", LA48, snippet="movq %cr4, %rax\n orq $0x1000, %rax\n site: movq %rax, %cr4",
         rule="mode-change-refused"),
    case("LA57 off in long mode", LA57, snippet="movq %cr4, %rax\n andq $~0x1000, %rax\n site: movq %rax, %cr4",
         rule="mode-change-refused"),
    case("PAE off in long mode", LA57, snippet="movq %cr4, %rcx\n andq $~0x20, %rcx\n site: movq %rcx, %cr4",
         rule="mode-change-refused"),
    # -- tables
    case("table beyond memory", LA57, snippet=read(FAR), rule="table-outside-memory", level=PD, address=FAR,
         access="read", broken=lambda bench: bench.map(FAR, 0x21B000, 3) or bench.replace(FAR, PD, 0x70_0000_0003),
         log_rules=frozenset({"not-present"})),
    case("root of four levels in five", LA57, tables_of=LA48, snippet="", rule="wrong-depth", level=PML4,
         address=None, access="fetch", log_rules=frozenset({"not-present"})),
    case("root of five levels in four", LA48, tables_of=LA57, snippet="", rule="wrong-depth", level=PD,
         access="fetch", log_rules=frozenset({"not-present"})),
    # -- delivery
    case("INT3 past the limit", LA57, snippet="int3", idt_limit="0x2f", rule="idt-limit"),
    case("UD2 past the limit", LA48, snippet="ud2", idt_limit="0", rule="idt-limit"),
    case("INT3 without a gate", LA57, snippet="int3", rule="idt-entry",
         says="the gate of #BP is empty; expected an interrupt or trap gate (0xe, 0xf)"),
    case("INT3, gate not present", LA48, snippet="int3", rule="idt-entry",
         says="the gate of #BP is not present", broken=lambda bench: bench.gate(3, HIGH, 0x0E00)),
    case("UD2, gate of data", LA57, snippet="ud2", rule="idt-entry",
         says="the gate of #UD has type 0x12; expected", broken=lambda bench: bench.gate(6, HIGH, 0x9200)),
    case("UD2, IDT not mapped", LA57, snippet="ud2", idt_base="0xfffffe0000000000", rule="idt-not-mapped",
         level=PML4, address=0xFFFF_FE00_0000_0060),
    case("INT3, IDT not mapped", LA48, snippet="int3", idt_base="0xffffffff80400000", rule="idt-not-mapped",
         level=PD, address=HIGH + 0x40_0030),
    case("INT3, handler not mapped", LA57, snippet="int3", rule="handler-not-mapped", level=PT,
         address=HIGH + 0xE010, access="fetch", broken=lambda bench: bench.gate(3, HIGH + 0xE010, 0xEE00)),
    case("UD2, handler no-execute", LA48, snippet="ud2", rule="handler-not-mapped", level=PT,
         address=PAGE, access="fetch",
         broken=lambda bench: bench.gate(6, PAGE) or bench.with_bits(PAGE, PT, Flag.NX)),
    # Each fetch of the handler faults again; Unicorn does not remember as many as the stack holds.
    case("#PF, handler not mapped", LA57, snippet=read(0xFF11 << 48), rule="not-present", level=PML5,
         address=0xFF11 << 48, engines=("qemu",), broken=lambda bench: bench.gate(14, HIGH + 0xE010)),
    case("UD2, selector past the GDT", LA48, snippet="ud2", rule="idt-entry", says="past the GDT's limit 0x37",
         broken=lambda bench: bench.gate(6, HIGH, 0x8E00, 0x40)),
    case("UD2, selector of data", LA57, snippet="ud2", rule="idt-entry", says="which is no code segment",
         broken=lambda bench: bench.gate(6, HIGH, 0x8E00, 0x10)),
    # -- the stack
    case("push below the stack", LA57, snippet=f"movabsq ${HIGH + 0xF000:#x}, %rsp\n pushq %rax",
         rule="not-present", level=PT, address=HIGH + 0xEFF8, access="write"),
    case("call below the stack", LA48, snippet=f"movabsq ${HIGH + 0xF000:#x}, %rsp\n call handler",
         rule="not-present", level=PT, address=HIGH + 0xEFF8, access="write"),
    case("INT3 on no stack", LA57, snippet=f"movabsq ${HIGH + 0xF000:#x}, %rsp\n int3", rule="not-present",
         level=PT, address=HIGH + 0xEFF8, says="word 1 of the frame could not be pushed",
         broken=lambda bench: bench.gate(3, HIGH)),
]  # fmt: skip


def by_name(row: dict[str, Any]) -> str:
    return str(row["name"]).replace(" ", "_")


def check(told: Explanation, row: dict[str, Any], outcome: str) -> None:
    """The cause, the mode and the outcome are the true ones."""
    cause = told.cause
    assert cause.rule == row["rule"], cause
    assert told.mode == row["mode"].name
    assert told.outcome == outcome
    assert cause.level == row.get("level"), cause
    if row.get("address") is not None:
        assert cause.address == row["address"], cause
    assert row.get("says", "") in cause.sentence
    if row.get("access"):
        guilty = next(one for one in told.exceptions if not one.finding.legitimate)
        assert guilty.access == row["access"], guilty


ON_UNICORN = [row for row in CASES if "unicorn" in row.get("engines", ("unicorn",))]


@pytest.mark.parametrize("row", ON_UNICORN, ids=by_name)
def test_on_unicorn(row: dict[str, Any], lab: Any) -> None:
    bench = lab.build(lab.case(**row))
    site = bench.labels.get("site", 0)
    sites = frozenset({site, site - 0x20_0000 + HIGH}) if site else frozenset()
    with start("unicorn", Guest(lab.image_of(bench), memory=32 << 20, sites=sites)) as machine:
        event = machine.run(5.0)
        check(explain_event(event, machine), row, "triple-fault")


@pytest.mark.qemu
@pytest.mark.parametrize("row", CASES, ids=by_name)
def test_on_qemu(row: dict[str, Any], lab: Any, tmp_path: Path) -> None:
    bench = lab.build(lab.case(**row))
    log, memory = lab.run_qemu(bench, tmp_path)
    with open_source(str(memory), ram_map=RAM_MAP) as source:
        told = explain(log, source)
    check(told, row, told.outcome)
    alone = explain(log)
    assert alone.cause.rule in (row.get("log_rules") or {row["rule"]}), alone.cause


@pytest.mark.qemu
def test_a_fault_that_was_handled(lab: Any, tmp_path: Path) -> None:
    """The handler ran, of which the log shows nothing: the same cause, and no catastrophe."""
    row = next(row for row in CASES if row["name"] == "read-only page")
    log, memory = lab.run_qemu(lab.build(lab.case(**row, gates=True)), tmp_path)
    with open_source(str(memory), ram_map=RAM_MAP) as source:
        told = explain(log, source)
    check(told, row, "unknown")
    assert "its handler was entered, so it may be intended" not in told.cause.evidence

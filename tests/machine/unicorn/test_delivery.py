"""Delivery through descriptor tables in plain memory, down to each refusal's error code."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fivefold.arch import LA57, ControlState, Cpu
from fivefold.errors import MachineError
from fivefold.machine import Shutdown, TableRegister
from fivefold.machine.unicorn.delivery import Trap, deliver
from fivefold.machine.vcpu import FLAT_CODE32, FLAT_CODE64, FLAT_DATA, Vcpu, VcpuSegment
from fivefold.memory import Ram

IDT, GDT, TSS, STACK, IST1, RSP0 = 0x10000, 0x11000, 0x12000, 0x20000, 0x21000, 0x22000
HANDLER = 0x30000
ABSENT = 0x40000
"""A page that is not mapped."""

CPU = Cpu(phys_bits=46)
CODE = 0x08
USER_CODE = FLAT_CODE64 | 3 << 45
CONFORMING = FLAT_CODE64 | 1 << 42
DESCRIPTORS = (0, FLAT_CODE64, FLAT_DATA, FLAT_CODE32, USER_CODE, FLAT_CODE64 & ~(1 << 47), CONFORMING)


def gate(selector=CODE, offset=HANDLER, flags=0x8E, ist=0):
    raw = offset & 0xFFFF | selector << 16 | ist << 32 | flags << 40 | (offset >> 16 & 0xFFFF) << 48
    return raw.to_bytes(8, "little") + (offset >> 32).to_bytes(8, "little")


@pytest.fixture
def ram():
    """1 MiB, mapped page by page at its own address under five levels but for `ABSENT`; a GDT and a TSS."""
    memory = Ram.of_size(0x100000, start=0x1000)
    for table in (0x1000, 0x2000, 0x3000, 0x4000):
        memory.write(table, (table + 0x1000 | 7).to_bytes(8, "little"))
    for page in range(0x1000, 0x100000, 0x1000):
        memory.write(0x5000 + page // 512, (0 if page == ABSENT else page | 7).to_bytes(8, "little"))
    for number, raw in enumerate(DESCRIPTORS):
        memory.write(GDT + 8 * number, raw.to_bytes(8, "little"))
    memory.write(TSS + 4, RSP0.to_bytes(8, "little"))
    memory.write(TSS + 0x24, IST1.to_bytes(8, "little"))
    memory.write(TSS + 0x2C, (1 << 63).to_bytes(8, "little"))
    for vector in (8, 13, 14):
        memory.write(IDT + 16 * vector, gate())
    return memory


@pytest.fixture
def vcpu():
    state = ControlState.long(LA57, 0x1000)
    return Vcpu(
        rip=0x50000,
        rsp=STACK,
        rflags=0x746,
        cr0=state.cr0,
        cr2=0x1111,
        cr3=state.cr3,
        cr4=state.cr4,
        efer=state.efer,
        cpl=0,
        cs=VcpuSegment.from_descriptor(CODE, FLAT_CODE64),
        ss=VcpuSegment.from_descriptor(0x10, FLAT_DATA),
        tr=VcpuSegment(0x38, TSS, 0x67, 0x8B00),
        ldt=VcpuSegment(0),
        gdt=TableRegister(GDT, 8 * len(DESCRIPTORS) - 1),
        idt=TableRegister(IDT, 0xFFF),
    )


def words(ram, at, count):
    return [int.from_bytes(ram.read(at + 8 * n, 8), "little") for n in range(count)]


def test_frame_of_a_fault(ram, vcpu):
    ram.write(IDT + 16 * 14, gate())

    found = deliver(Trap(14, 2, cr2=0x1234), vcpu, ram, CPU)

    # RF is set in a fault's frame; TF, NT, RF and, by an interrupt gate, IF are clear in the handler.
    assert words(ram, found.vcpu.rsp, 6) == [2, 0x50000, CODE, 0x10746, STACK, 0x10]
    assert found.vcpu == replace(vcpu, rip=HANDLER, rsp=STACK - 48, rflags=0x446, cr2=0x1234, cs=vcpu.cs)
    assert [str(record) for record in found.records] == ["#PF(0x2) at 0x0000000000001234, rip 0x0000000000050000"]


def test_trap_gate_keeps_interrupts_on_and_odd_stacks_are_aligned(ram, vcpu):
    ram.write(IDT + 16 * 3, gate(flags=0x8F))

    found = deliver(Trap(3, software=True, length=1), replace(vcpu, rsp=STACK - 3, rflags=0x202), ram, CPU)

    assert found.vcpu.rflags == 0x202
    assert found.vcpu.rsp == STACK - 16 - 40
    assert words(ram, found.vcpu.rsp, 5) == [0x50000, CODE, 0x202, STACK - 3, 0x10]


@pytest.mark.parametrize(("ist", "top"), [(0, RSP0), (1, IST1)])
def test_from_user_mode_the_stack_comes_from_the_tss(ram, vcpu, ist, top):
    ram.write(IDT + 16 * 6, gate(ist=ist))
    user = replace(
        vcpu, cpl=3, cs=VcpuSegment.from_descriptor(0x23, USER_CODE), ss=VcpuSegment.from_descriptor(0x1B, FLAT_DATA)
    )

    found = deliver(Trap(6), user, ram, CPU).vcpu

    assert (found.cpl, found.cs.selector, found.ss.selector, found.rsp) == (0, CODE, 0, top - 40)
    assert words(ram, found.rsp, 5) == [0x50000, 0x23, 0x10746, STACK, 0x1B]


def test_conforming_handler_keeps_the_privilege(ram, vcpu):
    ram.write(IDT + 16 * 6, gate(selector=0x30))
    user = replace(vcpu, cpl=3, cs=VcpuSegment.from_descriptor(0x23, USER_CODE))

    found = deliver(Trap(6), user, ram, CPU).vcpu

    assert (found.cpl, found.cs.selector, found.rsp) == (3, 0x33, STACK - 40)


def test_accessed_and_dirty_bits_are_set_as_by_the_processor(ram, vcpu):
    deliver(Trap(13, 0), vcpu, ram, CPU)

    entry = words(ram, 0x5000 + (STACK - 0x1000) // 512, 1)[0]
    assert entry & 0x60 == 0x60
    assert words(ram, 0x5000 + IDT // 512, 1)[0] & 0x60 == 0x20


# The gate of vector 6 or what is wrong with it, and the exception that is delivered instead.
REFUSED = {
    "beyond the limit": (None, {"idt": TableRegister(IDT, 16 * 6 + 14)}, 13, 6 << 3 | 3),
    "wrong type": (gate(flags=0x8C), {}, 13, 6 << 3 | 3),
    "not present": (gate(flags=0x0E), {}, 11, 6 << 3 | 3),
    "null selector": (gate(selector=0x03), {}, 13, 1),
    "selector beyond the GDT": (gate(selector=0x100), {}, 13, 0x101),
    "data segment": (gate(selector=0x10), {}, 13, 0x11),
    "32-bit code": (gate(selector=0x18), {}, 13, 0x19),
    "less privileged code": (gate(selector=0x20), {}, 13, 0x21),
    "absent code": (gate(selector=0x28), {}, 11, 0x29),
    "selector in an empty LDT": (gate(selector=0x0C), {"ldt": VcpuSegment(0, 0, 0)}, 13, 0x0D),
    "stack of the IST beyond the TSS": (gate(ist=7), {"tr": VcpuSegment(0x38, TSS, 0x50, 0x8B00)}, 10, 0x39),
    "stack of the IST not canonical": (gate(ist=2), {}, 12, 1),
    "stack absent": (gate(), {"rsp": ABSENT + 0x800}, 14, 2),
    "IDT absent": (None, {"idt": TableRegister(ABSENT, 0xFFF)}, 14, 0),
    "GDT absent": (gate(), {"gdt": TableRegister(ABSENT, 0xFF)}, 14, 0),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_delivery_raises_the_next_exception(ram, vcpu, name):
    entry, changes, vector, code = REFUSED[name]
    if entry is not None:
        ram.write(IDT + 16 * 6, entry)
    for number in (10, 11, 12):
        ram.write(IDT + 16 * number, gate(offset=HANDLER + number))

    found = deliver(Trap(6), replace(vcpu, **changes), ram, CPU)

    second = found.records[1]
    assert (second.vector, second.error_code) == (vector, code)
    assert found.records[0].vector == 6


def test_software_interrupt_that_is_refused_points_back_at_itself(ram, vcpu):
    ram.write(IDT + 16 * 0x80, gate(flags=0x8E))
    user = replace(vcpu, cpl=3, rip=0x50002, cs=VcpuSegment.from_descriptor(0x23, USER_CODE))

    found = deliver(Trap(0x80, software=True, length=2), user, ram, CPU)

    # EXT is clear: the program asked for it.
    assert [(record.vector, record.error_code) for record in found.records] == [(0x80, None), (13, 0x80 << 3 | 2)]
    assert words(ram, found.vcpu.rsp, 2) == [0x80 << 3 | 2, 0x50000]


def test_two_page_faults_are_a_double_fault(ram, vcpu):
    ram.write(IDT + 16 * 8, gate(ist=1))

    found = deliver(Trap(14, 0, cr2=0x9999), replace(vcpu, rsp=ABSENT + 0x10), ram, CPU)

    assert [record.vector for record in found.records] == [14, 14, 8]
    assert words(ram, IST1 - 48, 2) == [0, 0x50000]
    assert found.vcpu.cr2 == ABSENT + 8


def test_page_fault_while_delivering_gp_is_serial(ram, vcpu):
    ram.write(IDT + 16 * 14, gate(ist=1))

    found = deliver(Trap(13, 0), replace(vcpu, rsp=ABSENT + 0x10), ram, CPU)

    assert [record.vector for record in found.records] == [13, 14]
    assert found.vcpu.rsp == IST1 - 48


def test_no_way_out_is_a_shutdown(ram, vcpu):
    event = deliver(Trap(13, 0), replace(vcpu, idt=TableRegister(IDT, 0)), ram, CPU)

    assert isinstance(event, Shutdown)
    assert [record.vector for record in event.records] == [13, 13, 8, 13]


def test_interrupt_from_outside_does_not_escalate(ram, vcpu):
    found = deliver(Trap(0x40, external=True), replace(vcpu, idt=TableRegister(IDT, 0x1FF)), ram, CPU)

    assert [(record.vector, record.error_code) for record in found.records] == [(0x40, None), (13, 0x40 << 3 | 3)]


def test_what_is_not_modelled_is_said(ram, vcpu):
    with pytest.raises(MachineError, match=r"^vector 6 in real mode is not modelled by this engine$"):
        deliver(Trap(6), replace(vcpu, cr0=0x10, efer=0), ram, CPU)
    with pytest.raises(MachineError, match=r"^exceptions under PAE paging .* are not modelled by this engine$"):
        deliver(Trap(6), replace(vcpu, efer=0), ram, CPU)
    ram.write(IDT + 8 * 6, gate(flags=0x85)[:8])
    with pytest.raises(MachineError, match=r"^vector 6 has a task gate, which this engine does not model$"):
        deliver(Trap(6), replace(vcpu, cr0=0x11, efer=0, cs=VcpuSegment.from_descriptor(8, FLAT_CODE32)), ram, CPU)


def test_protected_mode_from_user_code_changes_the_stack(ram, vcpu):
    ram.write(IDT + 8 * 14, gate(selector=0x18)[:8])
    ram.write(TSS + 4, RSP0.to_bytes(4, "little") + (0x10).to_bytes(4, "little"))
    user = replace(
        vcpu,
        cr0=0x11,
        efer=0,
        cpl=3,
        cs=VcpuSegment.from_descriptor(0x1B, FLAT_CODE32 | 3 << 45),
        ss=VcpuSegment.from_descriptor(0x23, FLAT_DATA | 3 << 45),
    )

    found = deliver(Trap(14, 4, cr2=0x77), user, ram, CPU).vcpu

    frame = [int.from_bytes(ram.read(RSP0 - 24 + 4 * n, 4), "little") for n in range(6)]
    assert frame == [4, 0x50000, 0x1B, 0x10746, STACK, 0x23]
    assert (found.cpl, found.rsp, found.cs.selector, found.ss.selector) == (0, RSP0 - 24, 0x18, 0x10)

"""What only the engine in this process promises."""

from __future__ import annotations

import gc
import signal
import struct
import subprocess
import sys
import time
import weakref

import pytest

from fivefold.errors import ImageError, MachineError
from fivefold.machine import CpuidOverride, Exit, Guest, Halted, LimitReached, MapRow, Shutdown, Timeout, start
from fivefold.machine.unicorn import core
from fivefold.machine.unicorn.core import places
from fivefold.units import GIB, MIB

# Under `long_mode`, a #GP handler that notes RIP and the error code, and goes on at R14.
WITH_GP = "gate 13, on_gp"
ON_GP = """
on_gp:
  popq %rcx
  movq (%rsp), %rbx
  incl %ebp
  movq %r14, (%rsp)
  iretq
"""

# The depth it runs in, the CPU, how many #GP the guest must see, what comes before, the instruction.
POLICED = """
la57-on-in-long-mode      | 4 | la57 | 1 | movl $0x1020, %eax                                    | movq %rax, %cr4
la57-off-in-long-mode     | 5 | la57 | 1 | movl $0x20, %eax                                      | movq %rax, %cr4
la57-kept-in-long-mode    | 5 | la57 | 0 | movl $0x1020, %eax                                    | movq %rax, %cr4
la57-without-feature      | 4 | la48 | 1 | movl $0x1020, %eax                                    | movq %rax, %cr4
reserved-cr4-bit          | 4 | la57 | 1 | movl $0x8020, %eax                                    | movq %rax, %cr4
pae-off-in-long-mode      | 4 | la57 | 1 | xorl %eax, %eax                                       | movq %rax, %cr4
legal-cr4-bit             | 4 | la57 | 0 | movl $0xa0, %eax                                      | movq %rax, %cr4
paging-off-in-64-bit      | 4 | la57 | 1 | movl $0x11, %eax                                      | movq %rax, %cr0
paging-without-protection | 4 | la57 | 1 | movl $0x80000010, %eax                                | movq %rax, %cr0
cr3-bit-63                | 4 | la57 | 1 | movabsq $0x8000000000301000, %rax                     | movq %rax, %cr3
cr3-above-width           | 4 | la57 | 1 | movabsq $0x0100000000301000, %r9                      | movq %r9, %cr3
cr3-same                  | 4 | la57 | 0 | movl $0x301000, %r9d                                  | movq %r9, %cr3
efer-reserved-bit         | 4 | la57 | 1 | movl $0xc0000080, %ecx; movl $0x502, %eax; cltd       | wrmsr
efer-lme-off              | 4 | la57 | 1 | movl $0xc0000080, %ecx; xorl %eax, %eax; cltd         | wrmsr
efer-nxe-on               | 4 | la57 | 0 | movl $0xc0000080, %ecx; movl $0xd01, %eax; cltd       | wrmsr
lstar-non-canonical       | 4 | la48 | 1 | movl $0xc0000082, %ecx; movl $0x8000, %edx            | wrmsr
lstar-canonical-by-width  | 4 | la57 | 0 | movl $0xc0000082, %ecx; movl $0x8000, %edx            | wrmsr
lidt-non-canonical        | 4 | la48 | 1 | leaq bad(%rip), %rax                                  | lidt (%rax)
lidt-canonical-by-width   | 4 | la57 | 0 | leaq bad(%rip), %rax                                  | lidt (%rax)
lgdt-non-canonical        | 4 | la48 | 1 | nop                                                   | lgdt bad(%rip)
"""
BAD_TABLE = "bad: .word 0xfff\n .quad 0x0000800000000000\n"


def policed_cases():
    for line in POLICED.strip().splitlines():
        name, levels, cpu, faults, before, site = (field.strip() for field in line.split("|"))
        yield pytest.param(int(levels), cpu, int(faults), before.replace(";", "\n"), site, id=name)


@pytest.mark.parametrize(("levels", "cpu", "faults", "before", "site"), list(policed_cases()))
def test_illegal_writes_raise_gp_in_the_guest(unicorn, workshop, levels, cpu, faults, before, site):
    body = f"leaq after(%rip), %r14\n{before}\nsite: {site}\nafter: exit 1\n{BAD_TABLE}{ON_GP}"
    code = workshop.long_code(body, levels=levels, before=WITH_GP)
    machine = unicorn(code.image, cpu=cpu, sites=frozenset({code.labels["site"]}))

    assert Exit(1) == machine.run(10)
    registers = machine.registers()
    assert faults == registers.rbp & 0xFFFFFFFF
    if faults:
        assert (code.labels["site"], 0) == (registers.rbx, registers.rcx)


def test_la57_on_a_cpu_without_it_is_a_triple_fault_without_an_idt(unicorn, workshop):
    code = workshop.assemble("movl $0x1020, %eax\nsite: movl %eax, %cr4\nexit 1")
    machine = unicorn(code.image, cpu="la48", sites=frozenset({code.labels["site"]}))

    event = machine.run(10)

    assert isinstance(event, Shutdown)
    assert (13, 0, code.labels["site"]) == (event.records[0].vector, event.records[0].error_code, event.records[0].rip)


def test_code_below_one_mebibyte_is_policed_without_being_listed(unicorn, workshop):
    copied = "movl $0x1020, %eax\n movl %eax, %cr4\n exit 1"
    body = f"""
  movl $BASE + 1f - start, %esi
  movl $0x8000, %edi
  movl $64, %ecx
  rep movsb
  ljmp *(BASE + far - start)
far: .long 0x8000
  .word 8
1: {copied}
"""
    image = workshop.assemble(
        "lgdt BASE + p - start\njmp 2f\n.balign 8\ng: .quad 0, 0x00cf9b000000ffff\n"
        "p: .word 15\n .long BASE + g - start\n2:" + body
    ).image

    assert isinstance(unicorn(image, cpu="la48").run(5), Shutdown)
    assert Exit(1) == unicorn(image, cpu="la57").run(5)


# -- 64-bit entries ------------------------------------------------------------------------

ENTRY64 = """
.code64
  movq %cr4, %rbp
  movl (%rsi), %r12d
  pushq %rax
  popq %rax
  movw $0x10, %ax
  movw %ax, %ds
  leaq start(%rip), %r13
  exit 3
"""


@pytest.mark.parametrize(
    ("entry", "cpu", "cr4"), [("long48", "la57", 0x20), ("long48", "la48", 0x20), ("long57", "la57", 0x1020)]
)
@pytest.mark.parametrize("at", [0x200000, 0x140000000, 0x1BFE00000])
def test_64_bit_entry_anywhere(unicorn, workshop, entry, cpu, cr4, at):
    image = workshop.elf(workshop.assemble(ENTRY64).data, at=at)
    machine = unicorn(image, entry=entry, entry64=at, cpu=cpu, memory=6 * GIB)

    assert Exit(3) == machine.run(10)
    registers = machine.registers()
    assert (cr4, 0x336EC578, at, 0x500, 8) == (
        registers.rbp,
        registers.r12,
        registers.r13,
        registers.efer,
        registers.cs,
    )


def test_five_level_entry_needs_la57(unicorn, workshop):
    with pytest.raises(MachineError, match=r"^entry long57 needs a CPU with LA57, and this one has four levels only$"):
        unicorn(workshop.assemble(ENTRY64).image, entry="long57", entry64=0x200000, cpu="la48")


def test_64_bit_entry_needs_its_address(unicorn, workshop):
    with pytest.raises(MachineError, match=r"^entry long48 needs the address of the image's 64-bit entry$"):
        unicorn(workshop.assemble(ENTRY64).image, entry="long48")


# -- limits, injection, exceptions -----------------------------------------------------------


def test_instruction_limit_is_exact_and_the_guest_goes_on(unicorn, workshop):
    machine = unicorn(workshop.assemble("movl $1000, %ecx\n1: decl %ecx\njnz 1b\nexit 2").image)

    assert LimitReached(501, 0x200005) == machine.run(10, limit=501)
    assert machine.instructions == 501
    assert machine.registers().rcx == 750
    assert LimitReached(502, 0x200006) == machine.run(10, limit=1)
    assert Exit(2) == machine.run(10)
    assert machine.instructions > 2000


def test_limit_is_kept_over_exceptions(unicorn, workshop):
    code = workshop.long_code(
        "1: ud2\non_ud: incl %ebp\naddq $2, (%rsp)\nsubq $2, (%rsp)\niretq", before="gate 6, on_ud"
    )
    machine = unicorn(code.image)

    event = machine.run(10, limit=8000)

    assert LimitReached(8000, event.rip) == event
    assert machine.instructions == 8000


def test_timeout_ends_a_guest_that_faults_for_ever(unicorn, workshop):
    machine = unicorn(workshop.long_code("1: ud2\non_ud: iretq", before="gate 6, on_ud").image)

    assert isinstance(machine.run(0.2), Timeout)


def test_injected_interrupt_and_nmi_reach_their_handlers(unicorn, workshop):
    body = "spin: cmpl $3, %ebp\njne spin\nexit 1\non_nmi: orl $1, %ebp\niretq\non_irq: orl $2, %ebp\niretq"
    machine = unicorn(workshop.long_code(body, before="gate 2, on_nmi\ngate 0x40, on_irq").image)
    assert isinstance(machine.run(10, limit=8000), LimitReached)

    machine.inject(2)
    machine.inject(0x40)

    assert Exit(1) == machine.run(10)
    assert [record.vector for record in machine.exceptions] == [2, 0x40]
    with pytest.raises(ValueError, match=r"^vector 14 needs an error code$"):
        machine.inject(14)
    with pytest.raises(ValueError, match=r"^vector 6 has no error code$"):
        machine.inject(6, 0)


def test_interrupt_waits_until_the_guest_lets_it_in(unicorn, workshop):
    machine = unicorn(workshop.long_code("spin: jmp spin\nnop\nnop\non_irq: exit 7", before="gate 0x40, on_irq").image)
    machine.interrupt(0x40)
    assert isinstance(machine.run(10, limit=8000), LimitReached)
    assert machine.pending == (0x40,)

    machine.memory.write(machine.registers().rip, b"\xfb\xeb\xfe")  # sti; jmp .

    assert isinstance(machine.run(10, limit=10), LimitReached)
    assert machine.run(10) == Exit(7)
    assert machine.pending == ()
    with pytest.raises(ValueError, match=r"^interrupt 2; expected 32 to 255$"):
        machine.interrupt(2)


def test_software_interrupt_needs_a_gate_for_its_privilege(unicorn, workshop):
    body = """
  pushq $0x1b
  pushq $0x340000
  pushq $2
  pushq $0x23
  leaq 1f(%rip), %rbx
  pushq %rbx
  iretq
1: int $0x81
  incl %ebp
site: int $0x80
on_81: incl %ebp
  iretq
on_gp: popq %rcx
  movq (%rsp), %rbx
  exit 1
"""
    code = workshop.long_code(body, before="gate 0x81, on_81, 0, 0xee00\ngate 0x80, on_81\ngate 13, on_gp")
    machine = unicorn(code.image)

    assert Exit(1) == machine.run(10)
    registers = machine.registers()
    assert (2, 0x80 << 3 | 2, code.labels["site"]) == (registers.rbp, registers.rcx, registers.rbx)


def test_exceptions_in_32_bit_protected_mode(unicorn, workshop):
    machine = unicorn(
        workshop.assemble("""
  movl $0x300000, %esp
  lgdt BASE + gp - start
  movl $BASE + handler - start, %eax
  movw %ax, BASE + idt6 - start
  shrl $16, %eax
  movw %ax, BASE + idt6 - start + 6
  lidt BASE + ip - start
site: ud2
  exit 4
handler:
  addl $2, (%esp)
  popl %ebx
  pushl %ebx
  iretl
.balign 8
g: .quad 0, 0x00cf9b000000ffff, 0x00cf93000000ffff
gp: .word 23
  .long BASE + g - start
idt: .fill 6, 8, 0
idt6: .word 0, 8, 0x8e00, 0
ip: .word 55
  .long BASE + idt - start
""").image
    )

    assert Exit(4) == machine.run(10)
    assert "#UD, rip" in str(machine.exceptions[0])
    assert machine.exceptions[0].rip + 2 == machine.registers().rbx


def test_memory_written_between_runs_is_seen_as_code_and_as_table(unicorn, workshop):
    body = "movl $0x600000, %ebx\nspin: nop\ncmpl $7, (%rbx)\njne spin\nexit 4"
    code = workshop.long_code(body)
    machine = unicorn(code.image)
    assert isinstance(machine.run(10, limit=8000), LimitReached)

    machine.memory.write(0x800000, b"\7")
    machine.memory.write(0x303018, (0x800087).to_bytes(8, "little"))
    assert Exit(4) == machine.run(1)

    machine = unicorn(code.image)
    assert isinstance(machine.run(10, limit=8000), LimitReached)
    machine.memory.write(code.labels["spin"], b"\xf4")
    assert Halted(code.labels["spin"] + 1) == machine.run(1)


def test_empty_bus_reads_ones(unicorn, workshop):
    machine = unicorn(
        workshop.assemble("movl 0xfee00020, %ebp\nmovl %ebp, 0xb8000\ninb $0x71, %al\nmovb %al, %bl\nexit 1").image
    )

    assert Exit(1) == machine.run(10)
    assert (machine.registers().rbp, machine.registers().rbx & 0xFF) == (0xFFFFFFFF, 0xFF)


# -- processors -----------------------------------------------------------------------------

CPUID = """
  xorl %eax, %eax
  cpuid
  movl %eax, %ebp
  movl $7, %eax
  xorl %ecx, %ecx
  cpuid
  movl %ecx, %esi
  exit 1
"""


@pytest.mark.parametrize("model", ["PHENOM", "KVM32", "OPTERON_G1", "QEMU32", "486"])
def test_models_whose_maximum_leaf_is_below_seven(unicorn, workshop, model):
    machine = unicorn(workshop.assemble(CPUID).image, cpu=model)

    assert Exit(1) == machine.run(10)
    assert machine.registers().rbp < 7
    assert not machine.cpu.la57


def test_cpuid_can_be_overridden(unicorn, workshop):
    overrides = (CpuidOverride(0, None, 6, 1, 2, 3), CpuidOverride(7, 0, 0, 0, 1 << 16, 0))
    machine = unicorn(workshop.assemble(CPUID).image, cpu="la48", cpuid=overrides)

    assert Exit(1) == machine.run(10)
    assert (machine.registers().rbp, machine.registers().rsi) == (6, 1 << 16)
    assert not machine.cpu.la57, "leaf 7 is above the maximum leaf"


def test_hidden_state_is_found_in_this_version_of_unicorn():
    found = places()

    assert None not in (found.in_flight, found.error_code, found.is_software)


# -- memory ---------------------------------------------------------------------------------


def test_large_guest_starts_at_once_and_costs_nothing(unicorn, workshop):
    begun = time.process_time()
    machine = unicorn(workshop.assemble("exit 1").image, memory=256 * GIB)

    assert Exit(1) == machine.run(10)
    # Not a benchmark: touching the memory would take minutes.
    assert time.process_time() - begun < 5


def test_memory_map_of_ones_own(unicorn, workshop):
    rows = (
        MapRow(0x1000, 0x80000),
        MapRow(0x200000, 0x280000),
        MapRow(0x280000, 0x300000, 2),
        MapRow(4 * GIB, 5 * GIB),
    )
    machine = unicorn(workshop.assemble("movl %ebx, %ebp\nexit 1").image, memory=rows, start_info=0x10000)

    assert Exit(1) == machine.run(10)
    assert machine.registers().rbp == 0x10000
    rows_at, count = struct.unpack("<QI", machine.memory.read(0x10000 + 40, 12))
    found = [struct.unpack("<QQI", machine.memory.read(rows_at + 24 * n, 20)) for n in range(count)]
    assert [(row.start, row.end - row.start, row.kind) for row in rows] == found


@pytest.mark.parametrize(
    ("guest", "words"),
    [
        ({"memory": 2 * MIB}, "the image needs 0x0000000000200000 to 0x"),
        ({"memory": 2 << 40}, "RAM up to 0x0000020040000000 does not fit the 40 physical address bits of la57"),
        ({"memory": (MapRow(0x200000, 0x300000), MapRow(0x2FF000, 0x400000))}, "memory map rows overlap at 0x"),
        ({"memory": (MapRow(0x200000, 0x300000, 2),)}, "the memory map has no RAM"),
        ({"cpu": "z80"}, "unicorn has no CPU 'z80'; expected la57, la48 or a model such as"),
        ({"poison": 1, "memory": 2 * GIB}, "poisoning touches all RAM; expected at most 1G"),
        ({"start_info": 0x200000}, "the start information does not fit at 0x0000000000200000: not free RAM"),
    ],
)
def test_refusals_say_what_and_where(unicorn, workshop, guest, words):
    with pytest.raises(MachineError) as refusal:
        unicorn(workshop.assemble("exit 1").image, **guest)

    assert str(refusal.value).startswith(words)


def test_image_whose_segment_claims_too_much_is_refused(unicorn, workshop):
    with pytest.raises(ImageError, match=r"^segment at 0x0000000000200000 has 4 bytes in the file, 1 in memory$"):
        unicorn(workshop.elf(b"\xf4\xf4\xf4\xf4", memory_size=1))
    with pytest.raises(MachineError, match=r"^the image needs"):
        unicorn(workshop.elf(b"\xf4", memory_size=1 << 40))


def test_closing_gives_memory_back(workshop):
    machine = start("unicorn", Guest(workshop.assemble("exit 1").image))
    with machine:
        machine.run(10)
        engine = weakref.ref(machine._core)
    gc.collect()

    assert engine() is None
    machine.close()
    with pytest.raises(MachineError, match=r"^the machine is closed$"):
        machine.memory.read(0x200000, 1)


# -- the hook that sees every instruction -----------------------------------------------------

# The engine stops one instruction after the `out` of the exit: mov, out, cli.
EXIT = 3


@pytest.fixture(params=["native", "plain"])
def hook(request, monkeypatch):
    """Run with the hook in machine code, and with the one in Python that other hosts get."""
    if request.param == "plain":
        monkeypatch.setattr(core, "native_hook", lambda stop: None)


def test_both_hooks_count_watch_and_limit_alike(hook, unicorn, workshop):
    # 0x1000004 shares its lower 24 bits with the loop: stopped at, looked at, let go.
    code = workshop.assemble("movl $300, %ecx\n1: decl %ecx\njnz 1b\nmovl $0x1020, %eax\nsite: movl %eax, %cr4\nexit 1")
    sites = frozenset({code.labels["site"], 0x1000000 + 0x200005})
    machine = unicorn(code.image, sites=sites)

    assert machine.run(10, limit=100) == LimitReached(100, 0x200006)
    assert machine.run(10) == Exit(1)
    assert machine.instructions == 1 + 2 * 300 + 2 + EXIT
    refused = unicorn(code.image, sites=sites, cpu="la48")
    assert isinstance(refused.run(10), Shutdown)
    assert refused.instructions == 1 + 2 * 300 + 1


def test_long_runs_are_exact_over_time_slices(unicorn, workshop):
    machine = unicorn(workshop.assemble("movl $1300000, %ecx\n1: incl %ebp\ndecl %ecx\njnz 1b\nexit 1").image)

    assert machine.run(60) == Exit(1)
    assert machine.registers().rbp == 1300000
    assert machine.instructions == 1 + 3 * 1300000 + EXIT


def test_signals_are_seen_while_the_guest_spins(unicorn, workshop):
    class AlarmError(Exception):
        pass

    def ring(*_):
        raise AlarmError

    machine = unicorn(workshop.assemble("1: jmp 1b").image)
    before = signal.signal(signal.SIGALRM, ring)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        with pytest.raises(AlarmError):
            machine.run(60)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_tables_outside_ram_fault_in_the_guest(unicorn, workshop):
    """All ones are a present entry with reserved bits set; the IDT cannot be read either."""
    machine = unicorn(workshop.long_code("movq $0x3ff000000, %rax\nmovq %rax, %cr3\nnop").image)

    event = machine.run(5)

    assert isinstance(event, Shutdown)
    assert event.records[0].vector == 14
    assert event.records[0].error_code & 0x9 == 0x9


def test_without_room_for_the_translator_it_is_one_line():
    """Unicorn itself would end the process with status 1, which is that of a failed check."""
    code = (
        "import resource; from fivefold.machine.unicorn.core import UnicornCore\n"
        "resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))\n"
        "try: UnicornCore('la57')\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout) == (
        0,
        "MachineError unicorn needs 1G of address space, which is not to be had\n",
    )

"""Mistakes that only a machine shows: an image with the mistake boots, and the checks must notice.

The others are in `tests/kernel/test_mistakes.py`; `docs/mistakes.md` has the table of all.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

from fivefold.boot import Image, Run
from fivefold.errors import MachineError
from fivefold.machine import Machine, MapRow
from fivefold.metal.emit.elf import read_object
from fivefold.units import GIB, MIB, PhysAddr

Boot = Callable[..., Run]
WrongImage = Callable[..., Image]
LeftBehind = Callable[..., dict[int, bytes]]
MOV_CR = re.compile(rb"\x0f\x22[\xc0-\xff]")
"""Writes of CR0, CR3 and CR4 in the trampoline; one of a few bytes that occur only so there."""


def refused(failures: Callable[[Run], list[str]], run: Run, expected: str) -> None:
    """The run has failed, and for the reason that the mistake has."""
    assert not run.ok
    told = [*failures(run), run.event, run.output]
    assert any(expected in line for line in told), told


class Low:
    """Memory below 1 MiB before a run: the BIOS data area and the pages that are borrowed, with something in them."""

    bios_data = (0x400, 0xC00)

    def __init__(self, place: int) -> None:
        self.place = (place, 0x2000)
        self.before: dict[int, bytes] = {}

    def note(self, machine: Machine) -> None:
        for at, size in (self.bios_data, self.place):
            machine.memory.write(PhysAddr(at), bytes(range(256)) * (size // 256))
        self.before = {at: machine.memory.read(PhysAddr(at), size) for at, size in (self.bios_data, self.place)}


def test_rfc_b02_the_64_bit_entry_changes_the_mode_too(
    passes: Boot, boot: Boot, wrong_image: WrongImage, failures: Callable[[Run], list[str]]
) -> None:
    """Only the 32-bit entry did: a loader that starts in four levels gets four, whatever the CPU has."""
    assert passes("la57", entry="long48").mode == "la57"
    wrong = wrong_image("entry.S", ("        call    switch_mode\n", "        xorl    %eax, %eax\n"))
    refused(failures, boot("la57", entry="long48", given=wrong), "mode_expected: levels: 4, expected 5")


IN_LONG_MODE = """        movq    %cr4, %rax
        btsq    $12, %rax
        site    site_mistake
        movq    %rax, %cr4
        xorl    %eax, %eax
"""


def test_rs_01_la57_is_not_changed_in_long_mode(
    boot: Boot, wrong_image: WrongImage, failures: Callable[[Run], list[str]]
) -> None:
    """The CPU refuses with #GP, which the early handler reports."""
    wrong = wrong_image("entry.S", ("        call    switch_mode\n", IN_LONG_MODE))
    run = boot("la57", entry="long48", given=wrong)
    refused(failures, run, "panic: unexpected exception 13, error code 0x0000000000000000")


def test_rfc_b03_and_rs_34_five_levels_can_be_left(
    passes: Boot, boot: Boot, wrong_image: WrongImage, failures: Callable[[Run], list[str]]
) -> None:
    assert passes("la57", entry="long57", cmdline="no5lvl").mode == "la48"
    change = ("    if five_levels == (read_cr4()", "    if not five_levels or five_levels == (read_cr4()")
    run = boot("la57", entry="long57", cmdline="no5lvl", given=wrong_image("startup.py", change))
    refused(failures, run, "mode_expected: levels: 5, expected 4")


def test_rs_02_the_mode_is_changed_below_4_gib(
    passes: Boot, boot: Boot, wrong_image: WrongImage, failures: Callable[[Run], list[str]]
) -> None:
    """A trampoline that stays beside the image cannot be reached once long mode is left."""
    rows = (MapRow(0, 0x9_F000), MapRow(MIB, 16 * MIB), MapRow(5 * GIB, 5 * GIB + 8 * MIB))
    where: dict[str, Any] = {"entry": "long48", "load_address": 5 * GIB, "guest": {"memory": rows}}
    passes("la57", **where)
    wrong = wrong_image("in_use.py", ("TRAMPOLINE_LIMIT: Final = 0x9F000", "TRAMPOLINE_LIMIT: Final = 0x1_4080_0000"))
    run = boot("la57", given=wrong, timeout=2.0, **where)
    assert not run.ok
    assert "exit" not in run.event


def test_rfc_b13_a_word_in_assembly_is_as_wide_as_its_users_think(
    passes: Boot, boot: Boot, wrong_image: WrongImage, failures: Callable[[Run], list[str]]
) -> None:
    """16 bits declared, 64 stored and read: what follows overwrites it, and is read with it."""
    passes("la57", entry="long48")
    wrong = wrong_image("entry.S", ("saved_rbx:\n        .quad   0\n", "saved_rbx:\n        .word   0\n"))
    passes("la57", given=wrong)
    run = boot("la57", entry="long48", given=wrong, timeout=2.0)
    refused(failures, run, "no start information; expected PVH's structure with a memory map")


def test_rfc_b28_nothing_asks_cpuid_once_the_mode_is_decided(
    passes: Boot, boot: Boot, wrong_image: WrongImage, failures: Callable[[Run], list[str]]
) -> None:
    """The feature is there and not used: who asks the CPU enters the other kernel."""
    passes("la57", cmdline="no5lvl")
    asks = (
        """        movq    %cr4, %rax
        btl     $12, %eax
        jc      1f
        call    la48_start_kernel
""",
        """        movl    $7, %eax
        xorl    %ecx, %ecx
        pushq   %rdi
        cpuid
        popq    %rdi
        btl     $16, %ecx
        jc      1f
        call    la48_start_kernel
""",
    )
    wrong = wrong_image("entry.S", asks)
    passes("la57", given=wrong)
    refused(failures, boot("la57", cmdline="no5lvl", given=wrong), "the kernel for one mode was entered in the other")


def test_rfc_b43_the_boot_tables_have_room(left_behind: LeftBehind, image: Image, wrong_image: WrongImage) -> None:
    """One page too few in the buffer, and the last table lies in whatever follows."""

    def behind(given: Image) -> bytes:
        at = given.physical("boot_tables_end", given.load_address)
        return left_behind([(at, 64)], given=given, guest={"poison": 0xFF})[at]

    assert behind(image) == bytes(64)
    wrong = wrong_image("entry.S", ("        .fill   7 * 4096, 1, 0\n", "        .fill   6 * 4096, 1, 0\n"))
    assert behind(wrong) != bytes(64)


@pytest.mark.parametrize("file", ["phys.py", "main.py"])
def test_rfc_b32_and_rs_27_phys_base_is_in_every_conversion(
    passes: Boot, boot: Boot, wrong_image: WrongImage, file: str
) -> None:
    """Where it was linked for, the mistake is not seen: so every place is tried with another one."""
    changes = {
        "phys.py": ("va - START_KERNEL_MAP + phys_base", "va - START_KERNEL_MAP"),
        "main.py": ("        START_KERNEL_MAP - phys.phys_base,\n", "        START_KERNEL_MAP,\n"),
    }
    wrong = wrong_image(file, changes[file], parts=("la57",))
    passes("la57", given=wrong, load_address=16 * MIB)
    passes("la57", load_address=18 * MIB)
    assert not boot("la57", given=wrong, load_address=18 * MIB, timeout=2.0).ok


def test_rs_11_early_code_does_not_use_linked_addresses(
    boot: Boot, wrong_image: WrongImage, failures: Callable[[Run], list[str]]
) -> None:
    """It runs at the physical address, before anything is mapped where it was linked (RFC-B17 and B44 are alike)."""
    wrong = wrong_image(
        "entry.S", ("        leaq    __bss_start(%rip), %rdi\n", "        movq    $__bss_start, %rdi\n")
    )
    refused(failures, boot("la57", given=wrong, timeout=2.0), "panic: unexpected exception 14, error code 0x")


def test_rs_11_the_boot_object_has_one_absolute_address(objects: dict[str, bytes]) -> None:
    """The jump to the linked place; all else is relative to the instruction."""
    found = read_object(objects["boot"], "boot")
    assert [each.form for each in found.relocations if each.form != "pc32"] == ["32s"]


LOSES_LME = """        movl    %edi, %cr3
        movl    $MSR_EFER, %ecx
        rdmsr
        btrl    $EFER_LME_BIT, %eax
        wrmsr
"""
"""What a hypervisor did when paging went off."""
RESTORES_LME = ("        jc      1f\n        wrmsr\n1:      movl    %cr4, %eax\n", "        movl    %cr4, %eax\n")


def test_rs_17_efer_lme_is_set_again(
    passes: Boot, boot: Boot, wrong_image: WrongImage, failures: Callable[[Run], list[str]]
) -> None:
    loss = (
        "        movl    %edi, %cr3\n        movl    $MSR_EFER, %ecx\n        rdmsr\n",
        LOSES_LME + "        rdmsr\n",
    )
    for entry, cmdline in (("long48", ""), ("long57", "no5lvl")):
        passes("la57", entry=entry, cmdline=cmdline, given=wrong_image("entry.S", trampoline_only(loss)))
    wrong = wrong_image("entry.S", trampoline_only(loss), RESTORES_LME)
    with pytest.raises(MachineError, match="PAE paging"):
        boot("la57", entry="long48", given=wrong, timeout=2.0)


def trampoline_only(change: tuple[str, str]) -> tuple[str, str]:
    """The change with the line before it, which tells the trampoline from the 32-bit entry."""
    before = "        movl    %eax, %cr0\n"
    return before + change[0], before + change[1]


def test_rs_18_software_bits_of_the_loader_in_a_boot(
    passes: Boot, boot: Boot, wrong_image: WrongImage, failures: Callable[[Run], list[str]]
) -> None:
    def mark(machine: Machine) -> None:
        root = PhysAddr(machine.registers().cr3)
        entry = int.from_bytes(machine.memory.read(root, 8), "little")
        machine.memory.write(root, (entry | 1 << 58 | 1 << 52 | 1 << 9).to_bytes(8, "little"))

    passes("la57", entry="long57", cmdline="no5lvl", before=mark)
    change = ("load64(active) & FRAME_MASK, 512)", "load64(active) & ~(PAGE_SIZE - 1), 512)")
    wrong = wrong_image("startup.py", change)
    passes("la57", entry="long57", cmdline="no5lvl", given=wrong)
    assert not boot("la57", entry="long57", cmdline="no5lvl", before=mark, given=wrong, timeout=2.0).ok


LEAVES = """        movl    %cr0, %eax
        btrl    $CR0_PG_BIT, %eax
        movl    %eax, %cr0
        movl    %edi, %cr3
"""
TURNS = """        movl    %cr4, %eax
        xorl    $CR4_LA57, %eax
        movl    %eax, %cr4
"""


def trampoline_sites(image: Image, place: int) -> frozenset[int]:
    """Where the trampoline writes control registers, once it is copied behind *place*."""
    start, end = image.symbol("trampoline_start"), image.symbol("trampoline_end")
    part = image.parts[0]
    code = part.data[start - part.start : end - part.start]
    found = {place + 4096 + match.start() for match in MOV_CR.finditer(code)}
    assert len(found) == 4, "PG off, the root, CR4, PG on"
    return frozenset(found)


@pytest.mark.parametrize(("entry", "cmdline"), [("long48", ""), ("long57", "no5lvl")])
def test_inv_11_la57_changes_outside_long_mode_only(
    boot: Boot,
    image: Image,
    wrong_image: WrongImage,
    trampoline_place: Callable[..., int],
    failures: Callable[[Run], list[str]],
    entry: str,
    cmdline: str,
) -> None:
    """Every write of the trampoline is judged by `arch`; turned before paging is off, it is refused."""
    place = trampoline_place(entry=entry, cmdline=cmdline)
    sites = image.sites(16 * MIB) | trampoline_sites(image, place)
    run = boot("la57", entry=entry, cmdline=cmdline, guest={"sites": sites})
    assert run.ok, failures(run)
    wrong = wrong_image("entry.S", (LEAVES, TURNS + LEAVES), ("1:" + TURNS[2:], "1:\n"))
    wrong_sites = wrong.sites(16 * MIB) | trampoline_sites(wrong, place)
    run = boot("la57", entry=entry, cmdline=cmdline, given=wrong, guest={"sites": wrong_sites}, timeout=2.0)
    refused(failures, run, "triple fault: #GP(0x0)")


@pytest.mark.parametrize("entry", ["long48"])
def test_rs_05_memory_below_1_mib_is_as_it_was(
    left_behind: LeftBehind, trampoline_place: Callable[..., int], wrong_image: WrongImage, entry: str
) -> None:
    """The BIOS data area is not touched, and the borrowed pages are given back."""
    low = Low(trampoline_place(entry=entry))
    assert left_behind([low.bios_data, low.place], entry=entry, before=low.note) == low.before
    wrong = wrong_image("main.py", ("    give_back_borrowed()\n\n", "\n"), parts=("la57",))
    assert left_behind([low.bios_data, low.place], entry=entry, before=low.note, given=wrong) != low.before


def test_rfc_b14_and_rs_03_cpuid_and_cr4_differ(
    passes: Boot, boot: Boot, wrong_image: WrongImage, failures: Callable[[Run], list[str]]
) -> None:
    """`no5lvl` on a CPU with LA57: four levels are active, CPUID says five."""
    passes("la57", cmdline="no5lvl")
    change = ("    set_mode(read_cr4() & CR4_LA57 != 0)", "    set_mode(wants_five_levels(reason_for_mode(0)))")
    assert not boot("la57", cmdline="no5lvl", given=wrong_image("startup.py", change), timeout=2.0).ok


def test_an_engine_that_is_unknown_is_refused(boot: Boot) -> None:
    with pytest.raises(MachineError, match="unknown engine 'simics'; expected unicorn, qemu, kvm, bochs"):
        boot("la57", engine="simics")


def test_a_cpu_that_is_unknown_is_refused(boot: Boot) -> None:
    with pytest.raises(MachineError, match="la64"):
        boot("la64")

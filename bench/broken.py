"""Put mistakes into a copy of the kernel, one token at a time, boot each, and say which check noticed.

    python bench/broken.py                    # all of them: the table of docs/parts/broken_on_purpose.md
    python bench/broken.py --part kasan       # those of one part

A row passes if at least one check fails whose name begins with the part's: that the boot fails is not enough, but for
mistakes that end the machine before it can tell. The exit status is 1 if a row does not. Rows of `smp` and `in_use`
need QEMU, some of them Bochs; they are left out, by name, where it is missing. Some ten minutes.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Any, Final

import hostile_loader
import loader_worlds
import worlds
from fivefold.boot import BootOptions, Image, Run
from fivefold.boot.guests import make_guest
from fivefold.boot.image.build import boot_object, kernel_object, link_image
from fivefold.boot.run import boot_guest
from fivefold.kernel.modes import KERNEL, MODES
from fivefold.machine import available
from fivefold.units import MIB

BOTH: Final = {"cmdline": "kaslr=7 kasan"}
SMP: Final = {"engine": "qemu", "smp": 2}
BOCHS: Final = {"engine": "bochs", "entry": "multiboot2", "memory": 64 * MIB, "timeout": 60.0}
"""The engine that keeps global translations over a load of CR3."""
IN_A_ROM: Final = {"engine": "qemu"}
"""Booted in a drawn world of a loader (`hostile_loader.py`) that has a module where its map has no memory."""
ASKED: Final = {"worlds": 150}
"""Not booted, where few boots would meet it: asked where it would write in so many worlds (`worlds.py`)."""
UP: Final = {"entry": "long48"}
OWN_INVLPG: Final = (
    "    invlpg(va)  # TLB: the leaf is global, so only INVLPG drops it, on each CPU for itself (docs/tlb.md)\n"
)


@dataclass(frozen=True)
class Mistake:
    """One token of *file* changed, in what is compiled for *cpu* ("boot": in the boot code, and booted on la57)."""

    part: str
    file: str
    old: str
    new: str
    cpu: str = "la57"
    options: dict[str, Any] = field(default_factory=lambda: BOTH)
    dies: bool = False
    """The machine does not live to make the check, and that is what is seen."""
    undecidable: bool = False
    """The engine drops by itself what the kernel forgets, so that no check can notice; another row's keeps it."""


MISTAKES: Final = (
    Mistake("kaslr", "kaslr.py", "return 1 << PUD_SHIFT", "return 1 << (PUD_SHIFT - 8)"),
    Mistake("kaslr", "kaslr.py", "layout.direct_map_size + step() + moved", "layout.direct_map_size - step()"),
    Mistake("kaslr", "kaslr.py", "round_up_tib(memory_end) + HOTPLUG_PADDING", "memory_end >> 1"),
    Mistake("kasan", "kasan.py", "fill_zero_tables(KERNEL_RO)", "fill_zero_tables(KERNEL_RW)"),
    Mistake(
        "kasan",
        "kasan.py",
        "return kernel_to_phys(VirtAddr(buffer_at))",
        "return PhysAddr(buffer_at & 0x7FFF_FFFF)",
        dies=True,
    ),
    Mistake("kasan", "kasan.py", "while va < shadow_end()", "while va < shadow_end() + P4D_SIZE"),
    Mistake("kasan", "kasan.py", "range(memblock.memory_count)", "range(memblock.memory_count - 1)"),
    Mistake("kasan", "kasan.py", "image_phys(zero_page) | KERNEL_RO)", "image_phys(zero_page) | KERNEL_RW)"),
    Mistake("scan", "scan_entries.py", "(~entry >> 61 & EXECUTE)", "(entry >> 61 & EXECUTE)"),
    Mistake("scan", "scan_entries.py", "level <= PUD_LEVEL)", "level < PUD_LEVEL)", options={"memory": 3072 * MIB}),
    Mistake("scan", "scan.py", "va = VirtAddr(first_va + (i << PTE_SHIFT))", "va = VirtAddr(first_va)"),
    Mistake("scan", "memblock.py", "    table_pages += 1\n", "    table_pages += 2\n"),
    Mistake("sync", "sync.py", "    if mapping.top_changed:\n", "    if not mapping.top_changed:\n"),
    Mistake("sync", "sync.py", "    if top_none(entry) or is_private(slot):\n", "    if top_none(entry):\n"),
    Mistake("sync", "sync.py", "return ldt != 0 and slot == pgd_index(VirtAddr(ldt))", "return ldt == 0"),
    Mistake(
        "sync",
        "mapping.py",
        "    if p4d_folded() and p4d_none(load64(p4d)):\n",
        "    if p4d != pgd and p4d_none(load64(p4d)):\n",
        "la48",
    ),
    Mistake("user", "user.py", "(1 << 47) - PAGE_SIZE\n", "1 << 47\n"),
    Mistake("user", "user.py", "== (hint + size > DEFAULT_WINDOW)", "or (hint + size > DEFAULT_WINDOW)"),
    Mistake("user", "user.py", "lower_half_size() - PAGE_SIZE", "lower_half_size()"),
    Mistake("user", "user.py", "if high else DEFAULT_WINDOW)", "if high else task_size_max())"),
    Mistake(
        "user",
        "user.py",
        "VirtAddr(va), page, entry",
        "VirtAddr(va), entry_frame(lookup(top_of(number), VirtAddr(va))), entry",
    ),
    Mistake("free", "free.py", "            free_page(PhysAddr(entry & FRAME_MASK))\n", ""),
    Mistake("free", "free.py", "        p4d_free(entry_frame(value))\n", ""),
    Mistake(
        "free",
        "free.py",
        "        p4d_clear(p4d)\n        free_table(entry_frame(value))\n",
        "        p4d_clear(p4d)\n",
    ),
    Mistake(
        "fold",
        "mapping.py",
        "    if not p4d_folded():\n        free_table(table)",
        "    if True:\n        free_table(table)",
        "la48",
    ),
    Mistake("syscall", "syscall.py", "is_canonical(VirtAddr(rip))", "rip >> 56 == 0", "la48"),
    Mistake(
        "syscall", "syscall.py", "    safe_returns += 1\n    return SAFE", "    safe_returns += 1\n    return FAST"
    ),
    Mistake("syscall", "syscall.py", "is_canonical(VirtAddr(rip))", "rip >> 47 == 0"),
    Mistake("ident_map", "ident_map.py", "PRESENT | RW\n", "PRESENT | RW | 4\n"),
    Mistake(
        "ident_map", "ident_map.py", "VirtAddr(start), start, end - start", "VirtAddr(start), start, end - start - 4096"
    ),
    Mistake("ident_map", "ident_map.py", "    free_table(root)\n", ""),
    Mistake(
        "ident_map",
        "ident_map.py",
        "range_end(memblock.memory, i)), largest) and done",
        "range_end(memblock.memory, 0)), largest) and done",
    ),
    Mistake("kexec", "kexec.py", "not p4d_folded() and flags", "p4d_folded() and flags"),
    Mistake("kexec", "kexec.py", "in_file > size - offset", "in_file > size"),
    Mistake("kexec", "ident_map.py", "range(KERNEL_SLOT, PTRS_PER_TABLE)", "range(KERNEL_SLOT, PTRS_PER_TABLE - 1)"),
    Mistake(
        "kexec",
        "entry.S",
        "        andq    $~0x80, %rax\n        site    site_kexec_cr4",
        "        andq    $0x20, %rax\n        site    site_kexec_cr4",
        "boot",
        {"kexec": ""},
    ),
    Mistake(
        "kexec", "kexec.py", "load64(image + ELF_ENTRY) - first)", "load64(image + ELF_ENTRY))", options={"kexec": ""}
    ),
    Mistake("hibernate", "hibernate.py", "load64(at + HEADER_LEVELS) != levels()", "load64(at + HEADER_LEVELS) > 5"),
    Mistake("hibernate", "hibernate.py", "total << 7 | total >> 57", "total << 8 | total >> 56"),
    Mistake(
        "hibernate", "hibernate.py", "load64(at + HEADER_KERNEL) != kernel_sum()", "load64(at + HEADER_KERNEL) == 1"
    ),
    Mistake(
        "hibernate",
        "hibernate.py",
        "    if load64(at + HEADER_SUM) != image_sum",
        "    if load64(at + HEADER_SUM) == 1 + image_sum",
    ),
    Mistake(
        "hibernate",
        "hibernate.py",
        "image_sum(at, data, count))\n    store64(at + HEADER_MAGIC",
        "0)\n    store64(at + HEADER_MAGIC",
        options={"hibernate": True},
    ),
    Mistake(
        "fold",
        "pgtable.py",
        "        return True\n    return entry & PRESENT != 0\n",
        "        pass\n    return entry & PRESENT != 0\n",
        "la48",
    ),
    Mistake(
        "fold",
        "pgtable.py",
        "    if p4d_folded():\n        return False\n    return entry == 0\n",
        "    return entry == 0\n",
        "la48",
    ),
    Mistake(
        "fold",
        "pgtable.py",
        "    if not p4d_folded():\n        store64(pgd, 0)",
        "    if True:\n        store64(pgd, 0)",
        "la48",
    ),
    Mistake(
        "fold",
        "pgtable.py",
        "    if not p4d_folded():\n        store64(pgd, table | TABLE)",
        "    if True:\n        store64(pgd, table | TABLE)",
        "la48",
    ),
    Mistake(
        "ring3",
        "kernel_map.py",
        "store16(tss + TSS_IO_MAP, TSS_SIZE)",
        "store16(tss + TSS_IO_MAP, 0)",
        options={"engine": "qemu"},
    ),
    Mistake("ring3", "traps.py", "INTERRUPT_GATE: Final = 0x8E00", "INTERRUPT_GATE: Final = 0xEE00"),
    Mistake(
        "ist", "kernel_map.py", "trap_stub(vector), i + 1)", "trap_stub(vector), 0)", options={"layout": "proposal"}
    ),
    Mistake("smap", "entry.S", "        clac\n1:\n        movq", "1:\n        movq", "boot", {}),
    Mistake("smap", "cpu.py", "        value |= CR4_SMAP\n", "        pass\n", options={}),
    Mistake("smep", "cpu.py", "        value |= CR4_SMEP\n", "        pass\n", options={}),
    Mistake("user", "syscall.py", "va > user.task_size_max() - 8 or ", "", options={}),
    Mistake("smp", "smp.py", "    kernel_map.close_ports(tss)\n", "", options=SMP),
    Mistake("smp", "smp.py", "store64(words, read_cr4())", "store64(words, cpu.CR4_PAE)", options=SMP, dies=True),
    Mistake("smp", "smp.py", "    cpu.write_cr3(PhysAddr(kernel_root))\n", "", options=SMP),
    Mistake("smp", "smp.py", "        invlpg(load64(shared + ADDRESS))\n", "", options=SMP),
    Mistake("smp", "smp.py", "    apic.tell_others(SHOOT_DOWN_VECTOR)\n", "", options=SMP),
    Mistake(
        "smp",
        "smp.py",
        "copy64(root + 8 * 256, top + 8 * 256, 256)",
        "copy64(root + 8 * 511, top + 8 * 511, 1)",
        options=SMP,
        dies=True,
    ),
    Mistake(
        "smp",
        "smp.py",
        "TRAMPOLINE: Final = PRESENT | RW",
        "TRAMPOLINE: Final = 0x100 | PRESENT | RW",
        options={**BOCHS, "smp": 2},
    ),
    Mistake(
        "smp",
        "smp.py",
        "TRAMPOLINE: Final = PRESENT | RW",
        "TRAMPOLINE: Final = 0x100 | PRESENT | RW",
        options=SMP,
        undecidable=True,
    ),
    Mistake("smp", "smp.py", "        invlpg(load64(shared + ADDRESS))\n", "", options={**BOCHS, "smp": 2}),
    Mistake("smp", "smp.py", OWN_INVLPG, "", options=SMP),
    Mistake("smp", "smp.py", OWN_INVLPG, "", options={**BOCHS, "smp": 2}),
    Mistake(
        "in_use",
        "in_use.py",
        "        if at < end and start < at + PAGE_SIZE:\n            return 0\n",
        "",
        "boot",
        ASKED,
    ),
    Mistake("in_use", "in_use.py", "    reserve_tables(load, image_end)\n", "", "boot", ASKED),
    Mistake("in_use", "in_use.py", "    start_info.reserve_memory(info)\n", "", "boot", ASKED),
    Mistake("in_use", "startup.py", "    in_use.note_low_tables()\n", "", "boot", ASKED),
    Mistake("in_use", "memblock.py", "    reserve(place, size)\n    if overflowed", "    if overflowed", "boot", ASKED),
    Mistake(
        "in_use",
        "efi_map.py",
        "memblock.is_memory(at, size) and load64(phys_to_virt(at))",
        "load64(phys_to_virt(at))",
        options=IN_A_ROM,
        dies=True,
    ),
    Mistake("kexec", "in_use.py", "    reserve_earlier_kernels(cmdline)\n", "", "boot", {"kexec": "kaslr=50"}),
    Mistake(
        "mode_switch",
        "startup.py",
        "    if five_levels == (read_cr4()",
        "    if five_levels != (read_cr4()",
        "boot",
        UP,
    ),
    Mistake("mode_switch", "startup.py", '    store64(symbol("trampoline_used"), place)\n', "", "boot", UP),
    Mistake("mode_switch", "main.py", "saved, 1024)", "saved, 512)", options=UP),
)


def copy_kernel(place: Path, name: str, mistake: Mistake) -> str:
    """A package like the kernel's with *mistake* in it; its parts import each other."""
    target = place / name
    shutil.copytree(str(resources.files(KERNEL)), target, ignore=shutil.ignore_patterns("__pycache__"))
    for path in target.rglob("*.py"):
        path.write_text(path.read_text().replace(KERNEL, name))
    (changed,) = target.rglob(mistake.file)
    text = changed.read_text()
    if text.count(mistake.old) != 1:
        raise SystemExit(f"broken: {mistake.file} has {text.count(mistake.old)} times {mistake.old!r}")
    changed.write_text(text.replace(mistake.old, mistake.new))
    return name


def boot_wrong(mistake: Mistake, package: str, objects: dict[str, bytes]) -> Run:
    """Boot our image with what *mistake* touches compiled from *package*."""
    wrong = boot_object(package) if mistake.cpu == "boot" else kernel_object(mistake.cpu, package)
    image = link_image({**objects, mistake.cpu: wrong})
    cpu = "la57" if mistake.cpu == "boot" else mistake.cpu
    if mistake.options is IN_A_ROM:
        return boot_in_world(image)
    options = BootOptions(**{"memory": 32 * MIB, **mistake.options})
    options = replace(options, load_address=image.load_address)
    return boot_guest(make_guest(cpu, options, image), options, image)


def boot_in_world(image: Image) -> Run:
    """Boot on QEMU, in five levels, in the first drawn world whose loader has a module where its map has no memory."""
    drawn = hostile_loader.draws(1, 1000, "qemu", image)
    five = (row for row in drawn if row[1] == "la57" and "no5lvl" not in row[3].cmdline)
    cpu, world, options = next(row[1:] for row in five if has_lost_module(row[2]))
    return hostile_loader.boot_world(world, image, cpu, options)


def has_lost_module(world: loader_worlds.World) -> bool:
    """Whether a module of the world starts in no row of memory."""
    modules = [low for low, _, what in world.used if what == "a module"]
    memory = [(low, low + size) for low, size, kind in world.rows if kind == loader_worlds.RAM]
    return any(not any(low <= at < high for low, high in memory) for at in modules)


def wrong_answer(package: str) -> str:
    """The first that is wrong with the answers of *package* in drawn worlds; "" if nothing is."""
    kernel = worlds.Kernel(package)
    drawn = loader_worlds.worlds(1, ASKED["worlds"])
    return next((f"world {seed}: {problem}" for seed, world in drawn for problem in kernel.wrong(world, seed)), "")


def failed_checks(run: Run) -> Iterator[str]:
    """Names of the checks that failed, each once, the guest's first."""
    seen = sorted((check for check in run.checks if not check.ok), key=lambda check: check.by)
    yield from dict.fromkeys(check.name for check in seen)


def row(mistake: Mistake, run: Run, failed: list[str]) -> str:
    """A line of the table: what was changed, and up to three checks that failed, those of the part first."""
    ours = [name for name in failed if name.startswith(mistake.part)]
    shown = [*ours, *(name for name in failed if name not in ours)][:3]
    told = ", ".join(f"`{name}`" for name in shown) + (f" and {len(failed) - 3} more" if len(failed) > 3 else "")
    if mistake.undecidable and not failed:
        told = "undecidable on this engine"
    if mistake.dies:
        told = f"{told}: {run.event.partition(' -> ')[0]}"
    changed = f"{code(mistake.old)} → {code(mistake.new) if mistake.new else 'left out'}"
    if (engine := mistake.options.get("engine")) is not None:
        changed += f", on {engine}"
    return f"| {mistake.part} | `{mistake.file}` | {mistake.cpu} | {changed} | {told or '**none**'} |"


def code(text: str) -> str:
    """*text* on one line, as code that a cell of a table can hold."""
    return f"`{' '.join(text.split())}`".replace("|", "\\|")


def main() -> int:
    """Print the table; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", choices=sorted({mistake.part for mistake in MISTAKES}))
    part = parser.parse_args().part
    objects = {"boot": boot_object(), **{mode: kernel_object(mode) for mode in MODES}}
    print("| part | file | copy | changed | checks that failed |\n| --- | --- | --- | --- | --- |")
    unnoticed = 0
    with tempfile.TemporaryDirectory() as place:
        sys.path.insert(0, place)
        for number, mistake in enumerate(MISTAKES):
            if part is not None and mistake.part != part:
                continue
            reason = available(mistake.options.get("engine", "unicorn"))
            if reason is not None:
                print(
                    f"| {mistake.part} | `{mistake.file}` | {mistake.cpu} | {code(mistake.old)} | not run: {reason} |"
                )
                continue
            if mistake.options is ASKED:
                told = wrong_answer(copy_kernel(Path(place), f"broken_{number}", mistake))
                changed = f"{code(mistake.old)} → {code(mistake.new) if mistake.new else 'left out'}"
                print(f"| {mistake.part} | `{mistake.file}` | {mistake.cpu} | {changed} | {told or '**none**'} |")
                unnoticed += not told
                continue
            run = boot_wrong(mistake, copy_kernel(Path(place), f"broken_{number}", mistake), objects)
            failed = list(failed_checks(run))
            print(row(mistake, run, failed), flush=True)
            seen = any(name.startswith("completed" if mistake.dies else mistake.part) for name in failed)
            unnoticed += seen == mistake.undecidable
    if unnoticed:
        print(f"broken: {unnoticed} mistakes that no check of their part noticed", file=sys.stderr)
    return 1 if unnoticed else 0


if __name__ == "__main__":
    sys.exit(main())

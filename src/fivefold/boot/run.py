"""Boot the image on machines, and put together what came of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Final

from fivefold import _arguments
from fivefold.arch import AddressSpace, ControlState, Mapped, translate
from fivefold.boot.guests import make_guest
from fivefold.boot.image.build import build_image
from fivefold.boot.image.elf_image import Image
from fivefold.boot.judge.efi_checks import efi_checks
from fivefold.boot.judge.entry_checks import switch_checks
from fivefold.boot.judge.evidence import Evidence
from fivefold.boot.judge.from_serial import checks_of_text, report_from_text
from fivefold.boot.judge.guest_report import NO_REPORT, GuestReport, read_report
from fivefold.boot.judge.judge import judge
from fivefold.boot.judge.kaslr_areas import moved_areas
from fivefold.boot.judge.serial_text import judge_text
from fivefold.boot.judge.smp_checks import cpu_checks
from fivefold.boot.options import CPUS, FIVE_LEVEL_ENTRIES, BootOptions, expected_levels
from fivefold.boot.result import BootReport, Check, Run, Skipped
from fivefold.errors import LayoutError, MachineError, MemoryReadError, NoSuchCpuError
from fivefold.kernel.boot.detect import REASON_TEXT
from fivefold.kernel.report import EXIT_FAILED, EXIT_PASSED
from fivefold.layout import image_areas
from fivefold.machine import Event, Exit, Guest, Halted, Machine, Module, PoweredOff, available, start
from fivefold.machine.base import EFI_ENTRIES, Registers
from fivefold.machine.unicorn.limits import unicorn_lacks
from fivefold.units import PhysAddr, hex64

Explain = Callable[[Event, Machine], str]
"""Tells why a run ended as it did, while the machine can still be looked at."""

GIVES_UP: Final = ("Bail out! ", "fivefold: ")
"""How the kernel begins the line in which it says why it cannot go on, before there is a report and after."""
VARIABLES: Final = (
    "pgdir_shift", "ptrs_per_p4d", "page_offset_base", "vmalloc_base", "vmemmap_base", "phys_base",
)  # fmt: skip
FACTS: Final = (
    "phys_bits", "entered_levels", "load_address", "ram_bytes", "ram_end", "cut_bytes", "direct_4k", "direct_2m",
    "direct_1g", "tables", "early_faults", "early_wipes", "scan_ranges", "scan_bytes", "scan_tables",
)  # fmt: skip


def boot(
    cpus: tuple[str, ...] = CPUS,
    options: BootOptions | None = None,
    image: Image | None = None,
    say: Callable[[str], None] = lambda step: None,
    explain: Explain | None = None,
) -> BootReport:
    """Boot *image*, by default the one that is built from these sources, on each of *cpus* (``la57``, ``la48``).

    What a CPU cannot be asked for is skipped, with the reason. *say* is told each step, and "" at the end; *explain* is
    asked for the story of a machine that did not come to its end, which the run then carries.

    Raises `MachineError` if nothing is left to run, or an engine cannot do what was asked.
    """
    if isinstance(cpus, str) or not isinstance(cpus, Sequence) or not all(isinstance(cpu, str) for cpu in cpus):
        raise TypeError(f"cpus is {cpus!r}; expected names of CPUs, such as ('la57', 'la48')")
    _arguments.instance("options", options, BootOptions, type(None))
    _arguments.instance("image", image, Image, type(None))
    options = options or BootOptions()
    _check_engine(options)
    say("building the image")
    image = image or build_image()
    options = replace(options, load_address=options.load_address or image.load_address)
    runs: list[Run] = []
    skipped: list[Skipped] = []
    for cpu in cpus:
        if options.entry in FIVE_LEVEL_ENTRIES and cpu == "la48":
            skipped.append(Skipped(cpu, "a CPU without LA57 cannot be entered with five levels"))
            continue
        say(f"booting on {options.runs_on}, {cpu}")
        try:
            runs.append(boot_one(cpu, options, image, explain))
        except MachineError as error:
            # Which CPUs there are depends on the host under KVM, on the version of Bochs; else the call is at fault.
            if len(cpus) == 1 or not (options.runs_on == "kvm" or isinstance(error, NoSuchCpuError)):
                raise
            skipped.append(Skipped(cpu, str(error)))
    say("")
    if not runs:
        raise MachineError(f"nothing to run: {skipped[0].reason}" if skipped else "no CPU to run on")
    return BootReport(tuple(runs), tuple(skipped))


def _check_engine(options: BootOptions) -> None:
    """Raise `MachineError` before the image is built where the engine was chosen for the caller, or is a package."""
    if not options.engine_reason and options.runs_on != "unicorn":
        return
    if (missing := available(options.runs_on, options.program)) is not None:
        raise MachineError(f"{options.engine_reason}, and {missing}" if options.engine_reason else missing)


def boot_one(cpu: str, options: BootOptions, image: Image, explain: Explain | None = None) -> Run:
    """Boot on one CPU, read the guest's own report, and judge the result from outside."""
    return boot_guest(make_guest(cpu, options, image), options, image, explain)


def hibernate(guest: Guest, options: BootOptions, image: Image) -> Guest | Check:
    """Run *guest* until it has saved itself; the guest that resumes it on a restarted machine, or why there is none."""
    saving = replace(guest, cmdline=f"{guest.cmdline} hibernate=save".strip())
    with start(options.runs_on, saving, options.timeout, options.program) as machine:
        event = machine.run(options.timeout)
        load, report = last_report(machine, options, image)
        words = report.words
        at, size = words.get("hibernate_at", 0), words.get("hibernate_size", 0)
        if not at or not 0 < size <= options.memory:
            return Check.outside("hibernate_saved", str(event))
        saved = machine.memory.read(PhysAddr(at), size)
    resuming = make_guest(guest.cpu, replace(options, load_address=load), image)
    return replace(resuming, cmdline=f"{guest.cmdline} hibernate=resume".strip(), modules=(Module(saved),))


def boot_guest(guest: Guest, options: BootOptions, image: Image, explain: Explain | None = None) -> Run:
    """Boot a *guest* that may differ from what *options* alone would make: another memory map, another CPUID."""
    began = time.perf_counter()
    early: list[Check] = []
    if options.hibernate:
        resuming = hibernate(guest, options, image)
        early.append(Check.outside("hibernate_saved", "") if isinstance(resuming, Guest) else resuming)
        guest = resuming if isinstance(resuming, Guest) else guest
    with start(options.runs_on, guest, options.timeout, options.program) as machine:
        check_entry(guest, options, machine)
        event = machine.run(options.timeout)
        if machine.opaque:
            report, seen = look_at_text(machine, options)
        else:
            report, seen = look_inside(machine, options, image)
        ended = completed(event, report, machine.output)
        checks = [ended, *early, *report.checks, *seen]
        story = explain(event, machine) if explain and not ended.ok else ""
        instructions, output = machine.instructions, machine.output.decode(errors="replace")
        opaque = [Skipped("outside", machine.opaque)] if machine.opaque else []
    words = report.words
    return Run(
        cpu=guest.cpu,
        engine=options.runs_on,
        engine_reason=options.engine_reason,
        entry=options.entry,
        mode={4: "la48", 5: "la57"}.get(words.get("levels", 0)),
        levels=words.get("levels") or None,
        reason=dict(REASON_TEXT).get(words.get("reason", 0), "unknown"),
        event=str(event),
        areas=report.areas,
        variables={name: words[name] for name in VARIABLES if name in words},
        facts={name: words[name] for name in FACTS if name in words},
        checks=tuple(checks),
        skipped=(*report.skipped, *left_out(options), *opaque),
        instructions=instructions,
        seconds=time.perf_counter() - began,
        output=output,
        story=story,
    )


def check_entry(guest: Guest, options: BootOptions, machine: Machine) -> None:
    """Refuse what would never end: the write of LA57 on a CPU without it."""
    if guest.cpu not in CPUS and not machine.opaque and not machine.cpu.la57 and options.entry in FIVE_LEVEL_ENTRIES:
        raise MachineError(f"the CPU {guest.cpu} has no LA57: it cannot be entered with five levels")


def look_inside(machine: Machine, options: BootOptions, image: Image) -> tuple[GuestReport, list[Check]]:
    """The report in the machine's memory, and the checks from outside: memory and registers against it."""
    load, report = last_report(machine, options, image)
    checks: list[Check] = []
    if report.is_done:
        checks += from_outside(machine, replace(options.last, load_address=load), image, report)
    if report.is_done and options.kexec is None:
        levels = expected_levels(machine.cpu.la57, options.cmdline)
        now, words = machine.registers(), report.words
        checks += switch_checks(options.entry, levels, words, now, machine.memory, options.cpus > 1)
    if options.kexec is not None:
        checks += handed_over(machine, options, image, report)
    return report, checks


def look_at_text(machine: Machine, options: BootOptions) -> tuple[GuestReport, list[Check]]:
    """The report as the serial port has it, and whether that is whole and of the kernels that were started."""
    judgement = judge_text(machine.output)
    words = [options.cmdline, *options.chain]
    cpu = machine.guest.cpu
    levels = [expected_levels(cpu == "la57", line) if cpu in CPUS else None for line in words]
    return report_from_text(judgement), checks_of_text(judgement, levels)


def last_report(machine: Machine, options: BootOptions, image: Image) -> tuple[int, GuestReport]:
    """Where the image lies that runs at the end, and its report; after kexec the page tables say where."""
    load = options.load_address or image.load_address
    if options.may_move:
        load = running_image(machine, image) or load
    try:
        return load, read_report(machine.memory, image, load)
    except MemoryReadError:
        return load, NO_REPORT


def running_image(machine: Machine, image: Image) -> int | None:
    """Where the image lies that the machine's tables show at its linked address; None outside long mode."""
    state = control_state(machine.registers())
    if state.mode is None:
        return None
    found = translate(AddressSpace.from_state(machine.memory, state, machine.cpu), image.link_address)
    return found.pa if isinstance(found, Mapped) else None


def handed_over(machine: Machine, options: BootOptions, image: Image, report: GuestReport) -> list[Check]:
    """Whether each earlier kernel ran to its end, in its own mode, and started the next; *report* is the last one's."""
    lines = (options.cmdline, *options.chain)
    places = [report.words.get("load_address", 0)]
    checks: list[Check] = []
    for number in range(len(lines) - 1, 0, -1):
        previous = report.words.get("previous", 0)
        if not previous:
            return [Check.outside("kexec_arrived", f"kernel {number + 1} was not started by another"), *checks]
        if any(previous < at + image.size and at < previous + image.size for at in places):
            # What is read there would be the later kernel's report.
            return [Check.outside("kexec_arrived", f"a kernel lies at {hex64(previous)}, on an earlier one"), *checks]
        places.append(previous)
        report = read_report(machine.memory, image, previous)
        checks += earlier_kernel(report, number, expected_levels(machine.cpu.la57, lines[number - 1]))
    return [Check.outside("kexec_arrived", ""), *checks]


def earlier_kernel(report: GuestReport, number: int, want: int) -> list[Check]:
    """The checks of kernel *number*, counted from 1, by its *report*: it is done, passed, and in *want* levels."""
    name = "first" if number == 1 else f"{number}"
    failed = [check.name for check in report.checks if not check.ok]
    problem = f"failed: {', '.join(failed)}" if failed else "" if report.is_done else "it did not come to its end"
    levels = report.words.get("levels", 0)
    return [
        Check.outside(f"kexec_{name}_kernel", problem),
        Check.outside(f"kexec_{name}_mode", "" if levels == want else f"{levels} levels, expected {want}"),
    ]


def left_out(options: BootOptions) -> Iterator[Skipped]:
    """What was asked for and the engine that was named cannot do."""
    if options.smp != options.cpus:
        yield Skipped("smp", f"{unicorn_lacks(options.entry, options.smp)}")


def from_outside(machine: Machine, options: BootOptions, image: Image, report: GuestReport) -> list[Check]:
    """The checks from outside; random bases that break the rules leave nothing to hold the rest against."""
    try:
        seen = evidence(machine, options, image, report)
    except LayoutError as error:
        return [Check.outside("kaslr_bases", str(error))]
    checks = judge(seen, report.words, report.areas)
    if options.entry in EFI_ENTRIES:
        checks += efi_checks(seen, report.words)
    if options.cpus > 1:
        checks += cpu_checks(machine.all_registers(), options.cpus)
    return [*checks, Check.outside("kaslr_bases", "")] if options.randomised else checks


def completed(event: Event, report: GuestReport, output: bytes) -> Check:
    """Whether the guest ran to its end; if not, how it stopped, and the last words of its serial *output*.

    It writes its exit code to a port and halts; an engine without a device there sees only the latter.
    """
    ended = isinstance(event, Halted | PoweredOff) or (
        isinstance(event, Exit) and event.code in (EXIT_PASSED, EXIT_FAILED)
    )
    last = output.decode(errors="replace").strip().rpartition("\n")[2]
    said = last.removeprefix("Bail out! ").removeprefix("fivefold: ") if last.startswith(GIVES_UP) else ""
    why = report.panic or said.strip()
    detail = f"{event}: {why}" if why else str(event)
    return Check("completed", "outside", report.is_done and ended, detail)


def evidence(machine: Machine, options: BootOptions, image: Image, report: GuestReport) -> Evidence:
    """What the judge looks at, from the machine itself; `LayoutError` if the guest's random bases break the rules."""
    words = options.full_cmdline.split()
    levels = expected_levels(machine.cpu.la57, options.full_cmdline)
    areas = image_areas("proposal" if "layout=proposal" in words else "linux", levels)
    if options.randomised:
        slot = 1 << (48 if levels == 5 else 39)
        areas = moved_areas(areas, report.areas, "kasan" in words, slot, report.words["ram_end"])
    return Evidence(
        state=control_state(machine.registers()),
        memory=machine.memory,
        cpu=machine.cpu,
        areas=areas,
        image=image,
        load=options.load_address or image.load_address,
        start_info=report.words["start_info"],
        expected_levels=levels,
        has_shadow="kasan" in words,
    )


def control_state(registers: Registers) -> ControlState:
    """The registers that govern paging."""
    return ControlState(
        registers.cr0, registers.cr3, registers.cr4, registers.efer, rflags=registers.rflags, cpl=registers.cpl
    )

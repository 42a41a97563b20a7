"""Boot the image on machines, and put together what came of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Final

from fivefold import _arguments
from fivefold.arch import AddressSpace, ControlState, Mapped, translate
from fivefold.boot.command_line import LAYOUTS, MOST, check_given
from fivefold.boot.image.build import build_image
from fivefold.boot.image.efi_image import efi_file
from fivefold.boot.image.elf_image import HIGHEST_32BIT_END, Image, check_load_address
from fivefold.boot.judge.efi_checks import efi_checks
from fivefold.boot.judge.entry_checks import switch_checks
from fivefold.boot.judge.evidence import Evidence
from fivefold.boot.judge.guest_report import NO_REPORT, GuestReport, read_report
from fivefold.boot.judge.judge import judge
from fivefold.boot.judge.kaslr_areas import moved_areas
from fivefold.boot.judge.smp_checks import cpu_checks
from fivefold.boot.result import BootReport, Check, Run, Skipped
from fivefold.errors import LayoutError, MachineError, MemoryReadError
from fivefold.kernel.boot.detect import REASON_TEXT
from fivefold.kernel.efi.efi_stub import MOST_OPTIONS
from fivefold.kernel.report import EXIT_FAILED, EXIT_PASSED
from fivefold.kernel.smp.smp import MAX_CPUS
from fivefold.layout import image_areas
from fivefold.machine import Event, Exit, Guest, Halted, Machine, Module, available, start
from fivefold.machine.base import EFI_ENTRIES, EntryPoint, Registers
from fivefold.machine.unicorn.limits import unicorn_lacks
from fivefold.units import GIB, MIB, PhysAddr, format_size, hex64

DEFAULT_MEMORY: Final = 512 * MIB
Explain = Callable[[Event, Machine], str]
"""Tells why a run ended as it did, while the machine can still be looked at."""

CPUS: Final = ("la57", "la48")
ENTRIES: Final[tuple[EntryPoint, ...]] = ("pvh", "long48", "long57", "efi", "efi57")
VARIABLES: Final = (
    "pgdir_shift", "ptrs_per_p4d", "page_offset_base", "vmalloc_base", "vmemmap_base", "phys_base",
)  # fmt: skip
FACTS: Final = (
    "phys_bits", "entered_levels", "load_address", "ram_bytes", "ram_end", "cut_bytes", "direct_4k", "direct_2m",
    "direct_1g", "tables", "early_faults", "early_wipes", "scan_ranges", "scan_bytes", "scan_tables",
)  # fmt: skip


@dataclass(frozen=True)
class BootOptions:
    """How to boot. *memory* in bytes, *timeout* in seconds for each run, and for an engine to start."""

    engine: str | None = None
    """What runs the machine; None for Unicorn, and for QEMU where Unicorn cannot."""
    entry: EntryPoint = "pvh"
    layout: str = "linux"
    memory: int = DEFAULT_MEMORY
    load_address: int | None = None
    """Where to load the image; None for where its file says."""
    cmdline: str = ""
    timeout: float = 30.0
    kexec: str | None = None
    """Command line of a second kernel, the same image, that the first one starts; None for none."""
    hibernate: bool = False
    """Save the kernel, restart the machine, resume it, and judge that."""
    smp: int = 1
    """How many CPUs; Unicorn, where it was named, has one, and says so."""

    def __post_init__(self) -> None:
        """Refuse what no machine could do, with `ImageError` or `MachineError`, and with `TypeError` a wrong type."""
        text = dict.fromkeys(("engine", "kexec"), (str, type(None)))
        _arguments.fields(self, **text, entry=(str,), layout=(str,), cmdline=(str,), hibernate=(bool,))
        _arguments.fields(self, memory=(int,), smp=(int,), load_address=(int, type(None)), timeout=(float, int))
        if self.load_address is not None:
            check_load_address(self.load_address)
        if self.entry not in ENTRIES:
            raise MachineError(f"unknown entry {self.entry!r}; expected {', '.join(ENTRIES)}")
        if self.layout not in LAYOUTS:
            raise MachineError(f"unknown layout {self.layout!r}; expected {', '.join(LAYOUTS)}")
        if not 1 <= self.smp <= MAX_CPUS:
            raise MachineError(f"{self.smp} CPUs; expected 1 to {MAX_CPUS}")
        if not self.timeout > 0:  # nan, too
            raise MachineError(f"a timeout of {self.timeout:g} seconds; expected more than 0")
        check_given(f"{self.cmdline} {self._layout_word}")
        check_given(self.kexec or "")
        most, who = (MOST_OPTIONS, "the EFI application") if self.entry in EFI_ENTRIES else (MOST, "the kernel")
        if (length := len(self.full_cmdline)) > most:
            raise MachineError(f"a command line of {length} characters; {who} reads {most} at most")
        if self.hibernate and self.kexec is not None:
            raise MachineError("--hibernate and --kexec both need the loader's module; ask for one of them")

    @property
    def engine_reason(self) -> str:
        """Why it is not Unicorn, where no engine was named; "" if it is, or one was."""
        return "" if self.engine else unicorn_lacks(self.entry, self.smp) or ""

    @property
    def runs_on(self) -> str:
        """The engine: the one that was named, or the one that was chosen."""
        return self.engine or ("qemu" if self.engine_reason else "unicorn")

    @property
    def cpus(self) -> int:
        """How many CPUs the machine has: those asked for, where the engine can have more than one."""
        return 1 if self.runs_on == "unicorn" else self.smp

    @property
    def full_cmdline(self) -> str:
        """The command line with the words that options stand for."""
        smp = f"smp={self.cpus}" if self.cpus != 1 else ""
        words = [self.cmdline, self._layout_word, smp]
        if self.kexec is not None:
            words += ["kexec", "--", self.kexec, smp]
        return " ".join(word for word in words if word)

    @property
    def _layout_word(self) -> str:
        return f"layout={self.layout}" if self.layout != "linux" else ""

    @property
    def randomised(self) -> bool:
        """Whether the kernel is asked to draw its bases and its place."""
        return any(word.split("=")[0] == "kaslr" for word in self.cmdline.split())

    @property
    def may_move(self) -> bool:
        """Whether the kernel at the end may lie elsewhere than the loader put the image."""
        return self.randomised or self.entry in EFI_ENTRIES or self.kexec is not None

    @property
    def last(self) -> BootOptions:
        """The options of the kernel that runs at the end."""
        return self if self.kexec is None else replace(self, cmdline=self.kexec, layout="linux", kexec=None)


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
    options = options or BootOptions()
    if options.engine_reason and (missing := available(options.runs_on)) is not None:
        raise MachineError(f"{options.engine_reason}, and {missing}")
    say("building the image")
    image = image or build_image()
    options = replace(options, load_address=options.load_address or image.load_address)
    runs: list[Run] = []
    skipped: list[Skipped] = []
    for cpu in cpus:
        if options.entry in ("long57", "efi57") and cpu == "la48":
            skipped.append(Skipped(cpu, "a CPU without LA57 cannot be entered with five levels"))
            continue
        say(f"booting on {options.runs_on}, {cpu}")
        try:
            runs.append(boot_one(cpu, options, image, explain))
        except MachineError as error:
            # Which CPUs there are depends on the host only under KVM; elsewhere the call is at fault.
            if options.runs_on != "kvm" or len(cpus) == 1:
                raise
            skipped.append(Skipped(cpu, str(error)))
    say("")
    if not runs:
        raise MachineError(f"nothing to run: {skipped[0].reason}" if skipped else "no CPU to run on")
    return BootReport(tuple(runs), tuple(skipped))


def boot_one(cpu: str, options: BootOptions, image: Image, explain: Explain | None = None) -> Run:
    """Boot on one CPU, read the guest's own report, and judge the result from outside."""
    return boot_guest(make_guest(cpu, options, image), options, image, explain)


def hibernate(guest: Guest, options: BootOptions, image: Image) -> Guest | Check:
    """Run *guest* until it has saved itself; the guest that resumes it on a restarted machine, or why there is none."""
    saving = replace(guest, cmdline=f"{guest.cmdline} hibernate=save".strip())
    with start(options.runs_on, saving, options.timeout) as machine:
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
    with start(options.runs_on, guest, options.timeout) as machine:
        event = machine.run(options.timeout)
        load, report = last_report(machine, options, image)
        checks = [completed(event, report), *early, *report.checks]
        story = explain(event, machine) if explain and not checks[0].ok else ""
        if report.is_done:
            checks += from_outside(machine, replace(options.last, load_address=load), image, report)
        if report.is_done and options.kexec is None:
            levels = expected_levels(machine.cpu.la57, options.cmdline)
            now, words = machine.registers(), report.words
            checks += switch_checks(options.entry, levels, words, now, machine.memory, options.cpus > 1)
        if options.kexec is not None:
            checks += handed_over(machine, options, image, report)
        instructions, output = machine.instructions, machine.output.decode(errors="replace")
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
        variables={name: words.get(name, 0) for name in VARIABLES} if words else {},
        facts={name: words.get(name, 0) for name in FACTS} if words else {},
        checks=tuple(checks),
        skipped=(*report.skipped, *left_out(options)),
        instructions=instructions,
        seconds=time.perf_counter() - began,
        output=output,
        story=story,
    )


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
    """Whether a first kernel ran to its end, in its own mode, and started the one that *report* is from."""
    previous, load = report.words.get("previous", 0), report.words.get("load_address", 0)
    if not previous:
        return [Check.outside("kexec_arrived", "the last kernel was not started by another")]
    if previous < load + image.size and load < previous + image.size:  # what is read there would be the last one's
        return [Check.outside("kexec_arrived", f"the last kernel lies at {hex64(load)}, on the one before")]
    first = read_report(machine.memory, image, previous)
    failed = [check.name for check in first.checks if not check.ok]
    levels = first.words.get("levels", 0)
    want = expected_levels(machine.cpu.la57, options.cmdline)
    return [
        Check.outside("kexec_arrived", ""),
        Check(
            "kexec_first_kernel",
            "outside",
            first.is_done and not failed,
            f"failed: {', '.join(failed)}" if failed else "",
        ),
        Check(
            "kexec_first_mode", "outside", levels == want, "" if levels == want else f"{levels} levels, expected {want}"
        ),
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


def make_guest(cpu: str, options: BootOptions, image: Image) -> Guest:
    """The guest that *options* describe. `MachineError` for memory or an address that cannot be."""
    load = options.load_address or image.load_address
    end = load + image.size
    if options.memory < end and load < 3 * GIB:
        raise MachineError(
            f"too little memory: the image ends at {hex64(end)}, the machine has {format_size(options.memory)}"
        )
    if options.entry == "pvh" and end > HIGHEST_32BIT_END:
        raise MachineError(f"load address {hex64(load)} is above 4 GiB, where the 32-bit entry pvh cannot be")
    if options.runs_on != "unicorn" and load < 4 * GIB and end > 3 * GIB:  # Unicorn's own loader knows its map
        raise MachineError(f"the image needs {hex64(load)} to {hex64(end)}, where there is no RAM: devices are there")
    entry: EntryPoint = options.entry
    if entry in EFI_ENTRIES:
        return efi_guest(cpu, options, image, load)
    if options.runs_on != "unicorn" and options.entry != "pvh":
        if end > HIGHEST_32BIT_END:
            raise MachineError(f"{options.runs_on} loads below 4 GiB only, not at {hex64(load)}; use unicorn")
        # Its loader enters in 32-bit code only: a stub in the image turns paging on and goes on to the 64-bit entry.
        entry = "pvh"
    symbol = "pvh_entry" if entry == options.entry else f"stub_{options.entry}"
    return Guest(
        image=image.place(load, symbol),
        entry=entry,
        entry64=image.physical("entry_64", load),
        cpu=cpu,
        memory=options.memory,
        cmdline=options.full_cmdline,
        sites=image.sites(load),
        modules=() if options.kexec is None else (Module(image.place(load)),),
        cpus=options.cpus,
    )


def efi_guest(cpu: str, options: BootOptions, image: Image, load: int) -> Guest:
    """The guest whose firmware starts the image as an application; the firmware has the last word on its place."""
    if options.kexec is not None:
        raise MachineError("the entry efi takes no second kernel: the firmware hands over no module")
    return Guest(
        image=efi_file(image, load, levels=5 if options.entry == "efi57" else 0),
        entry=options.entry,
        cpu=cpu,
        memory=options.memory,
        cmdline=options.full_cmdline,
        cpus=options.cpus,
    )


def completed(event: Event, report: GuestReport) -> Check:
    """Whether the guest ran to its end; if not, how it stopped.

    It writes its exit code to a port and halts; an engine without a device there sees only the latter.
    """
    ended = isinstance(event, Halted) or (isinstance(event, Exit) and event.code in (EXIT_PASSED, EXIT_FAILED))
    detail = str(event) + (f": {report.panic}" if report.panic else "")
    return Check("completed", "outside", report.is_done and ended, detail)


def expected_levels(cpu_has_la57: bool, cmdline: str) -> int:
    """The mode that must come out, whatever the entry: a function of the CPU and of ``no5lvl`` only."""
    return 5 if cpu_has_la57 and "no5lvl" not in cmdline.split() else 4


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

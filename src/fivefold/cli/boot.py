"""`fivefold boot`: run the image on a CPU with LA57 and on one without, and print the two side by side."""

from __future__ import annotations

import json
import sys
from enum import StrEnum
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fivefold.cli import values
from fivefold.cli.printing import over_write
from fivefold.errors import FivefoldError, ImageError

if TYPE_CHECKING:
    from fivefold.machine import Event, Machine


class EngineChoice(StrEnum):
    """What runs the machine."""

    unicorn = "unicorn"
    qemu = "qemu"
    kvm = "kvm"
    bochs = "bochs"


class EntryChoice(StrEnum):
    """How the loader enters the image."""

    pvh = "pvh"
    long48 = "long48"
    long57 = "long57"
    multiboot2 = "multiboot2"
    efi = "efi"
    efi57 = "efi57"


class LayoutChoice(StrEnum):
    """Which map of areas the kernel uses."""

    linux = "linux"
    proposal = "proposal"


def boot(
    image: Annotated[
        Path | None, typer.Argument(help="An image written by `fivefold image`; by default the built-in one.")
    ] = None,
    cpu: Annotated[
        str,
        typer.Option(metavar="CPU", help="la57, la48, both, or a model by the engine's own name for it."),
    ] = "both",
    engine: Annotated[
        EngineChoice | None, typer.Option(help="What runs the machine. [default: unicorn; qemu where unicorn cannot]")
    ] = None,
    entry: Annotated[
        EntryChoice | None,
        typer.Option(
            help="32-bit entry, 64-bit with paging on in that depth, GRUB under BIOS, or UEFI. "
            "[default: pvh; multiboot2 on bochs]"
        ),
    ] = None,
    layout: Annotated[
        LayoutChoice, typer.Option(help="Today's map of areas, or the 2017 proposal's.")
    ] = LayoutChoice.linux,
    memory: Annotated[int, typer.Option(parser=values.size, metavar="SIZE", help="Memory of the machine.")] = "512M",  # type: ignore[assignment]
    load_address: Annotated[
        int | None,
        typer.Option(parser=values.address, metavar="ADDRESS", help="Where to load the image: a multiple of 2 MiB."),
    ] = None,
    cmdline: Annotated[str, typer.Option(help='Command line of the kernel, such as "no5lvl" or "pages=4k".')] = "",
    kexec: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CMDLINE",
            help="Then start a second kernel with this command line, and judge that. Once more: a third, and so on.",
        ),
    ] = None,
    smp: Annotated[
        int, typer.Option(parser=values.count(), metavar="N", help="CPUs of the machine; more than one needs QEMU.")
    ] = 1,
    hibernate: Annotated[
        bool, typer.Option("--hibernate", help="Save the kernel, restart the machine, resume it, and judge that.")
    ] = False,
    timeout: Annotated[
        float, typer.Option(parser=values.seconds, metavar="SECONDS", help="Stop a run after this long.")
    ] = 30.0,
    qemu: Annotated[
        str | None,
        typer.Option(metavar="PATH", help="Run on this QEMU: a program, or a folder of unpacked packages."),
    ] = None,
    bochs: Annotated[
        str | None,
        typer.Option(metavar="PATH", help="Run on this Bochs: a program, or a folder of unpacked packages."),
    ] = None,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show every check and the serial output.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the schema fivefold.boot/1.")] = False,
) -> int:
    """Boot one image with five levels of page tables and with four, and check the result from inside and outside."""
    from fivefold.boot import CPUS, MOST_BYTES, BootOptions, parse, read_file
    from fivefold.boot import boot as run_boot
    from fivefold.boot.command_line import near_word, unknown_words

    chosen, program = _engine(engine, qemu, bochs)
    options = BootOptions(
        chosen,
        entry.value if entry else "multiboot2" if chosen == "bochs" else "pvh",
        layout.value,
        memory,
        load_address,
        cmdline,
        timeout,
        kexec=" kexec -- ".join(kexec) if kexec else None,
        hibernate=hibernate,
        smp=smp,
        program=program,
    )
    given = None
    if image:
        data = read_file(image, MOST_BYTES)
        try:
            given = parse(data)
        except ImageError as error:
            raise ImageError(f"{image}: {error}") from error
    cpus = CPUS if cpu == "both" else (cpu,)
    for word in unknown_words(" ".join((cmdline, *(kexec or ())))):
        near = f"; did you mean {known}?" if (known := near_word(word)) else ""
        print(f"fivefold: the kernel does not know {word!r}, and passes over it{near}", file=sys.stderr)
    report = run_boot(cpus, options, given, _say, _why)
    if as_json:
        json.dump(report.to_json(), sys.stdout, indent=2)
        print()
    else:
        from fivefold.report.console import report_console
        from fivefold.report.text.boot import print_boot

        print_boot(report, report_console(piped=160), verbose)
    return 0 if report.ok else 1


def _engine(engine: EngineChoice | None, qemu: str | None, bochs: str | None) -> tuple[str | None, str | None]:
    """Which engine, and which program of it: the option that names a program chooses the engine, too."""
    if qemu is not None and bochs is not None:
        raise typer.BadParameter("--qemu and --bochs are two engines; a boot runs on one of them")
    for program, names in ((qemu, ("qemu", "kvm")), (bochs, ("bochs",))):
        if program is not None:
            if engine is not None and engine.value not in names:
                raise typer.BadParameter(f"--{names[0]} is of no use to the engine {engine.value}")
            return engine.value if engine else names[0], program
    return engine.value if engine else None, None


def _why(event: Event, machine: Machine) -> str:
    """The story of a run that did not come to its end; "" where only a shutdown would have one."""
    from fivefold.explain import explain, explain_event
    from fivefold.machine import PoweredOff, Reset, Shutdown
    from fivefold.report.text.explain import explanation_lines

    if isinstance(event, Reset | PoweredOff):
        return ""  # what the registers show comes after it
    try:
        log = getattr(machine, "log", b"")
        told = explain(BytesIO(log)) if machine.opaque else explain_event(event, machine)
    except FivefoldError as error:
        return f"it cannot be explained: {error}"
    if told.cause.rule == "unknown" and not isinstance(event, Shutdown):
        return ""
    return "\n".join(explanation_lines(told))


def _say(step: str) -> None:
    """Show what goes on, where standard error is a terminal."""
    if sys.stderr.isatty():
        over_write(step)

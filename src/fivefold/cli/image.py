"""`fivefold image`: write the bootable image."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from fivefold.cli import values
from fivefold.cli.printing import write_output
from fivefold.errors import MachineError


class ImageFormat(StrEnum):
    """What kind of file."""

    elf = "elf"
    efi = "efi"
    iso = "iso"


class FileEntryChoice(StrEnum):
    """Where the 32-bit entry of the file leads."""

    pvh = "pvh"
    long48 = "long48"
    long57 = "long57"


def image(
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="The file to write; - is standard output.")
    ],
    format: Annotated[
        ImageFormat,
        typer.Option(
            help="ELF with a PVH note and a multiboot2 header, for `qemu-system-x86_64 -kernel` and for GRUB. "
            "EFI application. ISO: GRUB for UEFI and BIOS."
        ),
    ] = ImageFormat.elf,
    load_address: Annotated[
        int | None,
        typer.Option(parser=values.address, metavar="ADDRESS", help="Where it is to be loaded: a multiple of 2 MiB."),
    ] = None,
    entry: Annotated[
        FileEntryChoice, typer.Option(help="Decide in 32-bit code, or first turn paging on in that depth.")
    ] = FileEntryChoice.pvh,
    cmdline: Annotated[str, typer.Option(help="Command line in the menu of an ISO.")] = "",
) -> int:
    """Write the bootable image: the same bytes from the same sources."""
    from fivefold.boot import DEFAULT_LOAD_ADDRESS, build_image
    from fivefold.boot.command_line import check_menu
    from fivefold.boot.image.efi_image import efi_file
    from fivefold.boot.image.iso import iso_file
    from fivefold.kernel.efi.efi_stub import MOST_OPTIONS

    if cmdline and format is not ImageFormat.iso:
        raise MachineError(f"a command line goes into an ISO's menu; the loader gives one to {format.value}")
    check_menu(cmdline)
    if len(cmdline) > MOST_OPTIONS:
        raise MachineError(
            f"a command line of {len(cmdline)} characters; the EFI application reads {MOST_OPTIONS} at most"
        )
    built = build_image()
    load = DEFAULT_LOAD_ADDRESS if load_address is None else load_address
    if format is not ImageFormat.elf:
        if entry is not FileEntryChoice.pvh:
            raise MachineError(f"an EFI application is entered by the firmware, not by {entry.value}")
        data = efi_file(built, load)
        data = iso_file(data, built.place(load), cmdline) if format is ImageFormat.iso else data
    else:
        data = built.place(load, "pvh_entry" if entry is FileEntryChoice.pvh else f"stub_{entry.value}")
    write_output(output, data, f"{format.value}, {len(data)} bytes, {built.size} bytes in memory")
    return 0

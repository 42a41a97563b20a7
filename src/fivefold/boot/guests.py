"""The guest that options describe: the image as its loader takes it, and what is handed over with it."""

from __future__ import annotations

from fivefold.boot.image.efi_image import efi_file
from fivefold.boot.image.elf_image import HIGHEST_32BIT_END, Image
from fivefold.boot.image.iso import iso_file
from fivefold.boot.options import BootOptions
from fivefold.errors import MachineError
from fivefold.machine import Guest, Module
from fivefold.machine.base import EFI_ENTRIES, EntryPoint
from fivefold.units import GIB, format_size, hex64


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
    if entry == "multiboot2":
        return iso_guest(cpu, options, image, load)
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
    return Guest(
        image=efi_file(image, load, levels=5 if options.entry == "efi57" else 0),
        entry=options.entry,
        cpu=cpu,
        memory=options.memory,
        cmdline=options.full_cmdline,
        cpus=options.cpus,
    )


def iso_guest(cpu: str, options: BootOptions, image: Image, load: int) -> Guest:
    """The guest whose BIOS starts GRUB from an ISO, which starts the image with the command line in its menu."""
    if load + image.size > HIGHEST_32BIT_END:
        raise MachineError(f"GRUB loads below 4 GiB only, not at {hex64(load)}")
    return Guest(
        image=iso_file(None, image.place(load), options.full_cmdline),
        entry=options.entry,
        cpu=cpu,
        memory=options.memory,
        cmdline=options.full_cmdline,
        cpus=options.cpus,
    )

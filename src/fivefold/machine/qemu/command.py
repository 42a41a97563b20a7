"""The command line of QEMU for a guest, and what its loader cannot do."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from fivefold.errors import MachineError
from fivefold.machine.base import EFI_ENTRIES, EXIT_PORT, Guest, Module
from fivefold.machine.loading.elf import load_segments, pvh_entry
from fivefold.machine.loading.firmware import firmware
from fivefold.machine.loading.memory_map import PC_SPLIT, split_extents
from fivefold.machine.program import HostProgram
from fivefold.units import format_size, hex64

CPU_MODELS: Final = {
    "tcg": {"la57": "max", "la48": "max,la57=off"},
    # Under KVM -cpu host and max may fail where virtualisation is nested; qemu64 starts.
    "kvm": {"la57": "qemu64,+la57,enforce", "la48": "qemu64"},
}
_ACPI_TABLES: Final = 0x2_8000
"""QEMU keeps so much of the end of memory below 4 GiB free of modules (acpi_data_size of its "pc" machine)."""


def program_arguments(program: HostProgram) -> list[str]:
    """*program*, and where its data is if that is not where it was built to be."""
    places = [program.data(f"usr/share/{name}") for name in ("qemu", "seabios")] if program.is_unpacked else []
    return [*program.command, *(word for place in places if place for word in ("-L", str(place)))]


def program_environment(program: HostProgram) -> dict[str, str]:
    """What tells an unpacked QEMU where its modules are."""
    modules = program.data("usr/lib/x86_64-linux-gnu/qemu") if program.is_unpacked else None
    return {"QEMU_MODULE_DIR": str(modules)} if modules else {}


def check_guest(guest: Guest, name: str, root: Path) -> int:
    """The size of RAM; refuses what QEMU's loader cannot do. Firmware is looked for below *root*."""
    for asked, what in (
        (guest.cpuid, "CPUID overrides"),
        (guest.start_info is not None, "a place for the start information"),
        (guest.handover is not None, "a place for the loader's tables"),
        (not isinstance(guest.memory, int), "a memory map of its own"),
        (len(guest.modules) > 1, "more than one module"),
        (any(module.cmdline for module in guest.modules), "command lines of modules"),
    ):
        if asked:
            raise MachineError(f"the engine {name} cannot give a guest {what}")
    assert isinstance(guest.memory, int)
    split_extents(guest.memory, PC_SPLIT)
    if guest.entry in EFI_ENTRIES:
        firmware(root)
        return guest.memory
    if guest.entry == "multiboot2":
        return guest.memory
    # QEMU would say only that it cannot load the file.
    image_end = load_segments(guest.image)[-1].end
    pvh_entry(guest.image)
    for module in guest.modules:
        _check_place(module, image_end, min(guest.memory, PC_SPLIT), name)
    return guest.memory


def _check_place(module: Module, image_end: int, memory_end: int, name: str) -> None:
    """Refuse a module that QEMU's loader would put over the image: it asks only how much memory there is."""
    place = (memory_end - _ACPI_TABLES - 1 - len(module.data)) & ~0xFFF
    if place < image_end:
        raise MachineError(
            f"the engine {name} puts the module of {format_size(len(module.data))} to the end of memory, over the "
            f"image, which ends at {hex64(image_end)}; load it lower, or give more memory"
        )


def guest_arguments(guest: Guest, accelerator: str, size: int, ram: int, image: int) -> list[str]:
    """Words for the machine, its CPUs, its memory in file descriptor *ram*, and what it boots, in *image*."""
    cpu = CPU_MODELS[accelerator].get(guest.cpu, guest.cpu)
    return [
        *("-nodefaults", "-no-user-config", "-display", "none", "-S"),
        *("-accel", accelerator, "-cpu", cpu, "-m", f"{size}B"),
        # A PC has RAM up to 3.5 GiB below the hole by default; ours always ends at 3 GiB.
        *_cpus(guest, accelerator),
        *("-M", f"pc,memory-backend=ram,max-ram-below-4g={PC_SPLIT}"),
        *("-object", f"memory-backend-file,id=ram,size={size},mem-path=/proc/self/fd/{ram},share=on"),
        *("-action", "reboot=shutdown,shutdown=pause"),
        *_what_to_boot(guest, image),
    ]


def _what_to_boot(guest: Guest, image: int) -> list[str]:
    if guest.entry == "multiboot2":
        return ["-drive", f"media=cdrom,format=raw,readonly=on,file=/proc/self/fd/{image}", "-boot", "d"]
    return ["-kernel", f"/proc/self/fd/{image}", "-append", guest.cmdline]


def _cpus(guest: Guest, accelerator: str) -> list[str]:
    """As many CPUs as asked for; the last may be a model of its own, with other features of the same type."""
    if guest.cpus == 1:
        return []
    if guest.last_cpu is None:
        return ["-smp", str(guest.cpus)]
    model, _, features = CPU_MODELS[accelerator].get(guest.last_cpu, guest.last_cpu).partition(",")
    place = f"socket-id={guest.cpus - 1},core-id=0,thread-id=0"
    device = ",".join(part for part in (f"{model}-x86_64-cpu", features, place) if part)
    return ["-smp", f"{guest.cpus - 1},sockets={guest.cpus},cores=1,threads=1,maxcpus={guest.cpus}", "-device", device]


def channel_arguments(monitor: int, serial: int, exit_port: int) -> list[str]:
    """Words for the monitor, the serial port and the exit port, each a file descriptor."""
    return [
        *("-chardev", f"socket,id=monitor,fd={monitor}", "-mon", "chardev=monitor,mode=control"),
        *("-chardev", f"file,id=serial,path=/proc/self/fd/{serial}", "-serial", "chardev:serial"),
        *("-chardev", f"socket,id=exit,fd={exit_port}", "-device", f"isa-debugcon,iobase={EXIT_PORT},chardev=exit"),
    ]

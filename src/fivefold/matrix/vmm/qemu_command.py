"""QEMU's arguments for a cell: those that make the machine, and those by which we, or a person, watch it."""

from __future__ import annotations

from typing import Final

from fivefold.machine.loading.firmware import firmware
from fivefold.matrix.cells import Cell, memory_parts
from fivefold.units import MIB

PROGRAM: Final = "qemu-system-x86_64"
CD: Final = "cd.iso"
"""What the CD of a cell under GRUB is called, where it is kept."""


def machine_arguments(cell: Cell, accelerator: str = "tcg", backend: str | None = None) -> list[str]:
    """Machine, CPU and memory; *backend* is the id of the object that memory is, None for QEMU's own."""
    low, high = memory_parts(cell.memory)
    options = [cell.machine]
    if high:
        options.append(f"max-ram-below-4g={low}")
    if backend:
        options.append(f"memory-backend={backend}")
    return [
        *("-nodefaults", "-no-user-config", "-display", "none", "-accel", accelerator),
        *("-M", ",".join(options), "-cpu", cell.cpu_model, "-m", f"{(low + high) // MIB}M"),
        *(("-smp", str(cell.smp)) if cell.smp > 1 else ()),
    ]


def boot_arguments(cell: Cell, cmdline: str, kernel: str, initramfs: str) -> list[str]:
    """What is booted; under GRUB *kernel* is the CD, which has the rest."""
    if cell.path == "bios-grub":
        return ["-drive", f"media=cdrom,format=raw,readonly=on,file={kernel}", "-boot", "d"]
    return ["-kernel", kernel, "-initrd", initramfs, "-append", cmdline]


def disk_arguments(disk: str | None) -> list[str]:
    """The NVMe disk that a hibernating kernel saves itself to."""
    if disk is None:
        return []
    return ["-drive", f"file={disk},format=raw,if=none,id=disk", "-device", "nvme,drive=disk,serial=fivefold"]


def firmware_arguments(cell: Cell, variables: str) -> list[str]:
    """OVMF where the cell's path asks for it; *variables* is a file for the guest's own variables."""
    if cell.path != "uefi":
        return []
    found = firmware()
    if found.variables is None:
        return ["-bios", str(found.code)]
    drive = "if=pflash,format=raw"
    return ["-drive", f"{drive},readonly=on,file={found.code}", "-drive", f"{drive},file={variables}"]


def command_for_people(
    cell: Cell, cmdline: str, kernel: str, initramfs: str, disk: str | None, accelerator: str = "tcg"
) -> list[str]:
    """The whole command, with the console on the terminal."""
    return [
        PROGRAM,
        *machine_arguments(cell, accelerator),
        *firmware_arguments(cell, "OVMF_VARS.fd"),
        *boot_arguments(cell, cmdline, CD if cell.path == "bios-grub" else kernel, initramfs),
        *disk_arguments(disk),
        *("-serial", "stdio", "-no-reboot"),
    ]

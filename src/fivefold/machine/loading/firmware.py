"""Where distributions put OVMF, the firmware that QEMU starts UEFI applications with.

In one file, or in two: code that is not written, and the variables beside it, of which every guest has its own copy.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final, NamedTuple

from fivefold.errors import MachineError


class Firmware(NamedTuple):
    """OVMF's file, and that of its variables where they are not in it."""

    code: Path
    variables: Path | None = None


FIRMWARE: Final = (
    Firmware(Path("/usr/share/ovmf/OVMF.fd")),  # Debian
    Firmware(Path("/usr/share/OVMF/OVMF.fd")),
    Firmware(Path("/usr/share/OVMF/OVMF_CODE_4M.fd"), Path("/usr/share/OVMF/OVMF_VARS_4M.fd")),  # Debian, Ubuntu
    Firmware(Path("/usr/share/OVMF/OVMF_CODE.fd"), Path("/usr/share/OVMF/OVMF_VARS.fd")),  # before Ubuntu 24.04
    Firmware(Path("/usr/share/edk2/ovmf/OVMF_CODE.fd"), Path("/usr/share/edk2/ovmf/OVMF_VARS.fd")),  # Fedora
)
"""The first that is there is taken. Those that insist on signed applications (`.secboot`, `.ms`) are of no use."""
INSTALL: Final = "install it with: apt-get install ovmf"


def firmware(root: Path = Path("/")) -> Firmware:
    """OVMF, of the system at *root* if it has it, else of this one; `MachineError` where it is not installed."""
    own = [
        Firmware(root / code.relative_to("/"), variables and root / variables.relative_to("/"))
        for code, variables in FIRMWARE
    ]
    for found in (*own, *FIRMWARE):
        if found.code.exists() and (found.variables is None or found.variables.exists()):
            return found
    raise MachineError(f"the entry efi needs the firmware OVMF, which is not at {FIRMWARE[0].code}; {INSTALL}")


def firmware_arguments(found: Firmware, variables: int) -> list[str]:
    """QEMU's arguments for it; *variables* is an empty open file, to be passed on, that the guest's copy goes to."""
    if found.variables is None:
        return ["-bios", str(found.code)]
    os.pwrite(variables, found.variables.read_bytes(), 0)
    drive = "if=pflash,format=raw"
    return ["-drive", f"{drive},readonly=on,file={found.code}", "-drive", f"{drive},file=/proc/self/fd/{variables}"]

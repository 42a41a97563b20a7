"""A bootable ISO image: the distribution's GRUB, which starts our EFI application under UEFI, our ELF file under BIOS.

One file for both: `grub-mkrescue` puts a loader for every kind of firmware that GRUB is installed for into the image.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Final

from fivefold.errors import ImageError
from fivefold.machine.child import environment

NEEDED: Final = {
    "grub-mkrescue": "grub-common", "xorriso": "xorriso", "mformat": "mtools",
}  # fmt: skip
"""Programs, and the Debian packages that have them; `grub-mkrescue` calls the others."""
GRUB: Final = "/usr/lib/grub"
PLATFORMS: Final = {"x86_64-efi": "grub-efi-amd64-bin", "i386-pc": "grub-pc-bin"}
"""Folders of `GRUB` that have its modules for UEFI and for BIOS, and the Debian packages that have them."""
_TIMEOUT: Final = 120
_APPLICATION: Final = "/fivefold/fivefold.efi"
_KERNEL: Final = "/fivefold/fivefold.elf"
_MENU: Final = """set timeout=0
set default=0
menuentry "Fivefold" {{
    if [ "$grub_platform" = efi ]; then
        chainloader {application} {cmdline}
    else
        multiboot2 {kernel} {cmdline}
    fi
    boot
}}
"""
_QUOTED: Final = frozenset("'\"\\${};|&<>#\n")


def iso_file(application: bytes, kernel: bytes, cmdline: str = "") -> bytes:
    """The ISO that starts *application* under UEFI and the ELF file *kernel* under BIOS, with *cmdline*.

    `ImageError` if what makes it is not installed: one that starts under one of the two only would be found out late.
    """
    if bad := sorted(_QUOTED & set(cmdline)):
        raise ImageError(f"GRUB's menu cannot hold {bad[0]!r} in a command line")
    path = environment()["PATH"]
    missing = [package for program, package in NEEDED.items() if shutil.which(program, path=path) is None]
    missing += [package for folder, package in PLATFORMS.items() if not (Path(GRUB) / folder).is_dir()]
    if missing:
        raise ImageError(f"an ISO image needs GRUB's tools; install them with: apt-get install {' '.join(missing)}")
    with tempfile.TemporaryDirectory(prefix="fivefold-iso-") as folder:
        return _make(Path(folder), application, kernel, cmdline)


def _make(folder: Path, application: bytes, kernel: bytes, cmdline: str) -> bytes:
    tree, out = folder / "tree", folder / "out.iso"
    menu = _MENU.format(application=_APPLICATION, kernel=_KERNEL, cmdline=cmdline)
    for name, data in ((_APPLICATION, application), (_KERNEL, kernel), ("/boot/grub/grub.cfg", menu.encode())):
        path = tree / name.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    command = ["grub-mkrescue", "-o", str(out), str(tree)]
    try:
        done = subprocess.run(
            command, capture_output=True, timeout=_TIMEOUT, check=False, cwd=folder, env=environment()
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ImageError(f"grub-mkrescue did not make the image: {error}") from error
    if done.returncode != 0 or not out.exists():
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise ImageError(f"grub-mkrescue did not make the image: {said[-1] if said else 'it says nothing'}")
    return out.read_bytes()

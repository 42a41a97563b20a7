"""A bootable ISO image: the distribution's GRUB, which starts our EFI application under UEFI, our ELF file under BIOS.

One file for both: `grub-mkrescue` puts a loader for every kind of firmware that GRUB is installed for into the image.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Mapping
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
VOLUME: Final = "FIVEFOLD"
_BIOS: Final = "i386-pc"
_TIMEOUT: Final = 120
_APPLICATION: Final = "/fivefold/fivefold.efi"
_KERNEL: Final = "/fivefold/fivefold.elf"
_MENU: Final = """set timeout=0
set default=0
menuentry "Fivefold" {{
    if [ "$grub_platform" = {platform} ]; then
        chainloader {application} {cmdline}
    else
        multiboot2 {kernel} {cmdline}
        {modules}
    fi
    boot
}}
"""
_NO_PLATFORM: Final = "none"
_QUOTED: Final = frozenset("'\"\\${};|&<>#\n")


def iso_file(application: bytes | None, kernel: bytes, cmdline: str = "") -> bytes:
    """The ISO that starts *application* under UEFI and the ELF file *kernel* under BIOS, with *cmdline*.

    With the word ``kexec`` GRUB starts the kernel under UEFI, too, and hands it a second one: the application is given
    no module. Without *application* the ISO is for BIOS only, and made faster. `ImageError` if what makes it is not
    installed: one that starts under one of the two only would be found out late.
    """
    if bad := sorted(_QUOTED & set(cmdline)):
        raise ImageError(f"GRUB's menu cannot hold {bad[0]!r} in a command line")
    platforms = PLATFORMS if application is not None else {_BIOS: PLATFORMS[_BIOS]}
    if missing := missing_packages(platforms):
        raise ImageError(f"an ISO image needs GRUB's tools; install them with: apt-get install {' '.join(missing)}")
    with tempfile.TemporaryDirectory(prefix="fivefold-iso-") as folder:
        return _make(Path(folder), application, kernel, cmdline)


def missing_packages(platforms: Mapping[str, str]) -> list[str]:
    """The packages that an ISO for *platforms* needs and that are not installed."""
    path = environment()["PATH"]
    missing = [package for program, package in NEEDED.items() if shutil.which(program, path=path) is None]
    return missing + [package for folder, package in platforms.items() if not (Path(GRUB) / folder).is_dir()]


def _make(folder: Path, application: bytes | None, kernel: bytes, cmdline: str) -> bytes:
    tree, out, scratch = folder / "tree", folder / "out.iso", folder / "scratch"
    scratch.mkdir()
    has_second = "kexec" in cmdline.partition(" -- ")[0].split()
    menu = _MENU.format(
        platform=_NO_PLATFORM if has_second or application is None else "efi",
        application=_APPLICATION,
        kernel=_KERNEL,
        cmdline=cmdline,
        modules=f"module2 {_KERNEL}" if has_second else "",
    )
    for name, data in ((_APPLICATION, application), (_KERNEL, kernel), ("/boot/grub/grub.cfg", menu.encode())):
        if data is not None:
            path = tree / name.lstrip("/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    only = [] if application is not None else ["-d", f"{GRUB}/{_BIOS}"]
    command = ["grub-mkrescue", *only, "-o", str(out), str(tree), "--", "-volid", VOLUME]
    try:
        done = subprocess.run(
            command, capture_output=True, timeout=_TIMEOUT, check=False, cwd=folder,
            env=environment() | {"TMPDIR": str(scratch)},  # it leaves files there when it fails
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ImageError(f"grub-mkrescue did not make the image: {error}") from error
    if done.returncode != 0 or not out.exists():
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise ImageError(f"grub-mkrescue did not make the image: {said[-1] if said else 'it says nothing'}")
    return out.read_bytes()

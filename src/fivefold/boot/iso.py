"""A bootable ISO image: GRUB for UEFI, as the distribution has it, which starts our EFI application."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Final

from fivefold.errors import ImageError

NEEDED: Final = {
    "grub-mkrescue": "grub-common", "xorriso": "xorriso", "mformat": "mtools",
}  # fmt: skip
"""Programs, and the Debian packages that have them; `grub-mkrescue` calls the others."""
GRUB_MODULES: Final = "/usr/lib/grub/x86_64-efi"
MODULES_PACKAGE: Final = "grub-efi-amd64-bin"
_TIMEOUT: Final = 120
_APPLICATION: Final = "/fivefold/fivefold.efi"
_MENU: Final = """set timeout=0
set default=0
menuentry "Fivefold" {{
    chainloader {application} {cmdline}
    boot
}}
"""
_QUOTED: Final = frozenset("'\"\\${};|&<>#\n")


def iso_file(application: bytes, cmdline: str = "") -> bytes:
    """The ISO that starts *application* with *cmdline* under UEFI. `ImageError` if what makes it is not installed."""
    if bad := sorted(_QUOTED & set(cmdline)):
        raise ImageError(f"GRUB's menu cannot hold {bad[0]!r} in a command line")
    missing = [package for program, package in NEEDED.items() if shutil.which(program) is None]
    if not Path(GRUB_MODULES).is_dir():
        missing.append(MODULES_PACKAGE)
    if missing:
        raise ImageError(f"an ISO image needs GRUB's tools; install them with: apt-get install {' '.join(missing)}")
    with tempfile.TemporaryDirectory(prefix="fivefold-iso-") as folder:
        return _make(Path(folder), application, cmdline)


def _make(folder: Path, application: bytes, cmdline: str) -> bytes:
    tree, out = folder / "tree", folder / "out.iso"
    (tree / "fivefold").mkdir(parents=True)
    (tree / "boot" / "grub").mkdir(parents=True)
    (tree / _APPLICATION.lstrip("/")).write_bytes(application)
    (tree / "boot" / "grub" / "grub.cfg").write_text(_MENU.format(application=_APPLICATION, cmdline=cmdline))
    command = ["grub-mkrescue", "-d", GRUB_MODULES, "-o", str(out), str(tree)]
    try:
        done = subprocess.run(command, capture_output=True, timeout=_TIMEOUT, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ImageError(f"grub-mkrescue did not make the image: {error}") from error
    if done.returncode != 0 or not out.exists():
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise ImageError(f"grub-mkrescue did not make the image: {said[-1] if said else 'it says nothing'}")
    return out.read_bytes()

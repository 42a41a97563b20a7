"""A CD whose GRUB starts a kernel under BIOS, as a distribution's installed GRUB does."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Final

from fivefold.boot.image.iso import GRUB, missing_packages
from fivefold.errors import MachineError
from fivefold.machine.child import environment
from fivefold.matrix.vmm.qemu_command import CD

PLATFORM: Final = {"i386-pc": "grub-pc-bin"}
_SECONDS: Final = 120
_MENU: Final = """set timeout=0
set default=0
menuentry "kernel" {{
    linux /kernel {cmdline}
    initrd /initramfs
}}
"""
_SPECIAL: Final = frozenset("'\"\\${};|&<>#\n")


def grub_refusal() -> str | None:
    """Why no such CD can be made here, or None."""
    missing = missing_packages(PLATFORM)
    return f"needs GRUB's tools: apt-get install {' '.join(missing)}" if missing else None


def make_cd(folder: Path, kernel: bytes, initramfs: bytes, cmdline: str) -> Path:
    """Make the CD in *folder*, an empty one; `MachineError` where that fails."""
    if bad := sorted(_SPECIAL & set(cmdline)):
        raise MachineError(f"GRUB's menu cannot hold {bad[0]!r} in a command line")
    tree, out = folder / "tree", folder / CD
    try:
        (tree / "boot" / "grub").mkdir(parents=True)
        (tree / "boot" / "grub" / "grub.cfg").write_text(_MENU.format(cmdline=cmdline))
        (tree / "kernel").write_bytes(kernel)
        (tree / "initramfs").write_bytes(initramfs)
        done = subprocess.run(
            ["grub-mkrescue", "-d", f"{GRUB}/i386-pc", "-o", str(out), str(tree)],
            capture_output=True, timeout=_SECONDS, check=False, cwd=folder,
            env=environment() | {"TMPDIR": os.fspath(folder)},
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        raise MachineError(f"grub-mkrescue did not make the CD: {error}") from error
    if done.returncode != 0 or not out.exists():
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise MachineError(f"grub-mkrescue did not make the CD: {said[-1] if said else 'it says nothing'}")
    return out

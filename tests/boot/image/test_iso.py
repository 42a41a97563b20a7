"""An ISO image that starts under BIOS and UEFI, where GRUB's tools are; elsewhere a line that says what to install."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest

from fivefold.boot import Image
from fivefold.boot.command_line import check_menu
from fivefold.boot.image import iso
from fivefold.boot.image.efi_image import efi_file
from fivefold.boot.image.iso import iso_file
from fivefold.boot.judge.serial_text import judge_text
from fivefold.errors import ImageError, MachineError
from fivefold.kernel.report import EXIT_PASSED
from fivefold.machine.loading.firmware import firmware, firmware_arguments
from fivefold.machine.qemu.engine import PROGRAM

CMDLINE = "kaslr=3 kasan"
SECONDS = 120


@pytest.fixture(scope="module")
def made(image: Image, absent: Callable[[str], NoReturn]) -> bytes:
    """The ISO."""
    try:
        return iso_file(efi_file(image), image.place(), CMDLINE)
    except ImageError as error:
        if "apt-get install" not in str(error):
            raise
        absent(str(error))


@pytest.mark.qemu
@pytest.mark.parametrize("under", ["bios", "uefi"])
@pytest.mark.parametrize(("cpu", "levels"), [("max", 5), ("max,la57=off", 4)])
def test_it_boots(
    made: bytes, absent: Callable[[str], NoReturn], tmp_path: Path, under: str, cpu: str, levels: int
) -> None:
    """As a machine would, with nothing of ours but the disc in it: told by the serial port and the exit code."""
    disc, serial, variables = tmp_path / "fivefold.iso", tmp_path / "serial", os.memfd_create("variables")
    disc.write_bytes(made)
    command = [PROGRAM, "-nodefaults", "-no-user-config", "-display", "none", "-m", "256M", "-cpu", cpu]
    command += ["-cdrom", str(disc), "-serial", f"file:{serial}", "-device", "isa-debug-exit,iobase=0xf4,iosize=4"]
    if under == "uefi":
        try:
            command += firmware_arguments(firmware(), variables)
        except MachineError as error:
            absent(str(error))
    done = subprocess.run(command, timeout=SECONDS, check=False, pass_fds=[variables])
    os.close(variables)
    told = serial.read_text(errors="replace")
    assert done.returncode == 2 * EXIT_PASSED + 1, told[-2000:]
    assert f"fivefold: {levels} levels of page tables, image at 0x" in told
    assert ("fivefold: EFI application" in told) == (under == "uefi")
    passed = set(re.findall(r"^ok \d+ - (\w+)\r?$", told, re.MULTILINE))
    assert {"kaslr_aligned", "kasan_end", "mode_triple", "scan_complete"} <= passed
    assert "not ok" not in told


@pytest.mark.qemu
@pytest.mark.parametrize("under", ["bios", "uefi"])
def test_a_second_kernel_and_more_cpus(
    image: Image, absent: Callable[[str], NoReturn], tmp_path: Path, under: str
) -> None:
    """The ISO does by itself what `boot --smp --kexec` does; the serial text says that both kernels passed."""
    check_menu(words := "smp=2 kexec -- smp=2 no5lvl poweroff")
    disc, serial, variables = tmp_path / "fivefold.iso", tmp_path / "serial", os.memfd_create("variables")
    command = [PROGRAM, "-nodefaults", "-no-user-config", "-display", "none", "-m", "256M", "-cpu", "max", "-smp", "2"]
    command += ["-cdrom", str(disc), "-serial", f"file:{serial}"]
    try:
        disc.write_bytes(iso_file(efi_file(image), image.place(), words))
        command += firmware_arguments(firmware(), variables) if under == "uefi" else []
    except (ImageError, MachineError) as error:
        absent(str(error))
    done = subprocess.run(command, timeout=SECONDS, check=False, pass_fds=[variables])
    os.close(variables)
    told = judge_text(serial.read_bytes())
    assert (done.returncode, told.ok, [report.mode for report in told.reports]) == (0, True, ["la57", "la48"])


def test_without_the_tools(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(shutil, "which", lambda program, path: None)
    monkeypatch.setattr(iso, "GRUB", str(tmp_path / "none"))
    with pytest.raises(
        ImageError,
        match=r"^an ISO image needs GRUB's tools; install them with: "
        r"apt-get install grub-common xorriso mtools grub-efi-amd64-bin grub-pc-bin$",
    ):
        iso_file(b"MZ", b"ELF")


@pytest.mark.parametrize(("here", "package"), [("i386-pc", "grub-efi-amd64-bin"), ("x86_64-efi", "grub-pc-bin")])
def test_grub_for_one_firmware_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, here: str, package: str) -> None:
    """An ISO that would not start everywhere is not made."""
    monkeypatch.setattr(shutil, "which", lambda program, path: program)
    monkeypatch.setattr(iso, "GRUB", str(tmp_path))
    (tmp_path / here).mkdir()
    with pytest.raises(ImageError, match=rf"install them with: apt-get install {package}$"):
        iso_file(b"MZ", b"ELF")


@pytest.mark.parametrize("cmdline", ["a;b", "a'b", "$x", "a\nb", "{"])
def test_what_the_menu_cannot_hold(cmdline: str) -> None:
    with pytest.raises(ImageError, match=r"^GRUB's menu cannot hold "):
        iso_file(b"MZ", b"ELF", cmdline)


def test_an_iso_holds_both_files_and_the_command_line(image: Image, made: bytes) -> None:
    assert made[0x8001:0x8006] == b"CD001"
    assert efi_file(image)[: 1 << 16] in made
    assert image.place()[: 1 << 16] in made
    assert f"chainloader /fivefold/fivefold.efi {CMDLINE}\n".encode() in made
    assert f"multiboot2 /fivefold/fivefold.elf {CMDLINE}\n".encode() in made


def test_grub_that_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / "grub-mkrescue"
    broken.write_text("#!/bin/sh\necho first >&2\necho no space left >&2\nexit 1\n")
    broken.chmod(0o755)
    for program in ("xorriso", "mformat"):
        (tmp_path / program).symlink_to(broken)
    for folder in iso.PLATFORMS:
        (tmp_path / folder).mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    monkeypatch.setattr(iso, "GRUB", str(tmp_path))
    with pytest.raises(ImageError, match=r"^grub-mkrescue did not make the image: no space left$"):
        iso_file(b"MZ", b"ELF")

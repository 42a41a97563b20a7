"""An ISO image that starts the application, where GRUB's tools are; elsewhere a line that says what to install."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from fivefold.boot import Image, iso
from fivefold.boot.efi_image import efi_file
from fivefold.boot.iso import iso_file
from fivefold.errors import ImageError


def test_without_the_tools(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(shutil, "which", lambda program: None)
    monkeypatch.setattr(iso, "GRUB_MODULES", str(tmp_path / "none"))
    with pytest.raises(
        ImageError,
        match=r"^an ISO image needs GRUB's tools; install them with: "
        r"apt-get install grub-common xorriso mtools grub-efi-amd64-bin$",
    ):
        iso_file(b"MZ")


@pytest.mark.parametrize("cmdline", ["a;b", "a'b", "$x", "a\nb", "{"])
def test_what_the_menu_cannot_hold(cmdline: str) -> None:
    with pytest.raises(ImageError, match=r"^GRUB's menu cannot hold "):
        iso_file(b"MZ", cmdline)


def test_an_iso_holds_the_application_and_the_command_line(image: Image) -> None:
    application = efi_file(image)
    try:
        made = iso_file(application, "no5lvl kaslr=3")
    except ImageError as error:
        if "apt-get install" not in str(error):
            raise
        pytest.skip(str(error))
    assert made[0x8001:0x8006] == b"CD001"
    assert application[: 1 << 16] in made
    assert b"chainloader /fivefold/fivefold.efi no5lvl kaslr=3\n" in made


def test_grub_that_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / "grub-mkrescue"
    broken.write_text("#!/bin/sh\necho first >&2\necho no space left >&2\nexit 1\n")
    broken.chmod(0o755)
    for program in ("xorriso", "mformat"):
        (tmp_path / program).symlink_to(broken)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    monkeypatch.setattr(iso, "GRUB_MODULES", str(tmp_path))
    with pytest.raises(ImageError, match=r"^grub-mkrescue did not make the image: no space left$"):
        iso_file(b"MZ")

"""Where OVMF is, as each distribution has it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fivefold.errors import MachineError
from fivefold.machine.loading import firmware as machine_firmware
from fivefold.machine.loading.firmware import FIRMWARE, Firmware, firmware, firmware_arguments


@pytest.fixture
def places(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Firmware]:
    """One file, and two beside each other; neither is there."""
    listed = [Firmware(tmp_path / "one"), Firmware(tmp_path / "code", tmp_path / "variables")]
    monkeypatch.setattr(machine_firmware, "FIRMWARE", listed)
    return listed


def test_the_first_that_is_there_is_taken(places: list[Firmware], tmp_path: Path) -> None:
    (tmp_path / "variables").write_bytes(b"own")
    (tmp_path / "code").touch()
    assert firmware() == places[1]
    (tmp_path / "one").touch()
    assert firmware() == places[0]


@pytest.mark.parametrize("there", [[], ["code"], ["variables"]])
def test_half_of_it_is_none_of_it(places: list[Firmware], tmp_path: Path, there: list[str]) -> None:
    for name in there:
        (tmp_path / name).touch()
    with pytest.raises(MachineError) as refusal:
        firmware()
    assert str(refusal.value) == (
        f"the entry efi needs the firmware OVMF, which is not at {tmp_path}/one; install it with: apt-get install ovmf"
    )


def test_a_guest_has_variables_of_its_own(places: list[Firmware], tmp_path: Path) -> None:
    (tmp_path / "variables").write_bytes(b"as they were")
    copy = os.memfd_create("variables")
    drives = firmware_arguments(places[1], copy)
    assert drives[1::2] == [
        f"if=pflash,format=raw,readonly=on,file={tmp_path}/code",
        f"if=pflash,format=raw,file=/proc/self/fd/{copy}",
    ]
    assert os.pread(copy, 64, 0) == b"as they were"
    os.close(copy)


def test_one_file_is_the_whole_firmware(places: list[Firmware], tmp_path: Path) -> None:
    assert firmware_arguments(places[0], -1) == ["-bios", f"{tmp_path}/one"]


def test_both_kinds_of_package_are_known() -> None:
    assert {found.variables is None for found in FIRMWARE} == {True, False}
    assert not [found for found in FIRMWARE if ".ms" in found.code.name or "secboot" in found.code.name]

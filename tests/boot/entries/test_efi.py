"""The image as an EFI application: the file, what refuses, and boots under OVMF in both modes."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest

from fivefold.boot import BootOptions, Image, Run
from fivefold.boot import boot as boot_all
from fivefold.boot.image.efi_image import efi_file
from fivefold.errors import ImageError, MachineError
from fivefold.machine.loading import firmware as machine_firmware
from fivefold.machine.loading.firmware import FIRMWARE, Firmware
from fivefold.units import MIB

Boot = Callable[..., Run]

GUEST_CHECKS = {
    "efi_handoff", "efi_runtime_regions", "efi_set_virtual_address_map", "efi_identity_gone", "efi_own_top_page",
    "efi_shared_in_step", "efi_get_time", "efi_get_time_plausible", "efi_window_not_in_kernel",
    "efi_write_or_execute", "efi_next_variable", "efi_get_variable_size", "efi_get_variable", "efi_get_variable_length",
    "efi_get_variable_attributes", "efi_get_variable_not_found",
}  # fmt: skip
OUTSIDE_CHECKS = {"efi_window", "efi_window_write_or_execute", "efi_lower_half_empty", "efi_shares_kernel"}


@pytest.fixture(params=["one file", "two files"])
def packaged(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, absent: Callable[[str], NoReturn]
) -> None:
    """OVMF as distributions have it, with its variables in it or beside it: that first which the test asks for."""
    ordered = sorted(FIRMWARE, key=lambda found: (found.variables is None) != (request.param == "one file"))
    monkeypatch.setattr(machine_firmware, "FIRMWARE", ordered)
    try:
        machine_firmware.firmware()
    except MachineError as error:
        absent(str(error))


def names(run: Run, by: str) -> set[str]:
    return {check.name for check in run.checks if check.by == by}


@pytest.mark.qemu
@pytest.mark.usefixtures("packaged")
@pytest.mark.parametrize(
    ("cpu", "entry", "cmdline", "mode", "packaged"),
    [
        ("la57", "efi", "kaslr=7 kasan", "la57", "one file"),
        ("la57", "efi57", "no5lvl", "la48", "two files"),
    ],
    indirect=["packaged"],
)
def test_under_firmware(passes: Boot, cpu: str, entry: str, cmdline: str, mode: str) -> None:
    run = passes(cpu, engine="qemu", entry=entry, cmdline=cmdline, memory=256 * MIB, timeout=90.0)
    assert run.mode == mode
    assert names(run, "guest") >= GUEST_CHECKS | {"mode_switch_as_decided"}
    assert names(run, "outside") >= OUTSIDE_CHECKS | {"mode_switch_entered", "mode_switch_ended"}


def test_the_file_is_an_application(image: Image) -> None:
    data = efi_file(image)
    at = int.from_bytes(data[60:64], "little")
    machine, sections = struct.unpack_from("<HH", data, at + 4)
    magic, entry = struct.unpack_from("<H14xI", data, at + 24)
    subsystem = int.from_bytes(data[at + 24 + 68 : at + 24 + 70], "little")
    assert (data[:2], data[at : at + 4], machine, sections) == (b"MZ", b"PE\0\0", 0x8664, 2)
    assert (magic, subsystem) == (0x20B, 10)
    assert 0x1000 <= entry < len(data)


def test_sections_lie_in_file_and_memory(image: Image) -> None:
    data = efi_file(image)
    at = int.from_bytes(data[60:64], "little") + 24
    size = int.from_bytes(data[at + 56 : at + 60], "little")
    end = 0
    for i in range(2):
        virtual_size, address, raw_size, raw_at = struct.unpack_from("<IIII", data, at + 240 + 40 * i + 8)
        assert end <= address and address + virtual_size <= size and raw_at + raw_size <= len(data)
        end = address + virtual_size


def test_same_bytes_each_time(image: Image) -> None:
    assert efi_file(image) == efi_file(image)


def test_it_carries_the_image(image: Image) -> None:
    assert image.parts[0].data in efi_file(image)


def test_load_address_that_cannot_be(image: Image) -> None:
    with pytest.raises(ImageError, match=r"^load address 0x0000000000300000 is not aligned to 2 MiB$"):
        efi_file(image, 0x300000)


def test_unicorn_has_no_firmware(boot: Boot) -> None:
    with pytest.raises(MachineError, match=r"^the engine unicorn has no firmware for the entry efi; use qemu$"):
        boot("la57", engine="unicorn", entry="efi")


@pytest.mark.qemu
def test_firmware_that_is_not_there(boot: Boot, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(machine_firmware, "FIRMWARE", (Firmware(tmp_path / "none.fd"),))
    with pytest.raises(MachineError, match=r"^the entry efi needs the firmware OVMF, .* apt-get install ovmf$"):
        boot("la57", engine="qemu", entry="efi")


def test_five_levels_need_a_cpu_that_has_them() -> None:
    with pytest.raises(MachineError, match=r"^nothing to run: a CPU without LA57 cannot be entered with five levels$"):
        boot_all(("la48",), BootOptions(engine="qemu", entry="efi57"))


def test_no_second_kernel_behind_firmware(boot: Boot) -> None:
    with pytest.raises(MachineError, match=r"^the entry efi takes no second kernel"):
        boot("la57", engine="qemu", entry="efi", kexec="")

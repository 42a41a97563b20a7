"""A kernel is saved, its machine restarted, and it comes back; an image that does not fit is refused untouched."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from fivefold.boot import BootOptions, Image, Run
from fivefold.boot import run as boot_run
from fivefold.machine import Guest, MapRow, Module
from fivefold.units import MIB

Boot = Callable[..., Run]
PAGE = 4096


@pytest.mark.parametrize(("cpu", "cmdline"), [("la57", ""), ("la57", "no5lvl kaslr=9"), ("la48", "")])
def test_comes_back_in_the_same_mode(passes: Boot, cpu: str, cmdline: str) -> None:
    run = passes(cpu, cmdline=cmdline, hibernate=True)
    assert run.mode == ("la57" if (cpu, cmdline) == ("la57", "") else "la48")
    assert {"hibernate_saved", "hibernate_resumed"} <= {check.name for check in run.checks}


TOP = {"memory": 63 * MIB, "load_address": 62 * MIB, "hibernate": True}


def test_comes_back_when_it_lies_above_what_was_saved(passes: Boot) -> None:
    """The image is at the top of memory, as `kaslr` may have it, and the loader puts what was saved below it."""
    assert "hibernate_resumed" in {check.name for check in passes("la48", **TOP).checks}


@pytest.mark.qemu
def test_comes_back_with_all_cpus(passes: Boot) -> None:
    """A restarted machine's other CPUs run what the resuming kernel gave them; the one that comes back starts them."""
    run = passes("la57", engine="qemu", smp=2, hibernate=True)
    assert run.mode == "la57"
    assert {"hibernate_resumed", "smp_back_after_resume"} <= {check.name for check in run.checks}


@pytest.fixture(scope="module")
def saved(image: Image) -> bytes:
    """What a kernel with five levels saved."""
    options = BootOptions(memory=32 * MIB, load_address=image.load_address)
    resuming = boot_run.hibernate(boot_run.make_guest("la57", options, image), options, image)
    assert isinstance(resuming, Guest), resuming
    return resuming.modules[0].data


def changed(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


REFUSED: list[tuple[str, str, Callable[[bytes], bytes], str]] = [
    ("other mode", "no5lvl", lambda data: data, "the image uses another number of page-table levels"),
    ("corrupt", "", lambda data: changed(data, len(data) - 100), "the image is corrupt: its sum does not match"),
    ("root changed", "", lambda data: changed(data, 33), "the image is corrupt: its sum does not match"),
    ("cut short", "", lambda data: data[:-PAGE], "the image is cut short"),
    ("other kernel", "", lambda data: changed(data, 16), "the image is of another kernel"),
    ("other place", "", lambda data: changed(data, 27), "the image is of a kernel at another load address"),
    ("no image", "", lambda data: bytes(PAGE), "there is no image"),
]


@pytest.mark.parametrize(
    ("cmdline", "change", "message"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED]
)
def test_refused_before_anything_is_overwritten(
    boot: Boot,
    failures: Callable[[Run], list[str]],
    saved: bytes,
    cmdline: str,
    change: Callable[[bytes], bytes],
    message: str,
) -> None:
    """The kernel that refuses goes on: all of its other checks pass, from outside too."""
    given: dict[str, Any] = {"modules": (Module(change(saved)),), "cmdline": f"{cmdline} hibernate=resume".strip()}
    run = boot("la57", cmdline=cmdline, guest=given)
    assert f"hibernate: {message}\n" in run.output
    (failed,) = failures(run)
    assert failed.startswith("guest hibernate_resumed: ")


@pytest.mark.qemu
def test_other_mode_on_a_machine_that_nobody_here_wrote(
    boot: Boot, failures: Callable[[Run], list[str]], saved: bytes
) -> None:
    given: dict[str, Any] = {"modules": (Module(saved),), "cmdline": "no5lvl hibernate=resume"}
    run = boot("la57", cmdline="no5lvl", guest=given, engine="qemu")
    assert "hibernate: the image uses another number of page-table levels\n" in run.output
    (failed,) = failures(run)
    assert failed.startswith("guest hibernate_resumed: ")


def test_a_machine_with_other_memory(boot: Boot, failures: Callable[[Run], list[str]], saved: bytes) -> None:
    """Where a saved page lay, the restarted machine has a hole: to write there would lose it."""
    rows = (MapRow(0, 0x9_FC00), MapRow(2 * MIB, 32 * MIB))
    given: dict[str, Any] = {"modules": (Module(saved),), "cmdline": "hibernate=resume", "memory": rows}
    run = boot("la57", guest=given)
    assert "hibernate: the image has pages where this machine has no memory\n" in run.output
    (failed,) = failures(run)
    assert failed.startswith("guest hibernate_resumed: ")

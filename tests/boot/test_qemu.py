"""The same image on QEMU: the same areas, variables and checks as on Unicorn, and what only QEMU can show."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from fivefold.boot import BootOptions, Image, Run
from fivefold.boot import boot as boot_all
from fivefold.boot.command_line import LAYOUTS
from fivefold.boot.judge.serial_text import judge_text
from fivefold.errors import MachineError
from fivefold.report.text.boot import print_boot
from fivefold.units import GIB, MIB, format_size

PLAIN_ENTRIES = ("pvh", "long48", "long57")
"""Those that need no firmware."""

pytestmark = pytest.mark.qemu
Boot = Callable[..., Run]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_same_as_on_unicorn(passes: Boot, layout: str) -> None:
    """Page sizes, tables and time may differ; areas, variables and names of checks may not."""
    for cpu in ("la57", "la48"):
        ours, other = (passes(cpu, engine=engine, layout=layout) for engine in ("unicorn", "qemu"))
        assert (ours.mode, ours.levels) == (other.mode, other.levels)
        assert ours.areas == other.areas
        assert ours.variables == other.variables
        # A check that needs what only one of the engines has is skipped on the other, by name or by its group's.
        names = [{(check.name, check.by) for check in run.checks} for run in (ours, other)]
        groups = {left.name for run in (ours, other) for left in run.skipped}
        alone = {name for name, by in names[0] ^ names[1]}
        assert {name for name in alone if not any(name == one or name.startswith(f"{one}_") for one in groups)} == set()


@pytest.mark.parametrize(
    ("cpu", "entry"), [("la57", entry) for entry in PLAIN_ENTRIES] + [("la48", "pvh"), ("la48", "long48")]
)
@pytest.mark.parametrize("cmdline", ["", "no5lvl"])
def test_every_entry(passes: Boot, cpu: str, entry: str, cmdline: str) -> None:
    """QEMU's loader enters in 32-bit code only: a stub turns paging on, and the 64-bit entry finds it so."""
    run = passes(cpu, engine="qemu", entry=entry, cmdline=cmdline)
    assert run.mode == ("la57" if (cpu, cmdline) == ("la57", "") else "la48")
    assert run.facts["entered_levels"] == {"pvh": 0, "long48": 4, "long57": 5}[entry]


@pytest.mark.parametrize("memory", [16 * MIB, 512 * MIB, 3 * GIB, 4 * GIB, 8 * GIB], ids=format_size)
def test_memory(passes: Boot, memory: int) -> None:
    """Above 3 GiB the machine has a PCI hole, and the rest of its memory behind 4 GiB."""
    run = passes("la57", engine="qemu", memory=memory, load_address=4 * MIB, timeout=60)
    assert run.facts["ram_end"] >= memory - MIB


@pytest.mark.parametrize("load", [2 * MIB, 30 * MIB, GIB - 2 * MIB, 3 * GIB - 2 * MIB], ids=hex)
def test_load_addresses(passes: Boot, load: int) -> None:
    run = passes("la48", engine="qemu", load_address=load, memory=max(32 * MIB, load + 2 * MIB), timeout=60)
    assert run.facts["load_address"] == load


def test_a_place_above_4_gib_is_refused(boot: Boot) -> None:
    with pytest.raises(MachineError, match="qemu loads below 4 GiB only, not at 0x0000000140000000; use unicorn"):
        boot("la57", engine="qemu", entry="long48", load_address=5 * GIB, memory=8 * GIB)


def test_what_unicorn_cannot_do_goes_to_qemu_and_says_so(image: Image) -> None:
    report = boot_all(("la57",), BootOptions(smp=2, memory=32 * MIB), image)
    text = Console(file=StringIO(), width=160)
    print_boot(report, text)
    assert report.ok
    assert [(run["engine"], run["engine_reason"]) for run in report.to_json()["runs"]] == [
        ("qemu", "unicorn has one CPU, not 2")
    ]
    assert re.search(r"^engine +qemu: unicorn has one CPU, not 2 *$", text.file.getvalue(), re.MULTILINE)


@pytest.mark.parametrize(
    ("options", "engine"),
    [
        (BootOptions(), "unicorn"),
        (BootOptions(entry="long57", hibernate=True), "unicorn"),
        (BootOptions(entry="efi57"), "qemu"),
        (BootOptions(engine="kvm", entry="efi"), "kvm"),
        (BootOptions(engine="unicorn", smp=2), "unicorn"),
    ],
)
def test_the_engine_that_is_chosen(options: BootOptions, engine: str) -> None:
    assert options.runs_on == engine
    assert bool(options.engine_reason) == (options.engine is None and engine == "qemu")


def test_long57_is_skipped_on_the_cpu_without_la57(image: Image) -> None:
    report = boot_all(options=BootOptions(engine="qemu", entry="long57", memory=32 * MIB), image=image)
    assert report.ok
    assert [run.cpu for run in report.runs] == ["la57"]
    assert [left.name for left in report.skipped] == ["la48"]


def test_a_guest_that_never_stops_is_ended(boot: Boot, image: Image) -> None:
    endless = Image(image.link_address, image.parts, {**image.symbols, "pvh_entry": spinning(image)})
    run = boot("la57", engine="qemu", given=endless, timeout=1.0)
    assert not run.ok
    assert run.event.startswith("still running after 1 s")


def spinning(image: Image) -> int:
    """Address of a ``jmp .``-like loop in the image: the bytes EB FE, wherever they are."""
    part = image.parts[0]
    at = part.data.find(b"\xeb\xfe")
    if at < 0:
        pytest.skip("the image has no two bytes that loop")
    return part.start + at


def test_rs_01_the_mode_changes_both_ways_under_a_police_of_its_own(passes: Boot) -> None:
    """On a machine that polices every write itself: LA57 changed in long mode would be #GP."""
    assert passes("la57", engine="qemu", entry="long48").mode == "la57"
    assert passes("la57", engine="qemu", entry="long57", cmdline="no5lvl").mode == "la48"


@pytest.mark.parametrize("entry", ["pvh", "multiboot2", "efi"])
def test_the_machine_is_switched_off_on_request(boot: Boot, entry: str) -> None:
    run = boot("la57", engine="qemu", entry=entry, cmdline="poweroff", memory=256 << 20)
    assert run.ok, [check for check in run.checks if not check.ok]
    assert run.event == "powered off by the guest"


def test_a_machine_with_reduced_hardware_is_switched_off(image: Image, tmp_path: Path) -> None:
    elf, serial = tmp_path / "image.elf", tmp_path / "serial.txt"
    elf.write_bytes(image.place(image.load_address))
    machine = "-machine microvm,acpi=on,accel=tcg -cpu max -m 256 -display none -nodefaults -no-reboot"
    command = f"qemu-system-x86_64 {machine} -serial file:{serial} -append poweroff -kernel {elf}"
    assert subprocess.run(command.split(), timeout=120, check=False).returncode == 0
    assert judge_text(serial.read_bytes()).ok

"""What Bochs is given: the program, its models of CPUs, and the text of its configuration.

Source: Bochs User Manual, "Setup", "The configuration file bochsrc".
"""

from __future__ import annotations

import functools
import os
import re
import subprocess
from pathlib import Path
from typing import Final, NamedTuple

from fivefold.errors import MachineError, NoSuchCpuError
from fivefold.machine.base import Guest
from fivefold.machine.child import environment
from fivefold.machine.program import HostProgram, find_program
from fivefold.units import MIB, format_size

NAMES: Final = ("bochs-bin", "bochs")
"""Debian's `bochs` is a script around `bochs-bin`."""
VARIABLE: Final = "FIVEFOLD_BOCHS"
INSTALL: Final = "install it with: apt-get install bochs bochs-term bochsbios vgabios"
CPU_MODELS: Final = {"la57": "sapphire_rapids", "la48": "corei7_haswell_4770"}
LEAST_MEMORY: Final = 32 * MIB
MOST_MEMORY: Final = 3072 * MIB
"""Below the hole for devices. More than that Bochs keeps in a file."""
IPS: Final = 10_000_000
"""Instructions in a second of the guest's time: few, so that what firmware waits for is soon over."""

_BIOS: Final = ("BIOS-bochs-latest",)
_VGA: Final = ("VGABIOS-lgpl-latest", "VGABIOS-lgpl-latest.bin")
_VERSION: Final = re.compile(r"Bochs x86 Emulator (\d+)\.(\d+)")
_SECONDS: Final = 10.0


class Installation(NamedTuple):
    """A Bochs: how it is started, its version, its models of CPUs, and where its BIOS images are."""

    program: HostProgram
    version: tuple[int, int]
    models: tuple[str, ...]
    share: Path
    waits: bool = False
    """Whether it waits for a word to its debugger before it runs, as a build with one did before 3.0."""

    @property
    def environment(self) -> dict[str, str]:
        """What its process needs besides ours: it looks for its parts where it was installed."""
        if not self.program.is_unpacked:
            return {}
        plugins = self.program.data("usr/lib/x86_64-linux-gnu/bochs/plugins", "usr/lib/bochs/plugins")
        return {"BXSHARE": str(self.share), **({"LTDL_LIBRARY_PATH": str(plugins)} if plugins else {})}

    @property
    def display(self) -> str:
        """A display that needs no screen. Debian builds none that does nothing; this one waits for no client."""
        return 'rfb, options="timeout=0"' if self.has_plugins else "nogui"

    @property
    def has_plugins(self) -> bool:
        """Whether displays are files of their own, and the one for remote screens is there."""
        places = ("usr/lib/x86_64-linux-gnu/bochs/plugins", "usr/lib/bochs/plugins", "lib/bochs/plugins")
        return any((self.program.root / place / "libbx_rfb_gui.so").exists() for place in places)


def installation(given: str | None) -> Installation:
    """The Bochs that *given*, the environment or the path says. `MachineError` with one line if there is none."""
    found = find_program(NAMES, given, VARIABLE)
    if found is None:
        raise MachineError(f"the engine bochs needs bochs, which is not there; {INSTALL}")
    return _ask(found)


@functools.cache
def _ask(program: HostProgram) -> Installation:
    share = _share(program)
    draft = Installation(program, (0, 0), (), share)
    said = _help(draft, "cpu")
    version = _VERSION.search(said)
    listed = said.partition("Supported CPU models")[2].splitlines()
    models = tuple(line for line in listed if re.fullmatch(r"\w+", line))
    if version is None or not models:
        words = said.strip().splitlines()
        raise MachineError(f"{program.path} is no Bochs that works here: {words[-1] if words else 'it says nothing'}")
    number = (int(version[1]), int(version[2]))
    waits = number < (3, 0) and " -rc " in _help(draft)
    return draft._replace(version=number, models=models, waits=waits)


def _help(bochs: Installation, *about: str) -> str:
    """What the program says of itself."""
    try:
        done = subprocess.run(
            [*bochs.program.command, "--help", *about],
            capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL, timeout=_SECONDS, check=False,
            env=environment() | bochs.environment,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        raise MachineError(f"{bochs.program.path} cannot be started: {error}") from error
    return done.stdout + done.stderr


def _share(program: HostProgram) -> Path:
    """Where the BIOS images are."""
    beside = program.path.parent.parent / "share/bochs"
    said = os.environ.get("BXSHARE")
    places = [Path(said)] if said and not program.is_unpacked else []
    for place in (*places, program.root / "usr/share/bochs", beside, Path("/usr/share/bochs")):
        if _first(place, _BIOS) and _first(place, _VGA):
            return place
    raise MachineError(f"{program.path} lacks its BIOS images {_BIOS[0]} and {_VGA[0]} in {beside}; {INSTALL}")


def _first(place: Path, names: tuple[str, ...]) -> Path | None:
    return next((place / name for name in names if (place / name).exists()), None)


def cpu_model(bochs: Installation, cpu: str) -> str:
    """Bochs' name of the model *cpu*; `MachineError` if this Bochs has none such."""
    model = CPU_MODELS.get(cpu, cpu)
    if model in bochs.models:
        return model
    version = ".".join(map(str, bochs.version))
    if cpu == "la57":
        raise NoSuchCpuError(f"Bochs {version} has no CPU with LA57: {model} came with 3.0; give one by --bochs")
    raise NoSuchCpuError(f"Bochs {version} has no CPU model {cpu!r}; it has {', '.join(bochs.models)}")


def check_guest(guest: Guest) -> int:
    """Return the size of RAM in MiB; `MachineError` for what Bochs cannot do."""
    for asked, what in (
        (guest.entry != "multiboot2", f"the entry {guest.entry}: GRUB starts an ISO there, which is multiboot2"),
        (bool(guest.cpuid), "CPUID overrides"),
        (not isinstance(guest.memory, int), "a memory map of its own"),
        (bool(guest.modules), "modules beside the ISO"),
        (guest.poison is not None, "memory that is filled before"),
        (guest.last_cpu is not None, "CPUs of two models"),
    ):
        if asked:
            raise MachineError(f"the engine bochs cannot give a guest {what}")
    assert isinstance(guest.memory, int)
    if guest.memory % MIB or not LEAST_MEMORY <= guest.memory <= MOST_MEMORY:
        limits = f"{format_size(LEAST_MEMORY)} to {format_size(MOST_MEMORY)}"
        raise MachineError(f"{format_size(guest.memory)} of memory; the engine bochs takes whole MiB, {limits}")
    return guest.memory // MIB


def configuration(bochs: Installation, guest: Guest, iso: int, serial: int, log: int) -> str:
    """The configuration's text; *iso*, *serial* and *log* are files that the process has open."""
    size = check_guest(guest)
    return "\n".join(
        (
            f"megs: {size}",
            f"romimage: file={_first(bochs.share, _BIOS)}",
            f"vgaromimage: file={_first(bochs.share, _VGA)}",
            f"cpu: model={cpu_model(bochs, guest.cpu)}, count={guest.cpus}, ips={IPS}, reset_on_triple_fault=0",
            "ata0: enabled=1, ioaddr1=0x1f0, ioaddr2=0x3f0, irq=14",
            f"ata0-master: type=cdrom, path=/proc/self/fd/{iso}, status=inserted",
            "boot: cdrom",
            f"com1: enabled=1, mode=file, dev=/proc/self/fd/{serial}",
            f"log: /proc/self/fd/{log}",
            f"display_library: {bochs.display}",
            "panic: action=fatal",
            "error: action=report",
            "info: action=report",
            "speaker: enabled=0",
            "sound: waveoutdrv=dummy, waveindrv=dummy, midioutdrv=dummy",
            "",
        )
    )

"""How to boot: what can be asked for, and which pairs of it no machine could do."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from fivefold import _arguments
from fivefold.boot.command_line import LAYOUTS, MOST, check_given
from fivefold.boot.image.elf_image import check_load_address
from fivefold.errors import MachineError
from fivefold.kernel.efi.efi_stub import MOST_OPTIONS
from fivefold.kernel.smp.smp import MAX_CPUS
from fivefold.machine.base import EFI_ENTRIES, EntryPoint
from fivefold.machine.bochs.limits import bochs_lacks
from fivefold.machine.unicorn.limits import unicorn_lacks
from fivefold.units import MIB

CPUS: Final = ("la57", "la48")
ENTRIES: Final[tuple[EntryPoint, ...]] = ("pvh", "long48", "long57", "multiboot2", "efi", "efi57")
FIVE_LEVEL_ENTRIES: Final = ("long57", "efi57")
DEFAULT_MEMORY: Final = 512 * MIB


@dataclass(frozen=True)
class BootOptions:
    """How to boot. *memory* in bytes, *timeout* in seconds for each run, and for an engine to start."""

    engine: str | None = None
    """What runs the machine; None for Unicorn, and for QEMU where Unicorn cannot."""
    entry: EntryPoint = "pvh"
    layout: str = "linux"
    memory: int = DEFAULT_MEMORY
    load_address: int | None = None
    """Where to load the image; None for where its file says."""
    cmdline: str = ""
    timeout: float = 30.0
    kexec: str | None = None
    """Command line of a second kernel, the same image, that the first one starts; None for none. More of them, each
    started by the one before, are separated by ``kexec --``."""
    hibernate: bool = False
    """Save the kernel, restart the machine, resume it, and judge that."""
    smp: int = 1
    """How many CPUs; Unicorn, where it was named, has one, and says so."""
    program: str | None = None
    """Another program of the engine than the system's, or a folder that its packages were unpacked into."""

    def __post_init__(self) -> None:
        """Refuse what no machine could do, with `ImageError` or `MachineError`, and with `TypeError` a wrong type."""
        text = dict.fromkeys(("engine", "kexec", "program"), (str, type(None)))
        _arguments.fields(self, **text, entry=(str,), layout=(str,), cmdline=(str,), hibernate=(bool,))
        _arguments.fields(self, memory=(int,), smp=(int,), load_address=(int, type(None)), timeout=(float, int))
        if self.load_address is not None:
            check_load_address(self.load_address)
        if self.entry not in ENTRIES:
            raise MachineError(f"unknown entry {self.entry!r}; expected {', '.join(ENTRIES)}")
        if self.layout not in LAYOUTS:
            raise MachineError(f"unknown layout {self.layout!r}; expected {', '.join(LAYOUTS)}")
        if not 1 <= self.smp <= MAX_CPUS:
            raise MachineError(f"{self.smp} CPUs; expected 1 to {MAX_CPUS}")
        if not self.timeout > 0:  # nan, too
            raise MachineError(f"a timeout of {self.timeout:g} seconds; expected more than 0")
        check_given(f"{self.cmdline} {self._layout_word}")
        for line in self.chain:
            check_given(line)
        most, who = (MOST_OPTIONS, "the EFI application") if self.entry in EFI_ENTRIES else (MOST, "the kernel")
        if (length := len(self.full_cmdline)) > most:
            raise MachineError(f"a command line of {length} characters; {who} reads {most} at most")
        if problem := self._pair_problem():
            raise MachineError(problem)

    def _pair_problem(self) -> str | None:
        """Why two of the options cannot be had together; what one of them cannot be is refused before."""
        if self.hibernate and self.kexec is not None:
            return "--hibernate and --kexec both need the loader's module; ask for one of them"
        if self.entry in EFI_ENTRIES and self.kexec is not None:
            return f"the entry {self.entry} takes no second kernel: the firmware hands over no module"
        if self.entry in EFI_ENTRIES and self.hibernate:
            return f"the entry {self.entry} takes no saved kernel: the firmware hands over no module"
        if self.entry == "efi57" and self.cpus > 1:
            return "the entry efi57 takes one CPU: the firmware gives the others LA57 and a root of four levels"
        if self.entry == "multiboot2" and self.hibernate:
            return "the entry multiboot2 takes no saved kernel: an ISO is made before there is one"
        if self.runs_on == "bochs":
            return bochs_lacks(self.entry, self.hibernate)
        if self.engine == "unicorn" and self.entry not in ("pvh", "long48", "long57"):
            return f"the engine {unicorn_lacks(self.entry, 1)}; use qemu"
        return None

    @property
    def engine_reason(self) -> str:
        """Why it is not Unicorn, where no engine was named; "" if it is, or one was."""
        return "" if self.engine else unicorn_lacks(self.entry, self.smp) or ""

    @property
    def runs_on(self) -> str:
        """The engine: the one that was named, or the one that was chosen."""
        return self.engine or ("qemu" if self.engine_reason else "unicorn")

    @property
    def cpus(self) -> int:
        """How many CPUs the machine has: those asked for, where the engine can have more than one."""
        return 1 if self.runs_on == "unicorn" else self.smp

    @property
    def full_cmdline(self) -> str:
        """The command line with the words that options stand for."""
        smp = f"smp={self.cpus}" if self.cpus != 1 else ""
        words = [self.cmdline, self._layout_word, smp]
        for line in self.chain:
            words += ["kexec", "--", line, smp]
        return " ".join(word for word in words if word)

    @property
    def chain(self) -> tuple[str, ...]:
        """The command lines of the kernels that are started after the first, in that order."""
        return () if self.kexec is None else tuple(f" {self.kexec} ".split(" kexec -- "))

    @property
    def _layout_word(self) -> str:
        return f"layout={self.layout}" if self.layout != "linux" else ""

    @property
    def randomised(self) -> bool:
        """Whether the kernel is asked to draw its bases and its place."""
        return any(word.split("=")[0] == "kaslr" for word in self.cmdline.split())

    @property
    def may_move(self) -> bool:
        """Whether the kernel at the end may lie elsewhere than the loader put the image."""
        return self.randomised or self.entry in (*EFI_ENTRIES, "multiboot2") or self.kexec is not None

    @property
    def last(self) -> BootOptions:
        """The options of the kernel that runs at the end."""
        return self if self.kexec is None else replace(self, cmdline=self.chain[-1], layout="linux", kexec=None)


def expected_levels(cpu_has_la57: bool, cmdline: str) -> int:
    """The mode that must come out, whatever the entry: a function of the CPU and of ``no5lvl`` only."""
    return 5 if cpu_has_la57 and "no5lvl" not in cmdline.split() else 4

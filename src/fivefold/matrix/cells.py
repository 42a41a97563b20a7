"""A cell of the matrix: on which machine, by which path, with which words a kernel is booted; and what it promises.

What is promised follows from the path. Five levels are turned on by the decompressor, so a kernel that goes through it
on a CPU with LA57 promises five unless it is told ``no5lvl``; an ELF file that is entered by PVH skips the
decompressor, and keeps the four levels that its own entry code builds.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, fields, replace
from typing import Any, Final, Literal

from fivefold.errors import FormatError
from fivefold.units import GIB, MIB

Mode = Literal["la57", "la48"]

PATHS: Final = ("direct", "pvh", "bios-grub", "uefi")
"""By QEMU's own loader as a boot loader hands over, by PVH, by GRUB from a CD under BIOS, by OVMF."""
MACHINES: Final = ("q35", "pc", "microvm")
CPUS: Final = {"la57": "max", "la48": "max,la57=off"}
"""QEMU's models for the two words; anything else is a model by QEMU's own name."""
MOST_CPUS: Final = 64
LEAST_MEMORY: Final = 64 * MIB
MOST_MEMORY: Final = 1 << 40
NO_FIVE: Final = "no5lvl"
KEXEC: Final = "fivefold.kexec"
HIBERNATE: Final = "fivefold.hibernate"
_SIZE: Final = re.compile(r"(\d{1,7})([MG])")
_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True)
class Cell:
    """One machine. *cmdline* has the extra words; *memory* is a size, or two with a plus: below and above 4 GiB."""

    id: str
    cpu: str = "la57"
    cmdline: str = ""
    path: str = "direct"
    memory: str = "512M"
    smp: int = 1
    machine: str = "q35"
    kexec: tuple[str, ...] = ()
    """Words of each kernel that is started from inside, one after the other; ``-`` for none."""
    hibernate: bool = False
    resume_cmdline: str | None = None
    """Other words for the kernel that resumes; None for the same."""
    expected_to_fail: str | None = None
    """Why this cell is known to fail, where it is: then a failure is as expected, and is explained all the same."""

    def __post_init__(self) -> None:
        """`FormatError` for what no machine could be."""
        for wrong, what in (
            (not _ID.fullmatch(self.id), f"id {self.id!r}; expected letters, digits, dots and dashes"),
            (self.path not in PATHS, f"path {self.path!r}; expected one of {', '.join(PATHS)}"),
            (self.machine not in MACHINES, f"machine {self.machine!r}; expected one of {', '.join(MACHINES)}"),
            (not 1 <= self.smp <= MOST_CPUS, f"smp {self.smp}; expected 1 to {MOST_CPUS}"),
            (not self.cpu or any(c.isspace() for c in self.cpu), f"cpu {self.cpu!r}; expected la57, la48 or a model"),
            (not self.cmdline.isprintable() or len(self.cmdline) > 1024, "a command line that cannot be typed"),
            (self.machine == "microvm" and self.path in ("bios-grub", "uefi"), f"path {self.path} on a microvm"),
            (self.machine == "microvm" and self.hibernate, "hibernate on a microvm, which has no PCI"),
            (self.resume_cmdline is not None and not self.hibernate, "resume_cmdline without hibernate = true"),
        ):
            if wrong:
                raise FormatError(f"cell {self.id}: {what}")
        low, high = memory_parts(self.memory)
        if not LEAST_MEMORY <= low + high <= MOST_MEMORY:
            raise FormatError(f"cell {self.id}: memory {self.memory}; expected 64M to 1024G")

    @property
    def cpu_model(self) -> str:
        """QEMU's ``-cpu``."""
        return CPUS.get(self.cpu, self.cpu)

    @property
    def has_la57(self) -> bool:
        """Whether the CPU asked for has LA57: by the word, or by the flags of a model; ``max`` has it."""
        if self.cpu in CPUS:
            return self.cpu == "la57"
        model, *flags = self.cpu.split(",")
        said = [flag for flag in flags if flag.lstrip("+-").partition("=")[0] == "la57"]
        if said:
            return said[-1] in ("+la57", "la57=on", "la57=true")
        return model == "max"

    @property
    def words(self) -> list[str]:
        """The extra words."""
        return self.cmdline.split()

    @property
    def has_kaslr(self) -> bool:
        """Whether the kernel's bases may be drawn at random."""
        return "nokaslr" not in self.words

    def promised(self, kind: str) -> tuple[Mode, ...]:
        """The mode of each kernel of this cell: the first, and those that are started from inside."""
        return (self._promise(self.cmdline, kind), *(self._promise(words, "bzImage") for words in self.kexec))

    def _promise(self, words: str, kind: str) -> Mode:
        through_decompressor = kind == "bzImage" and self.path != "pvh"
        five = through_decompressor and self.has_la57 and NO_FIVE not in words.split()
        return "la57" if five else "la48"

    def properties(self) -> dict[str, object]:
        """What makes the cell what it is, by name."""
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name != "id"}

    def named(self, prefix: str) -> Cell:
        """The same under another id."""
        return replace(self, id=prefix + self.id)


def memory_parts(text: str) -> tuple[int, int]:
    """Bytes below and above 4 GiB of a memory such as ``512M`` or ``1G+1G``; `FormatError` for another text.

    >>> [size >> 20 for size in memory_parts("1G+512M")]
    [1024, 512]
    """
    sizes = []
    for part in text.split("+"):
        match = _SIZE.fullmatch(part)
        if match is None:
            raise FormatError(f"memory {text!r}; expected a size such as 512M, or two such as 1G+1G")
        sizes.append(int(match[1]) * (MIB if match[2] == "M" else GIB))
    if len(sizes) > 2 or (len(sizes) == 2 and sizes[0] > 2 * GIB):
        raise FormatError(f"memory {text!r}; expected at most two sizes, and at most 2G below the hole")
    return sizes[0], sizes[1] if len(sizes) == 2 else 0


_TYPES: Final[dict[str, type | tuple[type, ...]]] = {
    "id": str, "cpu": str, "cmdline": str, "path": str, "memory": str, "smp": int, "machine": str,
    "kexec": list, "hibernate": bool, "resume_cmdline": str, "expected_to_fail": str,
}  # fmt: skip


def cells_of(rows: object, name: str) -> tuple[Cell, ...]:
    """Cells from the tables ``[[cell]]`` of a TOML file; `FormatError` says which one is wrong, and how."""
    if not isinstance(rows, list) or not rows:
        raise FormatError(f"{name}: expected tables [[cell]], each with an id")
    found: dict[str, Cell] = {}
    for number, row in enumerate(rows, 1):
        cell = _cell_of(row, f"{name}: cell {number}")
        if cell.id in found:
            raise FormatError(f"{name}: two cells have the id {cell.id}")
        found[cell.id] = cell
    return tuple(found.values())


def _cell_of(row: object, where: str) -> Cell:
    if not isinstance(row, dict) or "id" not in row:
        raise FormatError(f"{where}: expected a table with an id")
    values: dict[str, Any] = dict(row)
    for key, value in values.items():
        if key not in _TYPES:
            raise FormatError(f"{where}: {key!r} is no property; expected one of {', '.join(_TYPES)}")
        if not isinstance(value, _TYPES[key]) or (_TYPES[key] is int and isinstance(value, bool)):
            raise FormatError(f"{where}: {key} = {value!r}; expected {_TYPES[key].__name__}")  # type: ignore[union-attr]
    if "kexec" in values:
        if not all(isinstance(words, str) for words in values["kexec"]):
            raise FormatError(f"{where}: kexec must be a list of texts")
        values["kexec"] = tuple(values["kexec"])
    try:
        return Cell(**values)
    except FormatError as error:
        raise FormatError(f"{where}: {error}") from error


def read_cells(text: str, name: str) -> tuple[Cell, ...]:
    """The cells of a TOML file; `FormatError` where it is not one."""
    import tomllib

    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise FormatError(f"{name}: not TOML: {error}") from error
    if unknown := sorted(set(data) - {"cell"}):
        raise FormatError(f"{name}: {unknown[0]!r} is not known; expected tables [[cell]]")
    return cells_of(data.get("cell"), name)

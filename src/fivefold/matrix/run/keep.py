"""What is kept of a run that failed: the log, the registers, the page tables alone, and how to see it again."""

from __future__ import annotations

import shlex
import shutil
import struct
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Final

from fivefold.arch import TABLE_SIZE, distinct_tables
from fivefold.errors import FivefoldError, MachineError
from fivefold.matrix.cells import Cell
from fivefold.matrix.result import CellRun, RunCause
from fivefold.matrix.vmm.base import Driver, Files, RunningMachine
from fivefold.matrix.vmm.qemu_command import CD
from fivefold.memory import CpuState, Segment, Source
from fivefold.survey.space import Space

MOST_TABLES: Final = 1 << 15
"""Tables in one dump: 128 MiB."""
_GENERAL: Final = (
    *("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp"),
    *("r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "rip", "rflags"),
)
_SEGMENTS: Final = ("cs", "ds", "es", "fs", "gs", "ss", "ldt", "tr", "gdt", "idt")


@dataclass(frozen=True)
class Kept:
    """Writes to a folder of the cell's own."""

    folder: str
    cell: Cell
    cmdline: str
    files: Files
    driver: Driver

    def of(self, machine: RunningMachine, run: CellRun, source: Source | None) -> CellRun:
        """Keep what there is; *run* says where. A disk that is full costs what is kept, not the verdict."""
        folder = Path(self.folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._write(folder, machine, run, source)
        except (OSError, FivefoldError) as error:
            with suppress(OSError):
                shutil.rmtree(folder)
            said = getattr(error, "strerror", None) or str(error)
            cause = run.cause or RunCause("keep", "")
            return replace(run, cause=replace(cause, sentence=f"{cause.sentence} (nothing kept: {said})"))
        return replace(run, kept=str(folder))

    def _write(self, folder: Path, machine: RunningMachine, run: CellRun, source: Source | None) -> None:
        (folder / "console.log").write_bytes(bytes(machine.console))
        (folder / "exceptions.log").write_text(machine.log)
        with suppress(MachineError):
            (folder / "registers.txt").write_text(machine.registers())
        if (cd := Path(self.files.scratch) / "cd" / CD).exists():
            shutil.copyfile(cd, folder / CD)
        _copy(self.files.kernel, folder / "kernel")
        _copy(self.files.initramfs, folder / "initramfs")
        disk = "disk" if self.cell.hibernate else None
        words = self.driver.command(self.cell, self.cmdline, "kernel", "initramfs", disk)
        (folder / "command.sh").write_text(f"{shlex.join(words)}\n")
        if source is not None:
            with suppress(FivefoldError):
                write_tables(folder / "tables.elf", source)


def _copy(file: int, to: Path) -> None:
    """The bytes of an open file; one that all cells share is written once a cell, for the command's sake."""
    with Path(f"/proc/self/fd/{file}").open("rb") as source, to.open("wb") as target:
        shutil.copyfileobj(source, target)


def write_tables(path: Path, source: Source) -> None:
    """An ELF core with the page tables of the source's own roots and nothing else, and the registers of its CPUs.

    `fivefold dump` and `walk` read it like a dump of all memory. Source: gABI, "Program Header"; QEMU's note for a CPU.
    """
    frames = list(islice(_frames(source), MOST_TABLES))
    notes = b"".join(_cpu_note(cpu) for cpu in source.cpus)
    count = len(frames) + 1
    at = 64 + 56 * count
    head = struct.pack(
        "<16sHHIQQQIHHHHHH", b"\x7fELF\2\1\1" + bytes(9), 4, 62, 1, 0, 64, 0, 0, 64, 56, min(count, 0xFFFE), 64, 0, 0
    )
    rows = [struct.pack("<IIQQQQQQ", 4, 0, at, 0, 0, len(notes), len(notes), 4)]
    start = at + len(notes)
    rows += [
        struct.pack("<IIQQQQQQ", 1, 6, start + TABLE_SIZE * number, 0, frame, TABLE_SIZE, TABLE_SIZE, TABLE_SIZE)
        for number, frame in enumerate(frames)
    ]
    with path.open("wb") as file:
        file.write(head + b"".join(rows) + notes)
        for frame in frames:
            file.write(source.memory.read(frame, TABLE_SIZE))  # type: ignore[arg-type]


def _frames(source: Source) -> Iterator[int]:
    """Frames that are tables, ascending."""
    space = Space(source)
    found = {frame for level in distinct_tables(space.tables).values() for frame in level}
    yield from sorted(found)


def _cpu_note(cpu: CpuState) -> bytes:
    """QEMU's note for a CPU. Source: QEMU, ``QEMUCPUState`` of *target/i386/arch_dump.c*, version 1."""
    general = [cpu.general.get(name, 0) for name in _GENERAL]
    segments = b"".join(_segment(cpu.segments.get(name)) for name in _SEGMENTS)
    control = struct.pack("<5Q", cpu.cr0 or 0, 0, cpu.cr2 or 0, cpu.cr3 or 0, cpu.cr4 or 0)
    size = 8 + 8 * len(general) + len(segments) + len(control)
    data = struct.pack(f"<II{len(general)}Q", 1, size, *general) + segments + control
    return struct.pack("<III", 5, len(data), 0) + b"QEMU\0\0\0\0" + data


def _segment(found: Segment | None) -> bytes:
    if found is None:
        return bytes(24)
    return struct.pack("<IIIIQ", found.selector, found.limit & 0xFFFF_FFFF, found.flags, 0, found.base)

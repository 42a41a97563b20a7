"""Memory of another process on this Linux machine: its mappings, the files behind them, its bytes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from fivefold.errors import MachineError, MemoryReadError
from fivefold.units import GIB, PAGE

_WORD: Final = 8
_PAGEMAP_STEP: Final = GIB
"""So much of a process is asked for together."""


class Mapping(NamedTuple):
    """A line of ``/proc/PID/maps``; *end* is exclusive, *device* and *inode* as `os.stat` gives them."""

    start: int
    end: int
    shared: bool
    offset: int
    device: int
    inode: int


def mappings_of(pid: int) -> list[Mapping]:
    """The mappings of process *pid*, ascending; `MachineError` when they may not be seen.

    The kernel splits a mapping where advice on it differs; parts of one file that run on are joined.
    """
    path = Path(f"/proc/{pid}/maps")
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError as error:
        raise MachineError(f"cannot read {path}: {error.strerror}") from error
    joined: list[Mapping] = []
    for mapping in map(_parse_mapping, lines):
        if joined and _runs_on(joined[-1], mapping):
            joined[-1] = joined[-1]._replace(end=mapping.end)
        else:
            joined.append(mapping)
    return joined


def _runs_on(low: Mapping, high: Mapping) -> bool:
    same = (low.shared, low.device, low.inode) == (high.shared, high.device, high.inode)
    return same and low.inode != 0 and low.end == high.start and low.offset + low.end - low.start == high.offset


def _parse_mapping(line: str) -> Mapping:
    bounds, rights, offset, device, inode = line.split(maxsplit=5)[:5]
    start, end = (int(part, 16) for part in bounds.split("-"))
    major, minor = (int(part, 16) for part in device.split(":"))
    return Mapping(start, end, rights[3] == "s", int(offset, 16), os.makedev(major, minor), int(inode))


def mapping_at(mappings: list[Mapping], address: int, size: int) -> Mapping | None:
    """The one mapping that holds all of *address* to *address* + *size*, if there is one."""
    return next((m for m in mappings if m.start <= address and address + size <= m.end), None)


def open_shared_file(pid: int, mapping: Mapping) -> int | None:
    """A new read-only descriptor of the file that *pid* maps there, None when it keeps none open.

    By device and inode among the process's descriptors, because a memfd has no name. The
    caller closes it. A private mapping has no file that shows what the process wrote: None.
    """
    if not mapping.shared or mapping.inode == 0:
        return None
    folder = Path(f"/proc/{pid}/fd")
    try:
        candidates = sorted(folder.iterdir())
    except OSError:
        return None
    for candidate in candidates:
        try:
            status = candidate.stat()
            if (status.st_dev, status.st_ino) == (mapping.device, mapping.inode):
                return os.open(candidate, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            continue
    return None


class ProcessMemory:
    """The bytes of another process by its own virtual addresses, through ``/proc/PID/mem``."""

    def __init__(self, pid: int) -> None:
        """Open for reading; `MachineError` says what is missing when that is not allowed."""
        self.pid = pid
        try:
            self._fd = os.open(f"/proc/{pid}/mem", os.O_RDONLY | os.O_CLOEXEC)
        except PermissionError as error:
            raise MachineError(
                f"cannot read /proc/{pid}/mem: permission denied; run as the same user as the process, "
                "with kernel.yama.ptrace_scope=0, or with CAP_SYS_PTRACE"
            ) from error
        except OSError as error:
            raise MachineError(f"cannot read /proc/{pid}/mem: {error.strerror}") from error

    def read(self, address: int, size: int) -> bytes:
        """Exactly *size* bytes, or `MemoryReadError` when the process has no memory there or is gone."""
        parts = []
        while size > 0:
            try:
                part = os.pread(self._fd, size, address)
            except (OSError, OverflowError):
                part = b""
            if not part:
                raise MemoryReadError(address, size, f"process {self.pid}")
            parts.append(part)
            address += len(part)
            size -= len(part)
        return b"".join(parts)

    def present(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """Runs of pages from *start* to *end* that the process ever touched, ascending; all where that is not known.

        The others of a mapping without a file are zeros. Source: Linux, "Examining Process Page Tables".
        """
        import numpy as np

        try:
            with Path(f"/proc/{self.pid}/pagemap").open("rb") as file:
                for at in range(start, end, _PAGEMAP_STEP):
                    count = (min(at + _PAGEMAP_STEP, end) - at + PAGE - 1) // PAGE
                    file.seek(at // PAGE * _WORD)
                    words = np.frombuffer(file.read(count * _WORD), "<u8")
                    if len(words) < count:
                        yield at, end
                        return
                    touched = np.pad((words >> np.uint64(62) != 0).astype(np.int8), 1)
                    for low, high in np.flatnonzero(np.diff(touched)).reshape(-1, 2).tolist():
                        yield at + low * PAGE, min(at + high * PAGE, end)
        except OSError:
            yield start, end

    def close(self) -> None:
        """Close the descriptor; the process does not notice."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

"""Find the program of an engine: the system's, another one, or one in a folder that packages were unpacked into.

A program that was built for a newer system does not start with this one's C library. Where its own loader and
libraries lie beside it, it is started by those, and nothing has to be installed.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

from fivefold.errors import MachineError
from fivefold.machine.child import environment

_LIBRARIES: Final = ("usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu", "usr/lib64", "lib64")
_LOADER: Final = "ld-linux-x86-64.so.2"


class HostProgram(NamedTuple):
    """How to start a program."""

    command: tuple[str, ...]
    root: Path
    """The folder that its data is in, as a system's is in ``/``."""

    @property
    def path(self) -> Path:
        """The program itself."""
        return Path(self.command[-1])

    @property
    def is_unpacked(self) -> bool:
        """Whether it lies in a folder of unpacked packages, and must be told where its data is."""
        return len(self.command) > 1

    def data(self, *names: str) -> Path | None:
        """The first of *names*, relative to the root, that is there."""
        return next((self.root / name for name in names if (self.root / name).exists()), None)


def find_program(names: Sequence[str], given: str | None, variable: str) -> HostProgram | None:
    """The program that *given* says, or else the environment's *variable*, or the first of *names* on the path.

    Both may be a program, or a folder into which packages were unpacked. None if nothing was said and nothing
    is installed; `MachineError` if what was said is no program.
    """
    said = given or os.environ.get(variable)
    if not said:
        installed = next((found for name in names if (found := shutil.which(name, path=environment()["PATH"]))), None)
        return HostProgram((installed,), Path("/")) if installed else None
    path = Path(said).absolute()
    if path.is_dir():
        inside = (path / place / name for name in names for place in ("usr/bin", "bin", "."))
        program = next((file for file in inside if _is_program(file)), None)
        if program is None:
            raise MachineError(f"{said} has no {names[0]} in it, expected {said}/usr/bin/{names[0]}")
        path = program
    elif not _is_program(path):
        raise MachineError(f"{said} is not a program")
    return _started_by_its_own(path)


def _is_program(path: Path) -> bool:
    return path.is_file() and os.access(path, os.X_OK)


def _started_by_its_own(path: Path) -> HostProgram:
    """*path* by the loader that lies beside it, if it is in an unpacked folder and no script."""
    root = path.parent.parent.parent if path.parent.parent.name == "usr" else path.parent.parent
    loader = next((file for place in _LIBRARIES if _is_program(file := root / place / _LOADER)), None)
    if root == Path("/") or loader is None or path.read_bytes()[:4] != b"\x7fELF":
        return HostProgram((str(path),), root)
    libraries = ":".join(str(root / place) for place in _LIBRARIES)
    return HostProgram((str(loader), "--library-path", libraries, str(path)), root)

"""The engines by name, and one way to start any of them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

from fivefold.errors import MachineError
from fivefold.machine.base import START_SECONDS, Guest, Machine
from fivefold.machine.program import find_program


class _Engine(NamedTuple):
    available: Callable[[str | None], str | None]
    start: Callable[[Guest, float, str | None], Machine]
    has_program: bool = True


def engines() -> tuple[str, ...]:
    """Names that `start` takes, the default first."""
    return tuple(_ENGINES)


def available(engine: str, program: str | None = None) -> str | None:
    """None if *engine* can be used here, else one line that says why not and what to install.

    *program* is another program of that engine than the system's, or a folder that its packages were unpacked into;
    FIVEFOLD_QEMU and FIVEFOLD_BOCHS say one, too. Raises `MachineError` for a name that is none of `engines`.
    """
    return _find(engine, program).available(program)


def start(engine: str, guest: Guest, timeout: float = START_SECONDS, program: str | None = None) -> Machine:
    """Load *guest* into *engine*; use the result in a ``with``. Raises `MachineError`.

    *timeout* in seconds is for an engine that is a program of its own, and may not answer; *program*: see `available`.
    """
    found = _find(engine, program)
    if (reason := found.available(program)) is not None:
        raise MachineError(reason)
    return found.start(guest, timeout, program)


def _find(engine: str, program: str | None) -> _Engine:
    if engine not in _ENGINES:
        raise MachineError(f"unknown engine {engine!r}; expected {', '.join(engines())}")
    if program is not None and not _ENGINES[engine].has_program:
        raise MachineError(f"the engine {engine} is no program: {program} cannot be it")
    return _ENGINES[engine]


# The engines are imported when they are asked for: each brings a package or a program that may be missing.


def _unicorn_available(program: str | None) -> str | None:
    try:
        import fivefold.machine.unicorn.engine  # noqa: F401
    except ImportError as error:
        return f"the engine unicorn needs the package unicorn ({error}); install it with: pip install 'fivefold[boot]'"
    return None


def _start_unicorn(guest: Guest, timeout: float, program: str | None) -> Machine:
    from fivefold.machine.unicorn.engine import UnicornMachine

    return UnicornMachine(guest)


def _qemu_available(program: str | None) -> str | None:
    from fivefold.machine.qemu.engine import INSTALL, PROGRAM, VARIABLE

    try:
        found = find_program((PROGRAM,), program, VARIABLE)
    except MachineError as error:
        return str(error)
    return None if found else f"the engine qemu needs {PROGRAM}, which is not there; {INSTALL}"


def _start_qemu(guest: Guest, timeout: float, program: str | None) -> Machine:
    from fivefold.machine.qemu.engine import QemuMachine

    return QemuMachine(guest, timeout=timeout, program=program)


def _kvm_available(program: str | None) -> str | None:
    if (reason := _qemu_available(program)) is not None:
        return reason.replace("engine qemu", "engine kvm")
    if not os.access(_KVM, os.R_OK | os.W_OK):
        state = "may not be opened by this user" if Path(_KVM).exists() else "is not there"
        return f"the engine kvm needs {_KVM}, which {state}"
    from fivefold.machine.qemu.kvm_probe import probe

    return probe(program)


def _start_kvm(guest: Guest, timeout: float, program: str | None) -> Machine:
    from fivefold.machine.qemu.engine import QemuMachine

    return QemuMachine(guest, "kvm", timeout, program)


def _bochs_available(program: str | None) -> str | None:
    from fivefold.machine.bochs.config import installation

    try:
        installation(program)
    except MachineError as error:
        return str(error)
    return None


def _start_bochs(guest: Guest, timeout: float, program: str | None) -> Machine:
    from fivefold.machine.bochs.engine import BochsMachine

    return BochsMachine(guest, timeout, program)


_KVM: Final = "/dev/kvm"
_ENGINES: Final = {
    "unicorn": _Engine(_unicorn_available, _start_unicorn, has_program=False),
    "qemu": _Engine(_qemu_available, _start_qemu),
    "kvm": _Engine(_kvm_available, _start_kvm),
    "bochs": _Engine(_bochs_available, _start_bochs),
}

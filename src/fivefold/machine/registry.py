"""The engines by name, and one way to start any of them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

from fivefold.errors import MachineError
from fivefold.machine.base import START_SECONDS, Guest, Machine
from fivefold.machine.child import environment


class _Engine(NamedTuple):
    available: Callable[[], str | None]
    start: Callable[[Guest, float], Machine]


def engines() -> tuple[str, ...]:
    """Names that `start` takes, the default first."""
    return tuple(_ENGINES)


def available(engine: str) -> str | None:
    """None if *engine* can be used here, else one line that says why not and what to install.

    Raises `MachineError` for a name that is none of `engines`.
    """
    return _find(engine).available()


def start(engine: str, guest: Guest, timeout: float = START_SECONDS) -> Machine:
    """Load *guest* into *engine*; use the result in a ``with``. Raises `MachineError`.

    *timeout* in seconds is for an engine that is a program of its own, and may not answer.
    """
    found = _find(engine)
    if (reason := found.available()) is not None:
        raise MachineError(reason)
    return found.start(guest, timeout)


def _find(engine: str) -> _Engine:
    if engine not in _ENGINES:
        raise MachineError(f"unknown engine {engine!r}; expected {', '.join(engines())}")
    return _ENGINES[engine]


# The engines are imported when they are asked for: each brings a package or a program that may be missing.


def _unicorn_available() -> str | None:
    try:
        import fivefold.machine.unicorn.engine  # noqa: F401
    except ImportError as error:
        return f"the engine unicorn needs the package unicorn ({error}); install it with: pip install unicorn"
    return None


def _start_unicorn(guest: Guest, timeout: float) -> Machine:
    from fivefold.machine.unicorn.engine import UnicornMachine

    return UnicornMachine(guest)


def _qemu_available() -> str | None:
    from fivefold.machine.qemu.engine import INSTALL, PROGRAM

    found = shutil.which(PROGRAM, path=environment()["PATH"])
    return None if found else f"the engine qemu needs {PROGRAM}, which is not there; {INSTALL}"


def _start_qemu(guest: Guest, timeout: float) -> Machine:
    from fivefold.machine.qemu.engine import QemuMachine

    return QemuMachine(guest, timeout=timeout)


def _kvm_available() -> str | None:
    if (reason := _qemu_available()) is not None:
        return reason.replace("engine qemu", "engine kvm")
    if not os.access(_KVM, os.R_OK | os.W_OK):
        state = "may not be opened by this user" if Path(_KVM).exists() else "is not there"
        return f"the engine kvm needs {_KVM}, which {state}"
    from fivefold.machine.qemu.kvm_probe import probe

    return probe()


def _start_kvm(guest: Guest, timeout: float) -> Machine:
    from fivefold.machine.qemu.engine import QemuMachine

    return QemuMachine(guest, "kvm", timeout)


_KVM: Final = "/dev/kvm"
_ENGINES: Final = {
    "unicorn": _Engine(_unicorn_available, _start_unicorn),
    "qemu": _Engine(_qemu_available, _start_qemu),
    "kvm": _Engine(_kvm_available, _start_kvm),
}

"""One libvirt domain, asked through the program virsh, or through libvirt's Python module where there is no virsh.

virsh comes first since a call of it can be given up. Each question is a call of its own.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import uuid
from collections.abc import Callable
from importlib import import_module
from typing import Any, Final, Protocol, TypeVar

from fivefold.errors import MachineError, printable
from fivefold.memory.live.connection import NoAnswerError

RIGHTS: Final = (
    "expected the right to manage it: root or a member of the group libvirt, or a domain of your own session: "
    "libvirt:qemu:///session#DOMAIN"
)
_DENIED: Final = (
    "Permission denied",
    "authentication unavailable",
    "authentication failed",
    "read only access",
    "denied",
)
_RUNNING: Final = ("running", "idle", "in shutdown")
OFF: Final = ("shut off", "crashed", "no state")
"""States of a domain that has no QEMU to ask."""
_MAX_TOLD: Final = 300

_Answer = TypeVar("_Answer")


class LibvirtDomain(Protocol):
    """What is asked of libvirt about one domain; `MachineError` where it refuses."""

    uri: str
    uuid: str

    def state(self) -> str:
        """Such as ``running``, ``paused`` or ``shut off``."""
        ...

    def monitor(self, request: str, seconds: float, file: int | None = None) -> str:
        """QEMU's answer to a *request* of its machine protocol, which may come with an open *file*."""
        ...

    def suspend(self) -> None:
        """Stop it."""
        ...

    def resume(self) -> None:
        """Let it go on."""
        ...


def find_domain(uri: str | None, domain: str, timeout: float) -> LibvirtDomain:
    """The domain of that name, number or UUID, at *uri*, or where libvirt itself looks; `MachineError` if it is off."""
    found: LibvirtDomain
    if shutil.which("virsh"):
        found = Virsh(uri, domain, timeout)
    else:
        found = _by_python(uri, domain)
    state = found.state()
    if state in OFF:
        raise MachineError(f"the domain {domain!r} of {found.uri} is {state}; start it: virsh start {domain}")
    return found


def refusal(domain: str, uri: str | None, told: str) -> MachineError:
    """What libvirt *told* of *domain*, on one line, with what it expects where that is a right."""
    lines = (line.strip().removeprefix("error:").strip() for line in told.splitlines())
    said = printable("; ".join(dict.fromkeys(line for line in lines if line)))[:_MAX_TOLD] or "no reason given"
    where = f"libvirt, domain {domain!r}" + (f" of {uri}" if uri else "")
    if "failed to get domain" in said or "Domain not found" in said:
        return MachineError(f"{where}: there is no such domain; virsh list --all shows those that there are")
    hint = f"; {RIGHTS}" if any(word in said for word in _DENIED) else ""
    return MachineError(f"{where}: {said}{hint}")


class Virsh:
    """A domain by calls of virsh."""

    def __init__(self, uri: str | None, domain: str, timeout: float) -> None:
        """Find *domain*; *timeout* in seconds for each answer."""
        self.domain, self.timeout = domain, timeout
        self.uri = uri or ""
        self.uri = self._run("uri").strip()
        self.uuid = self._find()

    def _find(self) -> str:
        """The UUID of the domain; virsh's ``domuuid`` takes names and numbers, ``domname`` numbers and UUIDs."""
        with contextlib.suppress(ValueError, MachineError):
            given = str(uuid.UUID(self.domain))
            self._run("domname", f"--domain={given}")
            return given
        return self._run("domuuid", f"--domain={self.domain}").strip()

    def state(self) -> str:
        """Such as ``running``."""
        return self._run("domstate", f"--domain={self.uuid}").strip()

    def monitor(self, request: str, seconds: float, file: int | None = None) -> str:
        """QEMU's answer; a virsh before 8.2 passes no files."""
        files = () if file is None else (f"--pass-fds={file}",)
        words = ("qemu-monitor-command", f"--domain={self.uuid}", *files, f"--cmd={request}")
        return self._run(*words, file=file, seconds=seconds)

    def suspend(self) -> None:
        """Stop it."""
        self._run("suspend", f"--domain={self.uuid}")

    def resume(self) -> None:
        """Let it go on."""
        self._run("resume", f"--domain={self.uuid}")

    def _run(self, *words: str, file: int | None = None, seconds: float = 0.0) -> str:
        connect = ("-c", self.uri) if self.uri else ()
        try:
            # A session of its own: Ctrl-C in a terminal must not end what lets a guest go on.
            done = subprocess.run(
                ["virsh", "-q", *connect, *words],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=seconds or self.timeout,
                pass_fds=() if file is None else (file,),
                env={**os.environ, "LC_ALL": "C"},
                start_new_session=True,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise NoAnswerError(f"virsh {words[0]} of {self.domain!r} took more than {error.timeout:g} s") from error
        except OSError as error:
            raise MachineError(f"cannot start virsh: {error.strerror}") from error
        if done.returncode:
            raise refusal(self.domain, self.uri, done.stderr.decode("utf-8", "replace"))
        return done.stdout.decode("utf-8", "replace")


def _by_python(uri: str | None, domain: str) -> LibvirtDomain:
    try:
        library, monitor = import_module("libvirt"), import_module("libvirt_qemu")
    except ImportError as error:
        raise MachineError(
            "libvirt: needs virsh, and it is not here: install libvirt-clients (Fedora: libvirt-client), "
            "or libvirt-python into this environment"
        ) from error
    return PythonDomain(library, monitor, uri, domain)


class PythonDomain:
    """A domain by libvirt-python, over one connection; its calls have no time limit."""

    def __init__(self, library: Any, qemu: Any, uri: str | None, domain: str) -> None:
        """*library* is the module ``libvirt``, *qemu* the module ``libvirt_qemu``."""
        self._library, self._qemu, self.domain, self.uri = library, qemu, domain, uri or ""
        library.registerErrorHandler(lambda *_: None, None)  # it prints them
        self._connection = self._call(lambda: library.open(uri))
        self.uri = self._call(self._connection.getURI)
        self._domain = self._call(self._look_up)
        self.uuid = self._call(self._domain.UUIDString)

    def _look_up(self) -> Any:
        """Look for a number, a UUID, and last a name, whose refusal counts."""
        ways = [self._connection.lookupByUUIDString]
        if self.domain.isdecimal() and self.domain.isascii():
            ways.insert(0, lambda number: self._connection.lookupByID(int(number)))
        for way in ways:
            with contextlib.suppress(self._library.libvirtError, OverflowError):
                return way(self.domain)
        return self._connection.lookupByName(self.domain)

    def state(self) -> str:
        """In virsh's words."""
        library = self._library
        words = {
            library.VIR_DOMAIN_RUNNING: "running",
            library.VIR_DOMAIN_BLOCKED: "idle",
            library.VIR_DOMAIN_PAUSED: "paused",
            library.VIR_DOMAIN_SHUTDOWN: "in shutdown",
            library.VIR_DOMAIN_SHUTOFF: "shut off",
            library.VIR_DOMAIN_CRASHED: "crashed",
            library.VIR_DOMAIN_PMSUSPENDED: "pmsuspended",
        }
        return words.get(self._call(self._domain.state)[0], "no state")

    def monitor(self, request: str, seconds: float, file: int | None = None) -> str:
        """QEMU's answer."""
        if file is None:
            return str(self._call(lambda: self._qemu.qemuMonitorCommand(self._domain, request, 0)))
        with_files = getattr(self._qemu, "qemuMonitorCommandWithFiles", None)
        if with_files is None:
            raise MachineError("this libvirt-python passes no files")
        answer = self._call(lambda: with_files(self._domain, request, [file], 0))
        return str(answer[0] if isinstance(answer, tuple) else answer)

    def suspend(self) -> None:
        """Stop it."""
        self._call(self._domain.suspend)

    def resume(self) -> None:
        """Let it go on."""
        self._call(self._domain.resume)

    def _call(self, call: Callable[[], _Answer]) -> _Answer:
        try:
            return call()
        except self._library.libvirtError as error:
            raise refusal(self.domain, self.uri, str(error)) from error


def is_running(state: str) -> bool:
    """Whether a domain in *state* executes anything."""
    return state in _RUNNING

"""A guest of libvirt by its name: QEMU's monitor through libvirt, its memory as for any live QEMU."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from fivefold.errors import MachineError
from fivefold.memory.banked import MAX_COPY
from fivefold.memory.live.frozen import StoppedGuest
from fivefold.memory.live.live_qemu import AttachedQemu, check_way
from fivefold.memory.live.monitor import QmpError, given_file
from fivefold.memory.live.virsh import OFF, LibvirtDomain, find_domain, is_running
from fivefold.memory.source import Source

EXPECTED: Final = "libvirt:DOMAIN or libvirt:URI#DOMAIN, such as libvirt:qemu:///session#DOMAIN"


def attach_libvirt(
    named: str,
    *,
    freeze: bool = False,
    ram: str = "auto",
    timeout: float = 10.0,
    max_copy: int = MAX_COPY,
) -> Source:
    """Attach to the domain *named* as ``DOMAIN`` or ``URI#DOMAIN``: its name, UUID or number.

    Without a URI it is libvirt's own choice, which LIBVIRT_DEFAULT_URI sets. Like `attach_qmp` in all else; a domain
    is stopped and let go on through libvirt, so that it knows. Raises `MachineError`.
    """
    check_way(ram)
    uri, domain = parse_name(named)
    found = find_domain(uri, domain, timeout)
    monitor = LibvirtMonitor(found, timeout)
    pid, unknown = process_of(found)
    at = AttachedQemu(monitor, pid, unknown, f"libvirt:{named}", max_copy)
    return at.open(LibvirtGuest(found), freeze=freeze, ram=ram)


def parse_name(named: str) -> tuple[str | None, str]:
    """The URI, None where there is none, and the domain; `ValueError` where the latter is missing.

    >>> parse_name("qemu:///session#build")
    ('qemu:///session', 'build')
    """
    uri, hash_sign, domain = named.rpartition("#") if "://" in named else ("", "", named)
    if not domain or "://" in domain or (hash_sign and not uri):
        raise ValueError(f"libvirt:{named} names no domain; expected {EXPECTED}")
    return uri or None, domain


def process_of(domain: LibvirtDomain) -> tuple[int | None, str]:
    """QEMU's process, by the UUID on its command line; and why it is not known where it is not."""
    if urlsplit(domain.uri).hostname:
        return None, f"the process is on another machine: {domain.uri}"
    wanted = (b"-uuid", domain.uuid.encode())
    found = [int(folder.name) for folder in Path("/proc").glob("[0-9]*") if _has_words(folder, wanted)]
    if len(found) == 1:
        return found[0], ""
    seen = f"{len(found)} processes have" if found else "no process that is seen here has"
    return None, f"{seen} -uuid {domain.uuid} on the command line"


def _has_words(folder: Path, wanted: tuple[bytes, bytes]) -> bool:
    try:
        words = folder.joinpath("cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return wanted in pairwise(words)


class LibvirtMonitor:
    """QEMU's machine protocol through libvirt, which marks the domain as tainted by it in its log."""

    def __init__(self, domain: LibvirtDomain, timeout: float) -> None:
        """*timeout* in seconds for each answer."""
        self.address = f"{domain.uri}#{domain.uuid}"
        self._domain = domain
        self._timeout = timeout

    def ask(self, command: str, **arguments: object) -> Any:
        """The answer to *command*; `QmpError` when QEMU refuses, `MachineError` when libvirt does."""
        return self._answer(command, {name.replace("_", "-"): value for name, value in arguments.items()})

    def monitor(self, line: str, **arguments: object) -> str:
        """What the human monitor prints for *line*."""
        answer = self.ask("human-monitor-command", command_line=line, **arguments)
        if not isinstance(answer, str):
            raise MachineError(f"{self.address} answers {line!r} with {type(answer).__name__}, expected text")
        return answer

    @contextlib.contextmanager
    def lend(self, file: int) -> Iterator[str]:
        """A path by which QEMU can open *file* inside the ``with`` block; given to QEMU where libvirt can, from 8.2."""
        given = self._given(file)
        if given is None:
            yield f"/proc/{os.getpid()}/fd/{file}"
            return
        number, group = given
        try:
            yield f"/proc/self/fd/{number}"
        finally:
            with contextlib.suppress(MachineError):
                self.ask("remove-fd", fdset_id=group)

    def _given(self, file: int) -> tuple[int, int] | None:
        try:
            return given_file(self._answer("add-fd", {}, file))
        except MachineError:
            return None

    @contextlib.contextmanager
    def patience(self, seconds: float) -> Iterator[None]:
        """Wait *seconds* longer than usual for answers inside the ``with`` block."""
        self._timeout += seconds
        try:
            yield
        finally:
            self._timeout -= seconds

    def _answer(self, command: str, arguments: dict[str, object], file: int | None = None) -> Any:
        request = json.dumps({"execute": command, **({"arguments": arguments} if arguments else {})})
        text = self._domain.monitor(request, self._timeout, file)
        try:
            message = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise MachineError(f"{self.address} answers {command} with {text[:40]!r}, expected JSON") from error
        if isinstance(message, dict) and "return" in message:
            return message["return"]
        refused = message.get("error") if isinstance(message, dict) else None
        if not isinstance(refused, dict):
            raise MachineError(f"{self.address} answers {command} with neither a result nor an error")
        raise QmpError(command, str(refused.get("class", "")), str(refused.get("desc", "no reason given")))


class LibvirtGuest(StoppedGuest):
    """A domain that is stopped and let go on through libvirt."""

    def __init__(self, domain: LibvirtDomain) -> None:
        super().__init__("libvirt", f"{domain.uri}#{domain.uuid}")
        self._domain = domain

    def is_running(self) -> bool:
        """Ask libvirt; `MachineError` where the domain ended, whose shared memory may outlive it."""
        state = self._domain.state()
        if state in OFF:
            raise MachineError(f"the domain {self._domain.uuid} of {self._domain.uri} is {state}")
        return is_running(state)

    def _stop(self) -> None:
        self._domain.suspend()

    def _let_go_on(self) -> None:
        try:
            self._domain.resume()
        except MachineError as error:
            if self._is_gone_or_runs():
                return
            told = (
                f"the domain {self._domain.uuid} of {self._domain.uri} may still be stopped: {error}; virsh resume it"
            )
            raise MachineError(told) from error

    def _is_gone_or_runs(self) -> bool:
        try:
            return self._domain.state() != "paused"
        except MachineError as error:
            return "no such domain" in str(error)

    def _close(self) -> None:
        """Calls of libvirt leave no connection that would have to be closed."""

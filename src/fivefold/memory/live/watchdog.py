"""A process that lets a stopped guest go on when the one that stopped it is killed.

It is this file, run isolated and without the package, so that it starts in no time: it waits on a pipe until it is told
that all is well, or until the pipe breaks. A process that is killed, or that a bus error ends, cannot put anything back
itself. The group of processes that a terminal or a scheduler signals does not include it.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

ALL_IS_WELL = b"\n"
PATIENCE = 300.0
"""Seconds that the guest's monitor may take until it lets us in: a copy of all memory keeps it busy."""
PAUSE = 0.2
BY_PYTHON = "import libvirt, sys; libvirt.open(sys.argv[1]).lookupByUUIDString(sys.argv[2]).resume()"
"""For where there is no virsh; in a process that is not isolated, so that it finds the module."""


class Watchdog:
    """The process, from the side that it watches."""

    def __init__(self, protocol: str, address: str) -> None:
        """Watch this process; should it be killed, let the guest behind *address* go on.

        *protocol* is ``qmp``, ``gdb`` or ``libvirt``, whose addresses are URI#DOMAIN. Where no process can be had the
        guest is not watched over.
        """
        script = os.path.abspath(__file__)  # noqa: PTH100
        command = [sys.executable, "-I", "-S", script, protocol, address, str(os.getpid())]
        self._process: subprocess.Popen[bytes] | None = None
        with contextlib.suppress(OSError):
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True
            )

    @contextlib.contextmanager
    def until_put_back(self) -> Iterator[None]:
        """End the process after the ``with`` block, which lets the guest go on, or tells that it cannot.

        Ctrl-C, and signals that are made the same, may come in the middle of it: then the process does it.
        """
        try:
            yield
        except Exception:
            self.stand_down()
            raise
        except BaseException:
            self._alarm()
            raise
        self.stand_down()

    def stand_down(self) -> None:
        """The guest is as it was: end the process. May be called again."""
        process, self._process = self._process, None
        if process is None:
            return
        try:
            process.communicate(ALL_IS_WELL)
        except OSError:
            process.kill()
            process.wait()

    def _alarm(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.communicate(b"")


def main() -> int:
    """Be the process."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    protocol, address, watched = sys.argv[1:]
    if os.read(0, 1) == ALL_IS_WELL:
        return 0
    told = f"fivefold: process {watched} was cut short while the guest behind {protocol}:{address} stood still for it"
    try:
        let_go(protocol, address)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        remedy = "virsh resume it" if protocol == "libvirt" else "give 'cont' to its monitor"
        say(f"{told}, and it cannot be let go on: {reason}; {remedy}")
        return 1
    say(f"{told}; the guest goes on")
    return 0


def say(line: str) -> None:
    """Print *line* to stderr, if it is open; what a monitor answers may hold anything."""
    clean = "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in line)
    with contextlib.suppress(OSError):
        os.write(2, clean.encode() + b"\n")


def let_go(protocol: str, address: str) -> None:
    """Tell the guest's monitor to continue; it may be busy, or still believe in its last client."""
    until = time.monotonic() + PATIENCE
    while True:
        try:
            if protocol == "libvirt":
                return continue_by_virsh(address)
            with connected(address, min(10.0, max(until - time.monotonic(), 1.0))) as stream:
                return (continue_by_qmp if protocol == "qmp" else continue_by_gdb)(stream)
        except (FileNotFoundError, ConnectionRefusedError):
            raise  # it is gone, and the guest with it
        except OSError:
            if time.monotonic() > until:
                raise
        time.sleep(PAUSE)


def connected(address: str, timeout: float) -> socket.socket:
    """A connection to a path or HOST:PORT."""
    host, colon, port = address.rpartition(":")
    if colon and port.isdecimal() and "/" not in host:
        return socket.create_connection((host.strip("[]") or "localhost", int(port)), timeout)
    stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        stream.settimeout(timeout)
        stream.connect(address)
    except OSError:
        stream.close()
        raise
    return stream


def continue_by_qmp(stream: socket.socket) -> None:
    """Have QEMU continue; `OSError` where it does not answer, `ValueError` where it refuses."""
    with stream.makefile("rwb") as file:
        while "QMP" not in answer(file.readline()):
            pass
        for command in ("qmp_capabilities", "cont"):
            file.write(json.dumps({"execute": command, "id": command}).encode() + b"\n")
            file.flush()
            while (said := answer(file.readline())).get("id") != command:
                pass
            if "error" in said:
                raise ValueError(json.dumps(said["error"])[:200])


def continue_by_virsh(address: str) -> None:
    """Have libvirt continue; `OSError` where it does not answer, `ValueError` where it refuses."""
    uri, _, domain = address.rpartition("#")
    command = ["virsh", "-q", "-c", uri, "resume", f"--domain={domain}"]
    if shutil.which("virsh") is None:
        command = [sys.executable, "-c", BY_PYTHON, uri, domain]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=PATIENCE / 10,
            env={**os.environ, "LC_ALL": "C"},
        )
    except subprocess.TimeoutExpired as error:
        raise TimeoutError("virsh gives no answer") from error
    said = " ".join(done.stderr.decode("utf-8", "replace").split())
    if done.returncode and "already running" not in said and "not running" not in said:
        raise ValueError(said.removeprefix("error: ")[:200])


def answer(line: bytes) -> dict[str, object]:
    """A message; `OSError` where the other side went away."""
    if not line:
        raise ConnectionResetError("the connection was closed")
    said = json.loads(line)
    return said if isinstance(said, dict) else {}


def continue_by_gdb(stream: socket.socket) -> None:
    """Attach, which stops the guest once more, and detach, which lets it go on."""
    stream.sendall(b"$D#44")
    said = b""
    while b"OK" not in said:
        part = stream.recv(4096)
        if not part:
            raise ConnectionResetError("the connection was closed")
        said = (said + part)[-4096:]
    stream.sendall(b"+")


if __name__ == "__main__":
    sys.exit(main())

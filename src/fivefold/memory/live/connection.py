"""A stream to a program that answers questions, with one time limit for the whole of an answer.

A limit for each piece would never end with a program that sends one byte at a time.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import time
from typing import Final

from fivefold.errors import MachineError

_PIECE: Final = 1 << 16
_LAST_PORT: Final = 65535


class NoAnswerError(MachineError):
    """The program at the other end did not answer, or not all of it in time: asking it for less is no use."""


class ConnectionLostError(NoAnswerError):
    """The program at the other end went away."""


class Connection:
    """A socket and what arrived on it and was not taken yet. Not to be shared between threads."""

    def __init__(self, stream: socket.socket, name: str, timeout: float, question: str) -> None:
        """Own *stream*. *name* is the other end in errors, *question* what to ask oneself when it is gone.

        *timeout* in seconds for each answer, from `begin` on.
        """
        self.name = name
        self.timeout = timeout
        self.buffer = bytearray()
        self.if_silent = ""
        """What to add to the error when no answer comes."""
        self._stream = stream
        self._question = question
        self._deadline = 0.0

    def begin(self) -> None:
        """Start the time for the next answer, and for the question that is sent before it."""
        self._deadline = time.monotonic() + self.timeout

    @property
    def left(self) -> float:
        """Seconds that are left for the answer; negative when its time is over."""
        return self._deadline - time.monotonic()

    @property
    def passes_files(self) -> bool:
        """Whether the other end can be given open files."""
        return self._stream.family == socket.AF_UNIX

    def send(self, data: bytes, file: int | None = None) -> None:
        """Send all of *data*, and with it the open *file*.

        `NoAnswerError` if the peer does not take it in time, `ConnectionLostError` if there is no peer.
        """
        try:
            self._limit()
            if file is not None:
                data = data[socket.send_fds(self._stream, [data], [file]) :]
            if data:  # to send nothing fails where the other end has answered and left
                self._stream.sendall(data)
        except TimeoutError as error:
            raise NoAnswerError(f"{self.name} takes no question for {self.timeout:g} s") from error
        except OSError as error:
            raise ConnectionLostError(f"{self.name} went away: {error.strerror or error}") from error

    def receive(self) -> None:
        """Wait until more has arrived in `buffer`; raises as `send`."""
        try:
            self._limit()
            part = self._stream.recv(_PIECE)
        except TimeoutError as error:
            whole = "whole " if self.buffer else ""
            raise NoAnswerError(f"{self.name} gave no {whole}answer in {self.timeout:g} s{self.if_silent}") from error
        except OSError as error:
            raise ConnectionLostError(f"{self.name} went away: {error.strerror or error}") from error
        if not part:
            raise ConnectionLostError(f"{self.name} closed the connection in the middle; {self._question}")
        self.buffer += part

    def take(self, size: int) -> bytes:
        """The first *size* bytes of `buffer`, which are then gone from it."""
        taken = bytes(self.buffer[:size])
        del self.buffer[:size]
        return taken

    def _limit(self) -> None:
        if (left := self.left) <= 0:  # a socket's timeout of 0 would mean not to wait at all
            raise TimeoutError
        self._stream.settimeout(left)

    @property
    def peer_pid(self) -> int | None:
        """The process at the other end of a Unix socket, None over TCP."""
        if self._stream.family != socket.AF_UNIX:
            return None
        raw = self._stream.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        pid: int = struct.unpack("3i", raw)[0]
        return pid or None

    def fileno(self) -> int:
        """For ``select``: readable when something has arrived that is not in `buffer` yet."""
        return self._stream.fileno()

    def close(self) -> None:
        """Disconnect. May be called again."""
        self._stream.close()


def connect(address: str, timeout: float, what: str) -> socket.socket:
    """A connected socket to a path or to HOST:PORT; `MachineError` with *what* was expected there."""
    host, colon, port = address.rpartition(":")
    by_port = bool(colon) and port.isdecimal() and "/" not in host
    if by_port and (len(port) > 5 or int(port) > _LAST_PORT):  # the system would take what is left of a larger one
        raise MachineError(f"cannot connect to {address} for {what}: expected a port of up to {_LAST_PORT}")
    with contextlib.ExitStack() as undo:
        try:
            connected = (
                socket.create_connection((host.strip("[]") or "localhost", int(port)), timeout)
                if by_port
                else socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            )
            undo.callback(connected.close)
            if by_port:
                # Small packets in turn: without this each waits for the other side's delayed acknowledgement.
                connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            else:
                connected.settimeout(timeout)
                connected.connect(address)
        except (OSError, UnicodeError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise MachineError(f"cannot connect to {address} for {what}: {reason}") from error
        undo.pop_all()
    return connected

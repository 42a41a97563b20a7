"""A gdb stub in QEMU's physical-memory mode, through a client of our own; no gdb is needed.

Protocol: *Debugging with GDB*, "Remote Protocol"; ``Qqemu.PhyMemMode`` and monitor commands as *QEMU
System Emulation*, "GDB usage", has them. A stub stops the guest as soon as a client connects
and lets it go on when the client detaches, so attaching needs the caller's consent.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Final

from fivefold.errors import FormatError, MachineError, MemoryReadError, both_told
from fivefold.memory.banked import MAX_COPY, PagedMemory
from fivefold.memory.base import Extent
from fivefold.memory.formats.raw_image import parse_ram_map
from fivefold.memory.live.connection import Connection, ConnectionLostError, connect
from fivefold.memory.live.mtree import ram_ranges
from fivefold.memory.live.watchdog import Watchdog
from fivefold.memory.registers import CpuState, parse_info_registers
from fivefold.memory.source import Source
from fivefold.units import MIB

MAX_PACKET: Final = 1 << 16
MAX_MONITOR_TEXT: Final = 16 * MIB
LENT: Final = "fivefold-lent+"
"""The feature of a stub that is a gdb session's own, which stops nothing and lets nothing go on."""
_STANDS: Final = "the guest stands still while attached and runs afterwards"
_TRIES: Final = 3
_SHORT: Final = 1.0
"""Seconds that a stub which did not answer once gets to hear that we leave."""


class GdbClient:
    """One connection to a stub: packets with checksums and acknowledgements, nothing else."""

    def __init__(self, address: str, *, timeout: float = 10.0) -> None:
        """Connect to HOST:PORT or a Unix socket's path; *timeout* in seconds for each answer."""
        self.address = address
        self._gave_up = False
        self._watchdog = Watchdog("gdb", address)
        try:
            stream = connect(address, timeout, "a gdb stub")
        except BaseException:
            self._watchdog.stand_down()
            raise
        self._connection = Connection(stream, address, timeout, "is the stub still there?")
        try:
            features = self.ask("qSupported")
            self.packet_size = self._packet_size(features)
            self.lent = LENT in features.split(";")
        except BaseException as error:  # the guest stands still since we connected; Ctrl-C too must let it go on
            with both_told(error):
                self.close()
            raise

    @staticmethod
    def _packet_size(features: str) -> int:
        for feature in features.split(";"):
            name, _, value = feature.partition("=")
            if name == "PacketSize" and 0 < len(value) <= 8:
                try:
                    return max(64, min(int(value, 16), MAX_PACKET))
                except ValueError:
                    break
        return 400  # what stubs that say nothing are known to take

    def ask(self, request: str) -> str:
        """The answer to *request*; empty when the stub does not know it. `MachineError` when it is silent."""
        with self._in_turn():
            self._send(request)
            return self._receive()

    def monitor(self, line: str) -> str | None:
        """What the stub's monitor prints for *line*, None when it has no monitor."""
        with self._in_turn():
            self._send(f"qRcmd,{line.encode().hex()}")
            return self._printed(line)

    def _printed(self, line: str) -> str | None:
        text = bytearray()
        while (answer := self._receive()) != "OK":
            if not answer.startswith("O"):
                return None
            text += self._unhex(answer[1:])
            if len(text) > MAX_MONITOR_TEXT:
                raise MachineError(f"{self.address} prints without end for {line!r}")
        return text.decode("utf-8", "replace")

    @contextlib.contextmanager
    def _in_turn(self) -> Iterator[None]:
        """Give the answer its time. Answers have no number: after one that was given up, none can be trusted."""
        if self._gave_up:
            raise MachineError(f"{self.address} did not answer an earlier question; connect anew")
        self._gave_up = True
        self._connection.begin()
        yield
        self._gave_up = False

    def read(self, address: int, size: int) -> bytes:
        """Exactly *size* bytes at *address*, or `MemoryReadError` when the stub refuses."""
        parts: list[bytes] = []
        step = (self.packet_size - 8) // 2
        while size > 0:
            take = min(size, step)
            answer = self.ask(f"m{address:x},{take:x}")
            if answer == "" or (answer.startswith("E") and len(answer) == 3):
                raise MemoryReadError(address, take, f"gdb:{self.address}")
            part = self._unhex(answer)
            if not 0 < len(part) <= take:
                raise MachineError(f"{self.address} answers {len(part)} bytes, expected up to {take}")
            parts.append(part)
            address, size = address + len(part), size - len(part)
        return b"".join(parts)

    def close(self) -> None:
        """Detach, so that the guest goes on, and disconnect; `MachineError` where it may be stopped still."""
        if self._gave_up:
            self._connection.timeout = min(self._connection.timeout, _SHORT)
        with self._watchdog.until_put_back():
            try:
                # Sent even out of turn: only that the stub reads it counts.
                self._connection.begin()
                self._send("D")
                self._receive()
            except ConnectionLostError:
                pass  # the stub is gone already
            except MachineError as error:
                told = f"the guest of {self.address} may still be stopped, detaching failed: {error}"
                raise MachineError(told) from error
            finally:
                self._connection.close()

    def _unhex(self, text: str) -> bytes:
        try:
            return bytes.fromhex(text)
        except ValueError as error:
            raise MachineError(f"{self.address} answers {text[:40]!r}, expected hex digits") from error

    def _send(self, body: str) -> None:
        packet = f"${body}#{sum(body.encode()) & 0xFF:02x}".encode()
        for _ in range(_TRIES):
            self._connection.send(packet)
            if self._acknowledgement() == b"+":
                return
        raise MachineError(f"{self.address} refuses the packet {body[:40]!r}")

    def _acknowledgement(self) -> bytes:
        # A packet that comes first is a stop reply without a request: it is dropped.
        while True:
            byte = self._byte()
            if byte in (b"+", b"-"):
                return byte
            if byte == b"$":
                self._until_checksum()

    def _receive(self) -> str:
        for _ in range(_TRIES):
            while self._byte() != b"$":
                pass
            body, intact = self._until_checksum()
            self._connection.send(b"+" if intact else b"-")
            if intact:
                return "".join(self._expanded(body))
        raise MachineError(f"{self.address} sends packets with wrong checksums")

    def _until_checksum(self) -> tuple[bytes, bool]:
        buffer = self._connection.buffer
        while (end := buffer.find(b"#")) < 0 or len(buffer) < end + 3:
            if len(buffer) > 2 * MAX_PACKET:
                raise MachineError(f"{self.address} sends a packet of more than {2 * MAX_PACKET} bytes")
            self._connection.receive()
        body = self._connection.take(end)
        checksum = self._connection.take(3)[1:].lower()
        return body, checksum == b"%02x" % (sum(body) & 0xFF)

    @staticmethod
    def _expanded(body: bytes) -> Iterator[str]:
        """Undo run-length encoding: ``0*"`` is a 0 and five more (``*`` and a count from 29 up)."""
        text = body.decode("latin-1")
        if "*" not in text:
            yield text
            return
        at = 0
        while at < len(text):
            if text[at + 1 : at + 2] == "*" and at + 2 < len(text):
                yield text[at] * (1 + max(0, ord(text[at + 2]) - 29))
                at += 3
            else:
                yield text[at]
                at += 1

    def _byte(self) -> bytes:
        if not self._connection.buffer:
            self._connection.receive()
        return self._connection.take(1)


def attach_gdb(
    address: str,
    *,
    ram_map: str | None = None,
    freeze: bool = False,
    timeout: float = 10.0,
    max_copy: int = MAX_COPY,
) -> Source:
    """Attach to the stub at *address*, HOST:PORT or a Unix socket's path.

    Which physical memory there is comes from *ram_map* (offsets in it mean nothing here) or from
    QEMU's monitor behind the stub. Closing lets the guest go on, even one that stood before. Raises `MachineError`
    without *freeze*, or when the stub has no physical-memory mode; `ValueError` for a bad map.
    """
    if not freeze:
        raise MachineError(
            f"gdb:{address} stops the guest while it is attached and lets it run afterwards; allow that with --freeze"
        )
    mapped = [Extent(span.start, span.end) for span in parse_ram_map(ram_map)] if ram_map else []
    client = GdbClient(address, timeout=timeout)
    try:
        if client.ask("Qqemu.PhyMemMode:1") != "OK":
            raise MachineError(f"{address} has no physical-memory mode; expected QEMU 4.1 or newer behind it")
        extents = mapped or _extents(client)
        cpus = _cpus(client)
    except BaseException as error:  # Ctrl-C too must let the guest go on
        with both_told(error):
            client.close()
        raise
    memory = PagedMemory(
        extents, client.read, f"gdb:{address}", on_close=client.close, max_copy=max_copy, searchable=False
    )
    return Source(
        memory=memory,
        format="gdb stub",
        cpus=cpus,
        notes=("the guest stands still, as gdb has it" if client.lent else _STANDS,),
        live=True,
    )


def _extents(client: GdbClient) -> list[Extent]:
    try:
        ranges = ram_ranges(client.monitor("info mtree -f") or "")
    except FormatError as error:
        raise MachineError(f"{client.address} does not say where RAM is; give --ram-map ({error})") from error
    return [Extent(ram.start, ram.end) for ram in ranges]


def _cpus(client: GdbClient) -> tuple[CpuState, ...]:
    text = client.monitor("info registers -a")
    return parse_info_registers(text, "info registers by gdb stub") if text else ()

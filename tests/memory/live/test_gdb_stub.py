"""The gdb client against a stub in this process; QEMU's own is in test_live_qemu."""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Callable

import pytest

from fivefold.errors import MachineError, MemoryReadError
from fivefold.memory import open_source
from fivefold.memory.live.gdb_stub import GdbClient
from fivefold.units import PhysAddr

MTREE = """FlatView #0
 AS "memory", root: system
  0000000000001000-0000000000002fff (prio 0, ram): pc.ram @0000000000001000
"""
REGISTERS = "CPU#0\nCR0=80050033 CR2=0 CR3=0000000011a0a000 CR4=000016b0\n"
MEMORY = (bytes(range(200)) + bytes(56)) * 32


def packet(body: bytes) -> bytes:
    return b"$" + body + b"#%02x" % (sum(body) & 0xFF)


def stub(requests: list[str], *, physical: bytes = b"OK", monitor: bool = True) -> Callable[[socket.socket], None]:
    """As QEMU's: packets of 80 bytes, run-length coded zeros, a stop reply nobody asked for."""

    def answer(request: str) -> bytes:
        if request.startswith("qSupported"):
            return packet(b"PacketSize=50;qXfer:features:read+")
        if request.startswith("Qqemu.PhyMemMode"):
            return packet(physical)
        if request.startswith("qRcmd,"):
            line = bytes.fromhex(request[6:]).decode()
            text = MTREE if "mtree" in line else REGISTERS
            if not monitor:
                return packet(b"")
            halves = text[:40].encode().hex(), text[40:].encode().hex()
            return b"".join(packet(b"O" + half.encode()) for half in halves) + packet(b"OK")
        if found := re.fullmatch(r"m([0-9a-f]+),([0-9a-f]+)", request):
            start, size = int(found[1], 16), int(found[2], 16)
            if start + size > len(MEMORY):
                return packet(b"E14")
            return packet(MEMORY[start : start + size].hex().encode().replace(b"00000000", b"0*$"))
        return packet(b"OK" if request == "D" else b"")

    def script(connection: socket.socket) -> None:
        connection.sendall(packet(b"T05thread:01;"))
        buffer = b""
        while part := connection.recv(1 << 16):
            buffer += part
            while found := re.search(rb"\$([^#]*)#[0-9a-f]{2}", buffer):
                buffer = buffer[found.end() :]
                requests.append(found[1].decode())
                connection.sendall(b"+" + answer(requests[-1]))

    return script


def test_memory_registers_and_extents(serve) -> None:
    requests: list[str] = []
    with open_source(f"gdb:{serve(stub(requests))}", freeze=True) as source:
        assert source.extents == [(0x1000, 0x3000)]
        assert source.memory.read(PhysAddr(0x10FE), 300) == MEMORY[0x10FE : 0x10FE + 300]
        assert [(cpu.cr0, cpu.cr3, cpu.cr4) for cpu in source.cpus] == [(0x80050033, 0x11A0A000, 0x16B0)]
        assert (source.live, source.format) == (True, "gdb stub")
        with pytest.raises(MemoryReadError):
            source.memory.read(PhysAddr(0x3000), 1)
    assert requests[:2] == ["qSupported", "Qqemu.PhyMemMode:1"]
    assert requests[-1] == "D"
    assert all(int(request.partition(",")[2], 16) <= 36 for request in requests if request.startswith("m"))


def test_nothing_is_sent_without_consent(serve) -> None:
    requests: list[str] = []
    path = serve(stub(requests))
    with pytest.raises(MachineError, match=r"allow that with --freeze$"):
        open_source(f"gdb:{path}")
    assert requests == []
    with socket.socket(socket.AF_UNIX) as release:
        release.connect(path)


def test_a_hole_inside_the_map(serve) -> None:
    with open_source(f"gdb:{serve(stub([]))}", freeze=True, ram_map="0x1000-1M") as source:
        assert source.extents == [(0x1000, 0x100000)]
        with pytest.raises(MemoryReadError) as error:
            source.memory.read(PhysAddr(0x1FF0), 64)
        assert (error.value.pa, error.value.size) == (0x1FF0, 36)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"physical": b""}, "has no physical-memory mode; expected QEMU 4.1 or newer behind it"),
        (
            {"monitor": False},
            "does not say where RAM is; give --ram-map ('info mtree -f' shows no RAM in the system's memory; "
            "expected lines with 'ram')",
        ),
    ],
)
def test_stubs_that_cannot(serve, options: dict[str, object], message: str) -> None:
    requests: list[str] = []
    with pytest.raises(MachineError) as error:
        open_source(f"gdb:{serve(stub(requests, **options))}", freeze=True)
    assert str(error.value).endswith(message)
    assert requests[-1] == "D"


@pytest.mark.parametrize(
    ("sent", "message"),
    [
        (b"", "closed the connection in the middle; is the stub still there?"),
        (b"+$OK#00$OK#00$OK#00", "sends packets with wrong checksums"),
        (b"---", "refuses the packet 'qSupported'"),
        (b"+$" + b"x" * 300_000, "sends a packet of more than 131072 bytes"),
        (b"+$" + b"x" * 131_000, "closed the connection in the middle; is the stub still there?"),
    ],
)
def test_stubs_that_misbehave(serve, sent: bytes, message: str) -> None:
    def script(connection: socket.socket) -> None:
        connection.sendall(sent)
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(1 << 16):
            pass

    with pytest.raises(MachineError) as error:
        open_source(f"gdb:{serve(script)}", freeze=True)
    assert str(error.value).endswith(message)


def slow_packet(connection: socket.socket) -> None:
    """Acknowledges, then one byte at a time, each in time for itself."""
    connection.sendall(b"+$")
    for _ in range(200):
        connection.sendall(b"x")
        time.sleep(0.01)
    connection.sendall(b"#00")


def test_the_time_limit_is_for_the_whole_answer(serve) -> None:
    with pytest.raises(MachineError, match=r"/socket gave no whole answer in 0.2 s; the guest .* may still be "):
        GdbClient(serve(slow_packet), timeout=0.2)


def test_after_an_answer_that_was_given_up_none_is_trusted(serve) -> None:
    """Answers have no number: the late one would be taken for that to the next question."""
    requests: list[str] = []

    def script(connection: socket.socket) -> None:
        for answer in (packet(b"PacketSize=50"), b"", packet(b"00")):
            while not (found := re.search(rb"\$([^#]*)#", connection.recv(1 << 16))):
                pass
            requests.append(found[1].decode())
            connection.sendall(b"+" + answer)

    client = GdbClient(serve(script), timeout=0.1)
    with pytest.raises(MachineError, match=r"gave no answer in 0.1 s$"):
        client.read(0x1000, 1)
    with pytest.raises(MachineError, match=r"/socket did not answer an earlier question; connect anew$"):
        client.read(0x2000, 1)
    client.close()
    assert requests == ["qSupported", "m1000,1", "D"]


def test_a_stub_that_is_given_up_at_once_is_left(serve) -> None:
    """Its guest stands still since the connection was made."""
    requests: list[str] = []

    def script(connection: socket.socket) -> None:
        for _ in range(2):
            requests.append(connection.recv(1 << 16).decode())
        connection.sendall(b"+" + packet(b"OK"))

    with pytest.raises(MachineError, match=r"gave no answer in 0.1 s$"):
        GdbClient(serve(script), timeout=0.1)
    assert requests == ["$qSupported#37", "$D#44"]


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"", ""),
        (b"abc", "abc"),
        (b'0*"', "000000"),
        (b"a*\x1eb", "aab"),
        (b"a*\x1db", "ab"),
        (b"a*\x1cb", "ab"),
        (b'x0*"y1* z', "x000000y1111z"),
        (b"a*", "a*"),
        (b"**\x1e", "**"),
        (b"\xff* ", "\xff" * 4),
    ],
)
def test_runs_in_a_packet(body: bytes, text: str) -> None:
    """A count from 29 up; less, which no stub sends, adds nothing. A star at the end is one."""
    assert "".join(GdbClient._expanded(body)) == text

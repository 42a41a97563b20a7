"""The gdb client against a stub in this process; QEMU's own is in test_live_qemu."""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Callable
from contextlib import closing

import pytest

from fivefold.errors import MachineError, MemoryReadError
from fivefold.memory import open_source
from fivefold.memory.live import gdb_stub
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


class WordForWord:
    """A stub that gives these answers, one to each packet, as they are; what it got is in *got*."""

    def __init__(self, *answers: bytes, features: bytes = b"PacketSize=50") -> None:
        self.answers = [b"+" + packet(features), *answers]
        self.got: list[bytes] = []

    def __call__(self, connection: socket.socket) -> None:
        buffer = b""
        while part := connection.recv(1 << 16):
            buffer += part
            while found := re.match(rb"[+-]|\$[^#]*#[0-9a-f]{2}", buffer):
                buffer = buffer[found.end() :]
                self.got.append(found[0])
                if len(found[0]) > 1:
                    left = self.answers.pop(0) if self.answers else b"+" + packet(b"OK")
                    connection.sendall(left)
        assert buffer == b""


@pytest.mark.parametrize(
    ("features", "size"),
    [
        (b"PacketSize=50", 0x50),
        (b"a+;PacketSize=3fff;PacketSize=50", 0x3FFF),
        (b"PacketSize=40", 64),
        (b"PacketSize=41", 65),
        (b"PacketSize=1", 64),
        (b"PacketSize=10000", 1 << 16),
        (b"PacketSize=10001", 1 << 16),
        (b"PacketSize=00000050", 0x50),
        (b"PacketSize=000000050", 400),
        (b"PacketSize=", 400),
        (b"PacketSize", 400),
        (b"PacketSize=5x;PacketSize=50", 400),
        (b"Packet=50", 400),
        (b"", 400),
    ],
)
def test_how_much_a_packet_may_hold(features: bytes, size: int) -> None:
    assert GdbClient._packet_size(features.decode()) == size


def test_reads_fill_packets_and_take_what_comes(serve) -> None:
    """At most 36 bytes a packet of 80: two digits each, and eight for what is around. Fewer than asked are well."""
    stub = WordForWord(*[b"+" + packet(b"ab" * size) for size in (36, 36, 10, 18, 1)])
    with closing(GdbClient(serve(stub), timeout=5)) as client:
        assert client.read(0xABC000, 100) == b"\xab" * 100
        assert client.read(0x7, 1) == b"\xab"
    asked = [b"mabc000,24", b"mabc024,24", b"mabc048,1c", b"mabc052,12", b"m7,1"]
    assert [one for one in stub.got if len(one) > 1] == [packet(one) for one in (b"qSupported", *asked, b"D")]
    assert stub.got.count(b"+") == 7


@pytest.mark.parametrize(
    ("body", "kind", "message"),
    [
        (b"", MemoryReadError, " has no memory at 0x0000000000001000 (+2 bytes)"),
        (b"E14", MemoryReadError, " has no memory at 0x0000000000001000 (+2 bytes)"),
        (b"000000", MachineError, " answers 3 bytes, expected up to 2"),
        (b"0", MachineError, " answers '0', expected hex digits"),
        (b"E1E1E", MachineError, " answers 'E1E1E', expected hex digits"),
        (b"x" * 50, MachineError, f" answers '{'x' * 40}', expected hex digits"),
    ],
)
def test_answers_to_a_read(serve, body: bytes, kind: type[Exception], message: str) -> None:
    path = serve(WordForWord(b"+" + packet(body)))
    with closing(GdbClient(path, timeout=5)) as client:
        with pytest.raises(kind) as error:
            client.read(0x1000, 2)
        assert str(error.value) == (f"gdb:{path}" if kind is MemoryReadError else path) + message


def test_a_byte_that_looks_like_an_error(serve) -> None:
    with closing(GdbClient(serve(WordForWord(b"+" + packet(b"E1"), b"+" + packet(b"E14E"))), timeout=5)) as client:
        assert client.read(0x1000, 1) == b"\xe1"
        assert client.read(0x1000, 2) == b"\xe1\x4e"


def test_packets_are_sent_again(serve) -> None:
    """Twice at most; a stop reply before the acknowledgement, and noise before a packet, are passed by."""
    stop = packet(b"T05")
    good = b"\r\n" + packet(b"6162")
    stub = WordForWord(b"-", b"x" + stop + b"-", stop + b"+" + good)
    with closing(GdbClient(serve(stub), timeout=5)) as client:
        assert client.read(0x1000, 2) == b"ab"
    asked = packet(b"m1000,2")
    assert stub.got == [packet(b"qSupported"), b"+", asked, asked, asked, b"+", packet(b"D"), b"+"]


def test_answers_are_asked_for_again(serve) -> None:
    """Twice at most; a checksum may have capital letters."""
    stub = WordForWord(b"+$62#00$62#9x$zj#E4")
    with closing(GdbClient(serve(stub), timeout=5)) as client:
        assert client.ask("?") == "zj"
    assert stub.got == [packet(b"qSupported"), b"+", packet(b"?"), b"-", b"-", b"+", packet(b"D"), b"+"]


@pytest.mark.parametrize(
    ("answers", "text"),
    [
        ((b"O6162", b"O", b"Oc3", b"Oa4ff", b"OK"), "ab\u00e4\ufffd"),
        ((b"OK",), ""),
        ((b"",), None),
        ((b"E01",), None),
        ((b"O6162", b"E01"), None),
    ],
)
def test_the_monitor_behind_a_stub(serve, answers: tuple[bytes, ...], text: str | None) -> None:
    stub = WordForWord(b"+" + b"".join(packet(body) for body in answers))
    with closing(GdbClient(serve(stub), timeout=5)) as client:
        assert client.monitor("info x") == text
        assert packet(b"qRcmd,696e666f2078") in stub.got


def test_a_monitor_without_end(serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gdb_stub, "MAX_MONITOR_TEXT", 4)
    path = serve(WordForWord(*[b"+" + packet(b"O6162") * n + packet(b"OK") for n in (2, 3)]))
    client = GdbClient(path, timeout=5)
    assert client.monitor("x") == "abab"
    with pytest.raises(MachineError) as error:
        client.monitor("x")
    assert str(error.value) == f"{path} prints without end for 'x'"
    client.close()


@pytest.mark.parametrize(
    ("features", "note"),
    [
        (b"PacketSize=50;fivefold-lent+", "the guest stands still, as gdb has it"),
        (b"PacketSize=50;fivefold-lent-", "the guest stands still while attached and runs afterwards"),
    ],
)
def test_what_is_said_of_the_guest(serve, features: bytes, note: str) -> None:
    path = serve(WordForWord(b"+" + packet(b"OK"), b"+" + packet(b""), features=features))
    with open_source(f"gdb:{path}", freeze=True, ram_map="0x1000-0x3000,12K-16K", max_copy=7) as source:
        assert source.notes == (note,)
        assert (source.extents, source.cpus, source.format) == ([(0x1000, 0x4000)], (), "gdb stub")
        assert (source.name, source.memory.searchable, source.torn) == (f"gdb:{path}", False, False)
        with pytest.raises(MachineError, match="at most 7 are allowed"):
            source.memory.banks()


def test_the_watchdog_is_let_go_of_where_nothing_listens(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[object] = []

    class Noting:
        def __init__(self, *words: str) -> None:
            done.append(words)

        def stand_down(self) -> None:
            done.append("down")

    monkeypatch.setattr(gdb_stub, "Watchdog", Noting)
    with pytest.raises(MachineError, match="for a gdb stub: No such file"):
        GdbClient(f"{tmp_path}/none")
    assert done == [("gdb", f"{tmp_path}/none"), "down"]


def test_a_stub_that_answered_so_far_has_its_time_to_let_go(serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gdb_stub, "_SHORT", 0.05)

    def script(connection: socket.socket) -> None:
        connection.recv(1 << 16)
        connection.sendall(b"+" + packet(b"PacketSize=50"))
        while b"D" not in connection.recv(1 << 16):
            pass
        time.sleep(0.3)
        connection.sendall(b"+" + packet(b"OK"))

    GdbClient(serve(script), timeout=20).close()


@pytest.mark.parametrize(("timeout", "told"), [(0.1, 0.1), (3.0, 0.2)])
def test_a_stub_that_gave_no_answer_hears_that_we_leave_for_a_short_time(
    serve, monkeypatch: pytest.MonkeyPatch, timeout: float, told: float
) -> None:
    monkeypatch.setattr(gdb_stub, "_SHORT", 0.2)
    client = GdbClient(serve(WordForWord(b"+", b"")), timeout=0.1)
    with pytest.raises(MachineError, match=r" gave no answer in 0\.1 s$"):
        client.ask("?")
    client._connection.timeout = timeout
    with pytest.raises(MachineError, match=rf" gave no answer in {told:g} s$"):
        client.close()

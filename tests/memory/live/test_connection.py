"""A stream with one time limit for an answer, by a pair of sockets whose other end the test holds."""

from __future__ import annotations

import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fivefold.errors import MachineError
from fivefold.memory.live.connection import Connection, ConnectionLostError, NoAnswerError, connect


@pytest.fixture
def pair() -> Iterator[tuple[Connection, socket.socket]]:
    ours, theirs = socket.socketpair()
    theirs.settimeout(20)
    connection = Connection(ours, "peer", 5.0, "where is it?")
    connection.begin()
    yield connection, theirs
    connection.close()
    theirs.close()


Pair = tuple[Connection, socket.socket]


def test_a_peer_may_leave_as_soon_as_it_was_told(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its answer may have arrived: that nothing is left to send is no reason to say that it went away."""
    connection, theirs = pair
    send, told = socket.send_fds, []

    def send_and_hang_up(*arguments: Any) -> int:
        sent = send(*arguments)
        told.append(theirs.recv(100))
        theirs.close()
        return sent

    monkeypatch.setattr(socket, "send_fds", send_and_hang_up)
    with Path("/dev/null").open("rb") as file:
        connection.send(b"a question", file.fileno())
    assert told == [b"a question"]


def test_what_arrives_is_taken_in_parts(pair: Pair) -> None:
    connection, theirs = pair
    for part in (b"abc", b"def"):
        theirs.sendall(part)
        connection.receive()
    assert (connection.take(2), connection.take(3), bytes(connection.buffer)) == (b"ab", b"cde", b"f")
    assert connection.take(9) == b"f"
    assert connection.take(1) == b""


@pytest.mark.parametrize("size", [1, 1 << 22])
def test_a_file_goes_with_the_first_bytes(pair: Pair, size: int, tmp_path: Path) -> None:
    """Also where the socket does not take all bytes at once; none is sent twice."""
    connection, theirs = pair
    (tmp_path / "file").write_bytes(b"lent")
    file = os.open(tmp_path / "file", os.O_RDONLY)
    data = os.urandom(size)
    got, given = bytearray(), []

    def read() -> None:
        while len(got) < size:
            part, files, _, _ = socket.recv_fds(theirs, 1 << 16, 1)
            got.extend(part)
            given.extend(files)

    thread = threading.Thread(target=read)
    thread.start()
    connection.send(data, file)
    thread.join(20)
    assert bytes(got) == data
    assert [os.read(one, 9) for one in given] == [b"lent"]
    os.close(given[0])
    os.close(file)


def test_without_a_file_none_is_sent(pair: Pair) -> None:
    connection, theirs = pair
    connection.send(b"abc")
    assert socket.recv_fds(theirs, 10, 1)[:2] == (b"abc", [])


def test_nobody_takes_what_is_sent(pair: Pair) -> None:
    connection, _ = pair
    connection.timeout = 0.05
    connection.begin()
    with pytest.raises(NoAnswerError, match=r"^peer takes no question for 0\.05 s$"):
        connection.send(bytes(1 << 22))


def test_nobody_is_there(pair: Pair) -> None:
    connection, theirs = pair
    theirs.close()
    with pytest.raises(ConnectionLostError, match=r"^peer went away: Broken pipe$"):
        connection.send(b"x")
    with pytest.raises(ConnectionLostError, match=r"^peer closed the connection in the middle; where is it\?$"):
        connection.receive()


def test_a_connection_that_is_reset() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        stream = connect(f"127.0.0.1:{listener.getsockname()[1]}", 5, "QMP")
        theirs, _ = listener.accept()
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        theirs.close()
        connection = Connection(stream, "peer", 5.0, "")
        connection.begin()
        with pytest.raises(ConnectionLostError, match=r"^peer went away: Connection reset by peer$"):
            connection.receive()
        connection.close()


@pytest.mark.parametrize(("before", "told"), [(b"", "gave no answer"), (b"x", "gave no whole answer")])
def test_silence(pair: Pair, before: bytes, told: str) -> None:
    connection, theirs = pair
    theirs.sendall(before + b"")
    if before:
        connection.receive()
    connection.timeout = 0.05
    connection.if_silent = "; why?"
    connection.begin()
    with pytest.raises(NoAnswerError) as error:
        connection.receive()
    assert str(error.value) == f"peer {told} in 0.05 s; why?"
    assert not isinstance(error.value, ConnectionLostError)


def test_when_the_time_is_over_nothing_is_waited_for(pair: Pair) -> None:
    """Nor taken, though it is there."""
    connection, theirs = pair
    theirs.sendall(b"x")
    connection.timeout = 0.0
    connection.begin()
    for act in (connection.receive, lambda: connection.send(b"y")):
        with pytest.raises(NoAnswerError):
            act()
    assert connection.left <= 0
    connection.timeout = 5.0
    connection.begin()
    assert 4 < connection.left <= 5.0
    connection.receive()
    assert connection.buffer == b"x"
    theirs.setblocking(False)
    with pytest.raises(BlockingIOError):
        theirs.recv(1)


def test_before_the_first_beginning_there_is_no_time() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, pytest.raises(NoAnswerError):
        Connection(ours, "peer", 5.0, "").send(b"x")


def test_who_is_there(pair: Pair) -> None:
    connection, theirs = pair
    assert connection.peer_pid == os.getpid()
    assert connection.passes_files
    assert connection.fileno() == connection._stream.fileno()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        over_tcp = Connection(connect(f"localhost:{listener.getsockname()[1]}", 5, "QMP"), "", 5, "")
        assert over_tcp.peer_pid is None
        assert not over_tcp.passes_files
        assert over_tcp._stream.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        over_tcp.close()
        over_tcp.close()
    connection.close()
    assert theirs.recv(1) == b""


@pytest.mark.parametrize("host", ["", "localhost", "127.0.0.1", "[127.0.0.1]"])
def test_hosts(host: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        stream = connect(f"{host}:{listener.getsockname()[1]}", 5, "QMP")
        assert stream.getpeername() == listener.getsockname()
        stream.close()


@pytest.mark.parametrize("name", ["7", "a:b", "a:7", ":7:x"])
def test_paths(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a slash it is a path, whatever is behind a colon; without one a name that has no port."""
    monkeypatch.chdir(tmp_path)
    address = f"./{name}" if name == "a:7" else name
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(name)
        listener.listen(1)
        with connect(address, 0.5, "QMP") as stream:
            assert stream.family == socket.AF_UNIX
            assert stream.gettimeout() == 0.5


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("/none/at all", "No such file or directory"),
        ("localhost:1", "Connection refused"),
        ("localhost:65536", "expected a port of up to 65535"),
        ("localhost:000001", "expected a port of up to 65535"),
        (f"localhost:{'9' * 5000}", "expected a port of up to 65535"),
        ("x" * 200, "AF_UNIX path too long"),
    ],
)
def test_what_cannot_be_connected_to(opened: Callable[[], set[str]], address: str, reason: str) -> None:
    with pytest.raises(MachineError) as error:
        connect(address, 5, "a stub")
    assert str(error.value) == f"cannot connect to {address} for a stub: {reason}"
    assert opened() == set()


def test_what_cannot_be_a_host() -> None:
    with pytest.raises(MachineError, match=r"^cannot connect to a\.\.b:1 for QMP: .*label"):
        connect("a..b:1", 5, "QMP")


def test_a_host_that_does_not_answer() -> None:
    """No more connections are taken than the listener has room for: the next one waits."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        held = [socket.create_connection(listener.getsockname(), 5)]
        begun = time.monotonic()
        with pytest.raises(MachineError, match=r": timed out$"):
            while len(held) < 5:
                held.append(connect(address, 0.1, "QMP"))
        assert time.monotonic() - begun >= 0.1
        for one in held:
            one.close()

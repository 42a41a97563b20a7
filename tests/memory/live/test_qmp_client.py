"""The QMP client against servers that behave and servers that do not."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable
from contextlib import closing

import pytest

from fivefold.errors import MachineError
from fivefold.memory.live import qmp_client
from fivefold.memory.live.qmp_client import QmpClient, QmpError

GREETING = b'{"QMP": {"version": {}, "capabilities": []}}\r\n'
DONE = b'{"return": {}}\r\n'


def server(*answers: bytes) -> Callable[[socket.socket], None]:
    """Greet, then give one answer for each request; hang up after the last."""

    def script(connection: socket.socket) -> None:
        connection.sendall(GREETING)
        for answer in (DONE, *answers):
            if not connection.recv(1 << 16):
                return
            connection.sendall(answer)

    return script


def test_answers_and_events(serve) -> None:
    event = b'{"event": "RESUME"}\r\n'
    requests: list[bytes] = []

    def script(connection: socket.socket) -> None:
        connection.sendall(GREETING)
        for answer in (event + DONE, event + b'{"return": "te', b'xt"}\n'):
            requests.append(connection.recv(1 << 16) if not answer.startswith(b"xt") else b"")
            connection.sendall(answer)

    with closing(QmpClient(serve(script), timeout=5)) as client:
        assert client.monitor("info mtree -f") == "text"
        assert client.peer_pid is not None
    assert json.loads(requests[1]) == {
        "execute": "human-monitor-command",
        "arguments": {"command-line": "info mtree -f"},
        "id": 2,
    }


def test_what_was_left_of_another_client_comes_first(serve) -> None:
    left = b'{"event": "STOP"}\r\n{"return": {}, "id": 7}\r\n'

    def script(connection: socket.socket) -> None:
        connection.sendall(left)
        server(b'{"return": "text"}\n')(connection)

    with closing(QmpClient(serve(script), timeout=5)) as client:
        assert client.monitor("info mtree -f") == "text"


def test_refusal_is_an_error_with_its_class(serve) -> None:
    refusal = b'{"error": {"class": "CommandNotFound", "desc": "The command x has not been found"}}\n'
    with closing(QmpClient(serve(server(refusal)), timeout=5)) as client:
        with pytest.raises(QmpError) as error:
            client.ask("x")
        assert str(error.value) == "QEMU refuses x: The command x has not been found"
        assert error.value.kind == "CommandNotFound"


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (b"", "closed the connection in the middle; is QEMU still running?"),
        (b'{"return"', "closed the connection in the middle; is QEMU still running?"),
        (b"hello\n", "does not speak QMP: b'hello' is not JSON"),
        (b"[1, 2]\n", "does not speak QMP: b'[1, 2]' is not an object"),
        (b"[" * 100_000 + b"\n", "does not speak QMP: b'[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[' is not JSON"),
        (b'{"return": 5}\n', "answers 'info mtree -f' with int, expected text"),
    ],
)
def test_servers_that_misbehave(serve, answer: bytes, message: str) -> None:
    with closing(QmpClient(serve(server(answer)), timeout=5)) as client:
        with pytest.raises(MachineError) as error:
            client.monitor("info mtree -f")
        assert str(error.value).endswith(message)


def test_no_greeting(serve) -> None:
    path = serve(lambda connection: connection.sendall(b'{"hello": 1}\n'))
    with pytest.raises(MachineError) as error:
        QmpClient(path, timeout=5)
    assert str(error.value) == f"{path} does not speak QMP: its first message has no 'QMP'"


def test_silence(serve) -> None:
    path = serve(lambda connection: connection.recv(1))
    with pytest.raises(MachineError) as error:
        QmpClient(path, timeout=0.05)
    assert str(error.value) == f"{path} gave no answer in 0.05 s; another client may hold the socket"


def trickle(connection: socket.socket) -> None:
    """One byte at a time, each in time for itself, and a whole line only after far too long."""
    for _ in range(200):
        connection.sendall(b"x")
        time.sleep(0.01)
    connection.sendall(b"\n")


def test_the_time_limit_is_for_the_whole_answer(serve) -> None:
    def script(connection: socket.socket) -> None:
        server()(connection)
        trickle(connection)

    with closing(QmpClient(serve(script), timeout=0.2)) as client, pytest.raises(MachineError) as error:
        client.ask("x")
    assert str(error.value).endswith("/socket gave no whole answer in 0.2 s")


def test_the_time_limit_is_for_greeting_and_negotiation(serve) -> None:
    with pytest.raises(MachineError, match=r"gave no whole answer in 0.2 s; another client may hold the socket$"):
        QmpClient(serve(trickle), timeout=0.2)


def test_events_do_not_extend_the_time_limit(serve) -> None:
    def script(connection: socket.socket) -> None:
        server()(connection)
        for _ in range(200):
            connection.sendall(b'{"event": "RTC_CHANGE"}\r\n')
            time.sleep(0.01)
        connection.sendall(DONE)

    with closing(QmpClient(serve(script), timeout=0.2)) as client, pytest.raises(MachineError) as error:
        client.ask("x")
    assert str(error.value).endswith("/socket gave no answer in 0.2 s")


def test_a_late_answer_is_no_answer_to_the_next_question(serve) -> None:
    def script(connection: socket.socket) -> None:
        server()(connection)
        asked = [json.loads(connection.recv(1 << 16)) for _ in range(2)]
        for request in asked:
            connection.sendall(json.dumps({"return": request["execute"], "id": request["id"]}).encode() + b"\n")

    with closing(QmpClient(serve(script), timeout=0.1)) as client:
        with pytest.raises(MachineError, match=r"gave no answer in 0.1 s$"):
            client.ask("first")
        with client.patience(5):
            assert client.ask("second") == "second"


def test_endless_line(serve, monkeypatch) -> None:
    monkeypatch.setattr(qmp_client, "MAX_ANSWER", 1 << 16)
    path = serve(server(b"x" * (1 << 18)))
    message = r"sent more than 65536 bytes without a line's end$"
    with closing(QmpClient(path, timeout=5)) as client, pytest.raises(MachineError, match=message):
        client.ask("x")

"""The QMP client against servers that behave and servers that do not."""

from __future__ import annotations

import json
import os
import socket
import threading
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


class Noting(QmpClient):
    """Keeps what it was told unasked."""

    def _note_event(self, event: dict[str, object]) -> None:
        self.noted = [*getattr(self, "noted", []), event["event"]]


def talk(*pieces: bytes) -> Callable[[socket.socket], None]:
    """Greet and negotiate, then give all *pieces* one by one to the next question."""

    def script(connection: socket.socket) -> None:
        server()(connection)
        connection.recv(1 << 16)
        for piece in pieces:
            connection.sendall(piece)
            time.sleep(0.01)
        connection.recv(1)

    return script


@pytest.mark.parametrize(
    "pieces",
    [
        (b'{"event": "A"}\n{"return": 1, "id": 1}\r\n{"error": "?", "id": 2}\n{"id": 2}\n{"return": 7, "id": 2}\r\n',),
        (b'{"ev', b'ent": "A"}', b'\n{"return":', b" 7", b"}", b"\r", b"\n"),
        (b'{"event": "A"}\n{"return"', b': 7, "id": 2}\n'),
        (b'{"event": "A", "id": 9}\n{"event": "A"}\n', b'{"error": {}, "id": 1}\n{"return": 7}\n'),
    ],
    ids=len,
)  # fmt: skip
def test_answers_in_pieces_and_among_others(serve, pieces: tuple[bytes, ...]) -> None:
    with closing(Noting(serve(talk(*pieces)), timeout=5)) as client:
        assert client.ask("x") == 7
        assert client.noted == ["A"]
        assert not client._connection.buffer


@pytest.mark.parametrize(
    ("error", "kind", "told"),
    [({}, "", "no reason given"), ({"class": "C"}, "C", "no reason given"), ({"desc": "d", "class": 5}, "5", "d")],
)
def test_refusals_that_say_little(serve, error: dict[str, object], kind: str, told: str) -> None:
    with closing(QmpClient(serve(server(json.dumps({"error": error}).encode() + b"\n")), timeout=5)) as client:
        with pytest.raises(QmpError) as caught:
            client.ask("stop")
        assert (caught.value.kind, caught.value.command, str(caught.value)) == (
            kind,
            "stop",
            f"QEMU refuses stop: {told}",
        )


def test_questions_are_numbered_and_spelt_as_the_protocol_has_them() -> None:
    ours, theirs = socket.socketpair()
    theirs.sendall(GREETING + b"".join(b'{"return": {}, "id": %d}\n' % number for number in (1, 2, 3)))
    with theirs, closing(QmpClient("name", connected=ours)) as client:
        assert client.address == "name"
        client.ask("stop")
        client.ask("human_x", cpu_index=0, command_line="y")
        asked = [json.loads(line) for line in theirs.recv(1 << 16).splitlines()]
    assert asked == [
        {"execute": "qmp_capabilities", "id": 1},
        {"execute": "stop", "id": 2},
        {"execute": "human_x", "arguments": {"cpu-index": 0, "command-line": "y"}, "id": 3},
    ]


def test_a_greeting_that_does_not_come_to_a_given_socket() -> None:
    """Nobody else can hold it; and it is closed with the client that could not be."""
    ours, theirs = socket.socketpair()
    with theirs, pytest.raises(MachineError, match=r"^name gave no answer in 0\.05 s$"):
        QmpClient("name", timeout=0.05, connected=ours)
    assert ours.fileno() == -1


def test_a_socket_that_falls_silent_after_the_greeting(serve) -> None:
    def script(connection: socket.socket) -> None:
        connection.sendall(GREETING)
        connection.recv(1 << 16)
        connection.recv(1)

    with pytest.raises(MachineError, match=r"/socket gave no answer in 0\.1 s$"):
        QmpClient(serve(script), timeout=0.1)


def test_patience_ends_with_its_block(serve) -> None:
    with closing(QmpClient(serve(server()), timeout=5)) as client:
        with pytest.raises(RuntimeError), client.patience(3.5):
            assert client._connection.timeout == 8.5
            raise RuntimeError
        assert client._connection.timeout == 5


def test_the_length_of_a_line_is_bounded(serve, monkeypatch: pytest.MonkeyPatch) -> None:
    assert qmp_client.MAX_ANSWER == 64 << 20
    monkeypatch.setattr(qmp_client, "MAX_ANSWER", 100)
    well = b'{"return": "' + b"x" * 86 + b'"}'
    assert len(well) == 100
    with closing(QmpClient(serve(talk(well, b"\n")), timeout=5)) as client:
        assert client.ask("x") == "x" * 86


@pytest.mark.parametrize(
    "answer", [b'{"return": {"fd": 5}}', b'{"return": 1}', b'{"return": {"fd": "a", "fdset-id": 1}}']
)
def test_a_file_that_is_not_taken(serve, answer: bytes) -> None:
    with closing(QmpClient(serve(server(answer + b"\n")), timeout=5)) as client, client.lend(0) as path:
        assert path == f"/proc/{os.getpid()}/fd/0"


def test_no_file_goes_over_tcp() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        asked: list[bytes] = []

        def run() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.sendall(GREETING)
                asked.append(connection.recv(1 << 16))
                connection.sendall(DONE)
                asked.append(connection.recv(1 << 16))

        thread = threading.Thread(target=run)
        thread.start()
        client = QmpClient(f"localhost:{listener.getsockname()[1]}", timeout=5)
        assert client.peer_pid is None
        with client.lend(0) as path:
            assert path == f"/proc/{os.getpid()}/fd/0"
        client.close()
        thread.join(20)
        assert asked[1] == b""

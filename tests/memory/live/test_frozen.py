"""A guest that stands still: in which order it is stopped, watched over and put back."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fivefold.errors import MachineError
from fivefold.memory.live import frozen
from fivefold.memory.live.frozen import QmpGuest, StoppedGuest
from fivefold.memory.live.qmp_client import QmpClient


class NotingGuest(StoppedGuest):
    """Notes what is done with it; *fails* is what does not work, and how."""

    def __init__(self, running: bool = True, fails: dict[str, BaseException] | None = None) -> None:
        super().__init__("qmp", "somewhere")
        self.running, self.fails, self.done = running, fails or {}, []

    def note(self, what: str) -> None:
        self.done.append(what)
        time.sleep(0.01)
        if what in self.fails:
            raise self.fails[what]

    def is_running(self) -> bool:
        self.note("ask")
        return self.running

    def _stop(self) -> None:
        self.note("stop")

    def _let_go_on(self) -> None:
        self.note("cont")

    def _close(self) -> None:
        self.note("close")


@pytest.fixture(autouse=True)
def noted(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """The watchdogs that were made, and how they were let go of."""
    made: list[tuple[str, str]] = []

    class NotingWatchdog:
        def __init__(self, *words: str) -> None:
            made.append(words)  # type: ignore[arg-type]

        @contextlib.contextmanager
        def until_put_back(self) -> Iterator[None]:
            made.append(("putting", "back"))
            yield
            made.append(("put", "back"))

    monkeypatch.setattr(frozen, "Watchdog", NotingWatchdog)
    return made


WATCHED = [("qmp", "somewhere"), ("putting", "back"), ("put", "back")]


def test_frozen_and_left(noted: list[Any]) -> None:
    guest = NotingGuest()
    guest.freeze()
    assert noted == WATCHED[:1]
    guest.leave()
    assert guest.done == ["stop", "cont", "close"]
    assert noted == WATCHED
    assert guest.stood_still >= 0.02
    guest.leave()
    guest.put_back()
    assert guest.done == ["stop", "cont", "close", "close"]
    assert noted == WATCHED


def test_never_frozen(noted: list[Any]) -> None:
    guest = NotingGuest()
    guest.leave()
    assert (guest.done, noted, guest.stood_still) == (["close"], [], 0.0)


def test_stopped_briefly_again_and_again(noted: list[Any]) -> None:
    guest = NotingGuest()
    for _ in range(2):
        with guest.stopped_briefly() as by_us:
            assert by_us
            assert guest.stood_still == 0.0
        assert 0.02 <= guest.stood_still < 600
    assert guest.done == ["ask", "stop", "cont"] * 2
    assert noted == WATCHED * 2


@pytest.mark.parametrize("frozen_before", [False, True])
def test_stopped_briefly_what_stands_already(noted: list[Any], frozen_before: bool) -> None:
    """One that is frozen is not asked, and stays frozen."""
    guest = NotingGuest(running=frozen_before)
    if frozen_before:
        guest.freeze()
    guest.stood_still = 7.0
    with guest.stopped_briefly() as by_us:
        assert not by_us
    assert guest.stood_still == 0.0
    assert guest.done == (["stop"] if frozen_before else ["ask"])
    assert len(noted) == frozen_before


def test_an_error_inside_lets_it_go_on(noted: list[Any]) -> None:
    guest = NotingGuest()
    with pytest.raises(KeyError), guest.stopped_briefly():
        raise KeyError
    assert guest.done == ["ask", "stop", "cont"]
    assert noted == WATCHED


@pytest.mark.parametrize("error", [MachineError("no"), KeyboardInterrupt()], ids=["refused", "interrupted"])
def test_a_stop_that_fails_may_have_stopped_it(noted: list[Any], error: BaseException) -> None:
    guest = NotingGuest(fails={"stop": error})
    with pytest.raises(type(error)), guest.stopped_briefly():
        raise AssertionError
    assert guest.done == ["ask", "stop", "cont"]
    assert noted == WATCHED


@pytest.mark.parametrize("error", [MachineError("no"), KeyboardInterrupt()], ids=["refused", "interrupted"])
def test_what_cannot_be_put_back_is_left_to_the_watchdog(noted: list[Any], error: BaseException) -> None:
    """Whose connection may be the only one that the monitor takes."""
    guest = NotingGuest(fails={"cont": error})
    guest.freeze()
    with pytest.raises(type(error)):
        guest.put_back()
    assert guest.done == ["stop", "cont", "close"]
    assert noted == WATCHED[:2]
    assert guest.stood_still >= 0.02
    guest.put_back()
    assert guest.done == ["stop", "cont", "close"]
    guest.leave()
    assert guest.done == ["stop", "cont", "close", "close"]


def test_a_socket_that_serves_one_client_after_the_other(tmp_path: Path) -> None:
    """As QEMU's does: the connection that refused is left before another is made."""
    asked: list[list[str]] = []

    def serve() -> None:
        for _ in range(2):
            connection, _ = listener.accept()
            asked.append([])
            with connection, connection.makefile("rwb") as file:
                file.write(b'{"QMP": {}}\n')
                file.flush()
                for line in file:
                    asked[-1].append(json.loads(line)["execute"])
                    fails = asked == [["qmp_capabilities", "stop", "cont"]]
                    answer = {"error": {"desc": "not now"}} if fails else {"return": {}}
                    file.write(json.dumps({"id": json.loads(line)["id"], **answer}).encode() + b"\n")
                    file.flush()

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "qmp"))
        listener.listen(2)
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        guest = QmpGuest(QmpClient(str(tmp_path / "qmp"), timeout=2), 2)
        guest.freeze()
        guest.leave()
        thread.join(20)
    assert asked == [["qmp_capabilities", "stop", "cont"], ["qmp_capabilities", "cont"]]

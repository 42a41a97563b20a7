"""However we end while a guest stands still for us: it goes on, and no file of its memory is left."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from fivefold.errors import MachineError
from fivefold.memory.live.frozen import QmpGuest
from fivefold.memory.live.gdb_stub import GdbClient
from fivefold.memory.live.qmp_client import QmpClient

ENDINGS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL)
WAYS = {
    "file": ("qmp:{folder}/qmp", "--live-ram", "file"),
    "process": ("qmp:{folder}/qmp", "--live-ram", "process"),
    "pmemsave": ("qmp:{folder}/qmp", "--live-ram", "pmemsave"),
    "gdb": ("gdb:{folder}/gdb",),
}


@pytest.fixture
def guest(tmp_path: Path) -> Iterator[Path]:
    """A QEMU that runs; its folder has sockets ``qmp``, ``watch`` and ``gdb``."""
    command = ["qemu-system-x86_64", "-accel", "tcg", "-m", "256M", "-display", "none", "-nodefaults"]
    command += ["-M", "q35,memory-backend=m", "-object", "memory-backend-memfd,id=m,size=256M,share=on"]
    command += ["-qmp", "unix:qmp,server=on,wait=off", "-qmp", "unix:watch,server=on,wait=off"]
    process = subprocess.Popen([*command, "-gdb", "unix:gdb,server=on,wait=off"], cwd=tmp_path)
    until = time.monotonic() + 30
    while not (tmp_path / "gdb").exists() and time.monotonic() < until:
        time.sleep(0.01)
    yield tmp_path
    process.kill()
    process.wait()


def running(folder: Path) -> bool:
    with closing(QmpClient(str(folder / "watch"), timeout=30)) as client:
        return bool(client.ask("query-status")["running"])


def comes_true(what: Callable[[], bool]) -> bool:
    until = time.monotonic() + 30
    while not (seen := what()) and time.monotonic() < until:
        time.sleep(0.02)
    return seen


@pytest.mark.qemu
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("ending", ENDINGS, ids=lambda ending: ending.name)
def test_the_guest_goes_on(guest: Path, way: str, ending: signal.Signals, tmp_path: Path) -> None:
    """At two moments: as soon as the guest stands still, and some time later."""
    spill = tmp_path / "spill"
    spill.mkdir()
    words = [word.format(folder=guest) for word in ("roots", *WAYS[way], "--freeze")]
    for pause in (0.0, random.Random(f"{way} {ending}").uniform(0, 0.4)):
        process = subprocess.Popen(
            [sys.executable, "-m", "fivefold", *words],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=os.environ | {"TMPDIR": str(spill)},
            text=True,
        )
        assert comes_true(lambda process=process: not running(guest) or process.poll() is not None)
        time.sleep(pause)
        process.send_signal(ending)
        _, said = process.communicate(timeout=60)
        assert comes_true(lambda: running(guest)), (ending, pause, said)
        assert not list(spill.iterdir())
        word = f"fivefold: process {process.pid} was cut short while the guest behind {words[1]} stood still for it; "
        if ending == signal.SIGKILL and process.returncode < 0:
            assert said == f"{word}the guest goes on\n"
        else:  # it may have ended, or nearly, before the signal came
            assert process.returncode in (1, 2, 128 + ending, -ending)  # 1: there are no roots, as in this guest
            none = f"fivefold: no page-table roots in {words[1]}\n"
            assert said in ("", none, f"{word}the guest goes on\n", f"{word}the guest goes on\n{none}")


class Peer:
    """A QMP server that counts its connections; *says* maps a command to what it answers, None to silence."""

    def __init__(self, path: Path, says: dict[str, Any]) -> None:
        self.says, self.asked = says, []
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(path))
        self.listener.listen(5)
        threading.Thread(target=self.run, daemon=True).start()

    def run(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self.talk, args=(connection,), daemon=True).start()

    def talk(self, connection: socket.socket) -> None:
        try:
            with connection, connection.makefile("rwb") as file:
                file.write(b'{"QMP": {}}\n')
                file.flush()
                for line in file:
                    question = json.loads(line)
                    self.asked.append(question["execute"])
                    answer = self.says.get(question["execute"], {"return": {}})
                    if answer == "hang up":
                        return
                    if answer is not None:
                        file.write(json.dumps({"id": question["id"], **answer}).encode() + b"\n")
                        file.flush()
        except OSError:
            pass


def frozen(path: Path, says: dict[str, Any]) -> tuple[Peer, QmpGuest]:
    peer = Peer(path, says)
    guest = QmpGuest(QmpClient(str(path), timeout=0.3), 0.3)
    guest.freeze()
    return peer, guest


REFUSED = {"error": {"class": "GenericError", "desc": "Resetting is required"}}


@pytest.mark.parametrize(
    ("answer", "why"),
    [(None, "gave no answer in 0.3 s"), (REFUSED, "QEMU refuses cont: Resetting is required")],
    ids=["silent", "refused"],
)
def test_a_guest_that_cannot_be_let_go_on_is_told(tmp_path: Path, answer: Any, why: str) -> None:
    peer, guest = frozen(tmp_path / "qmp", {"cont": answer})
    with pytest.raises(MachineError) as error:
        guest.leave()
    assert str(error.value).startswith(f"the guest of {tmp_path}/qmp may still be stopped: 'cont' failed: ")
    assert str(error.value).endswith(f"{why}; give 'cont' to its monitor")
    assert peer.asked.count("cont") == 2
    guest.leave()


def test_a_connection_that_breaks_is_made_anew(tmp_path: Path) -> None:
    """The first may be in the middle of an answer that was given up."""
    peer, guest = frozen(tmp_path / "qmp", {"cont": "hang up"})
    guest.leave()
    assert peer.asked.count("cont") == 2


def test_a_qemu_that_is_gone_needs_nothing(tmp_path: Path) -> None:
    peer, guest = frozen(tmp_path / "qmp", {"cont": "hang up"})
    peer.listener.close()
    (tmp_path / "qmp").unlink()
    guest.leave()


def test_a_stub_that_does_not_let_go_is_told(serve: Any) -> None:
    def script(connection: socket.socket) -> None:
        connection.sendall(b"+$PacketSize=100#c3")
        while connection.recv(1 << 16):
            pass

    with pytest.raises(MachineError, match=r"may still be stopped, detaching failed: .* gave no answer in 0\.3 s$"):
        GdbClient(serve(script), timeout=0.3).close()


@pytest.mark.parametrize("interrupted", ["cont", "before"])
def test_a_signal_in_the_middle_of_putting_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, interrupted: str
) -> None:
    """The guest goes on before we do."""
    peer, guest = frozen(tmp_path / "qmp", {})

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    if interrupted == "cont":
        monkeypatch.setattr(guest._client, "ask", interrupt)
    else:
        monkeypatch.setattr(guest, "_let_go_on", interrupt)
    with pytest.raises(KeyboardInterrupt):
        guest.leave()
    assert peer.asked.count("cont") == 1


@pytest.mark.parametrize("status", [[], "running", None, {}, {"running": "no"}, {"running": 1}], ids=str)
def test_a_status_that_makes_no_sense(tmp_path: Path, status: Any) -> None:
    Peer(tmp_path / "qmp", {"query-status": {"return": status}})
    client = QmpClient(str(tmp_path / "qmp"), timeout=5)
    with closing(client), pytest.raises(MachineError, match=r"qmp does not say whether its guest runs$"):
        QmpGuest(client, 5).is_running()


KILLED = """
import os, sys
from fivefold.memory.live.watchdog import Watchdog
Watchdog("qmp", sys.argv[1])
os.kill(os.getpid(), 9)
"""


@pytest.mark.parametrize(
    ("says", "told"),
    [
        ({}, "; the guest goes on"),
        ({"cont": {"error": {"desc": "\x1b[2J"}}}, r', and it cannot be let go on: {"desc": "\u001b[2J"}; give'),
        (None, ", and it cannot be let go on: No such file or directory; give 'cont' to its monitor"),
    ],
    ids=["goes on", "refused", "gone"],
)
def test_the_watchdogs_word(tmp_path: Path, says: dict[str, Any] | None, told: str) -> None:
    peer = Peer(tmp_path / "qmp", says) if says is not None else None
    done = subprocess.run([sys.executable, "-c", KILLED, tmp_path / "qmp"], capture_output=True, text=True, timeout=60)
    assert done.returncode == -9
    assert told in done.stderr
    assert done.stderr.count("\n") == 1
    if peer:
        assert peer.asked == ["qmp_capabilities", "cont"]

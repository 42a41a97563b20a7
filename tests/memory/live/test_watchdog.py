"""What the watchdog does, in this process, against monitors that behave and monitors that do not."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fivefold.memory.live import watchdog
from fivefold.memory.live.watchdog import Watchdog, continue_by_virsh, let_go, main

Script = Callable[[socket.socket], None]


def listening(listener: socket.socket, *scripts: Script) -> list[BaseException]:
    """Run one script after the other, each for one connection; what they find wrong is in the list."""
    wrong: list[BaseException] = []

    def run() -> None:
        try:
            for script in scripts:
                connection, _ = listener.accept()
                with connection:
                    connection.settimeout(20)
                    script(connection)
        except (AssertionError, OSError) as error:
            wrong.append(error)

    listener.listen(3)
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    wrong_of[id(wrong)] = thread
    return wrong


wrong_of: dict[int, threading.Thread] = {}


def well(wrong: list[BaseException]) -> bool:
    """Whether all scripts came to their end, and found nothing wrong."""
    thread = wrong_of[id(wrong)]
    thread.join(20)
    return not thread.is_alive() and not wrong


@pytest.fixture
def unix(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "a:7"))
        yield listener


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchdog, "PAUSE", 0.01)


def qmp(*before: bytes, refuses: str = "", says: bytes = b"", continues: bool = True) -> Script:
    """Greets after what comes *before*, and says something unasked before each answer."""

    def script(connection: socket.socket) -> None:
        file = connection.makefile("rwb")
        file.write(b"".join(before) + b'{"QMP": {}}\r\n')
        file.flush()
        for command in ("qmp_capabilities", "cont"):
            asked = json.loads(file.readline())
            assert asked["execute"] == command
            answer = {"error": {"class": "GenericError", "desc": refuses}} if command == refuses else {"return": {}}
            file.write(says + json.dumps({"id": asked["id"], **answer}).encode() + b"\r\n")
            file.flush()
            if command == refuses:
                break
        assert file.read(1) == b""  # and asks for nothing else

    return script


LEFT = (b'{"event": "STOP"}\r\n', b'{"return": {}, "id": 7}\r\n', b"[]\r\n", b"7\r\n")


@pytest.mark.parametrize("before", [(), LEFT], ids=["greeting", "what was left of another"])
@pytest.mark.parametrize("says", [b"", b'{"event": "RESUME"}\r\n[1]\r\n{"return": {}, "id": 3}\r\n'])
def test_qemus_monitor(unix: socket.socket, before: tuple[bytes, ...], says: bytes) -> None:
    wrong = listening(unix, qmp(*before, says=says))
    let_go("qmp", unix.getsockname())
    assert well(wrong)


@pytest.mark.parametrize("refuses", ["qmp_capabilities", "cont"])
def test_a_monitor_that_refuses(unix: socket.socket, refuses: str) -> None:
    wrong = listening(unix, qmp(refuses=refuses))
    with pytest.raises(ValueError, match=rf'^{{"class": "GenericError", "desc": "{refuses}"}}$'):
        let_go("qmp", unix.getsockname())
    assert well(wrong)


def test_what_a_monitor_tells_is_cut(unix: socket.socket) -> None:
    def script(connection: socket.socket) -> None:
        connection.sendall(b'{"QMP": {}}\n{"id": "qmp_capabilities", "error": "' + b"x" * 900 + b'"}\n')
        connection.recv(1 << 16)

    listening(unix, script)
    with pytest.raises(ValueError) as error:
        let_go("qmp", unix.getsockname())
    assert str(error.value) == '"' + "x" * 199


def stub(*answers: bytes) -> Script:
    """A gdb stub that takes the request to detach, answers in pieces and wants them acknowledged."""

    def script(connection: socket.socket) -> None:
        assert connection.recv(64) == b"$D#44"
        for answer in answers:
            connection.sendall(answer)
            time.sleep(0.02)
        assert connection.recv(64) == b"+"
        assert connection.recv(64) == b""

    return script


@pytest.mark.parametrize(
    "answers", [(b"+$OK#9a",), (b"+", b"$O", b"K#9a"), (b"x" * 9000, b"+$T05#b9" * 900 + b"$O", b"K#9a")], ids=len
)
def test_a_gdb_stub(unix: socket.socket, answers: tuple[bytes, ...]) -> None:
    wrong = listening(unix, stub(*answers))
    let_go("gdb", unix.getsockname())
    assert well(wrong)


@pytest.mark.parametrize(("protocol", "works"), [("qmp", qmp()), ("gdb", stub(b"+$OK#9a"))], ids=["qmp", "gdb"])
def test_a_monitor_that_still_believes_in_its_last_client(unix: socket.socket, protocol: str, works: Script) -> None:
    """It hangs up at first; the next connection does it."""
    wrong = listening(unix, lambda connection: None, lambda connection: None, works)
    let_go(protocol, unix.getsockname())
    assert well(wrong)


@pytest.mark.parametrize("protocol", ["qmp", "gdb"])
def test_patience_has_an_end(unix: socket.socket, protocol: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tries: list[None] = []
    monkeypatch.setattr(watchdog, "PATIENCE", 0.3)
    listening(unix, *[lambda connection: tries.append(None)] * 1000)
    begun = time.monotonic()
    with pytest.raises(ConnectionError):
        let_go(protocol, unix.getsockname())
    assert time.monotonic() - begun >= 0.3
    assert 1 <= len(tries) < 100  # with a pause after each


def test_a_monitor_that_is_silent_is_waited_for_only_as_long(
    unix: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At least for a second each time."""
    monkeypatch.setattr(watchdog, "PATIENCE", 0.1)
    listening(unix, lambda connection: time.sleep(5))
    begun = time.monotonic()
    with pytest.raises(TimeoutError):
        let_go("gdb", unix.getsockname())
    assert time.monotonic() - begun > 0.9


def test_a_monitor_that_is_gone_is_not_waited_for(tmp_path: Path) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(FileNotFoundError):
        let_go("qmp", str(tmp_path / "none"))
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "dead"))
    with pytest.raises(ConnectionRefusedError):
        let_go("gdb", str(tmp_path / "dead"))
    assert len(list(Path("/proc/self/fd").iterdir())) == before


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "", "[127.0.0.1]"])
def test_a_monitor_at_a_port(host: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        wrong = listening(listener, qmp())
        let_go("qmp", f"{host}:{listener.getsockname()[1]}")
        assert well(wrong)


def virsh(folder: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program virsh that notes its words and then does *text*."""
    program = folder / "virsh"
    program.write_text(f'#!/bin/sh\necho "$*|$LC_ALL|$KEPT" >> {folder}/said\n{text}\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    monkeypatch.setenv("KEPT", "kept")
    monkeypatch.setenv("LC_ALL", "xx")
    return folder / "said"


URI = "qemu+unix:///system?socket=/a#b/c"


@pytest.mark.parametrize(
    "text",
    ["", "echo 'error: Domain is already running' >&2; exit 1", "echo 'error: domain is not running' >&2; exit 1"],
    ids=["well", "runs", "is off"],
)
def test_libvirt(tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    said = virsh(tmp_path, text, monkeypatch)
    let_go("libvirt", f"{URI}#5e-1")
    assert said.read_text() == f"-q -c {URI} resume --domain=5e-1|C|kept\n"


def test_libvirt_that_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    virsh(tmp_path, "printf 'error: no\\n  \\377 rights%0300d\\n' 7 >&2; exit 3", monkeypatch)
    with pytest.raises(ValueError) as error:
        let_go("libvirt", f"{URI}#5e-1")
    assert str(error.value) == ("no \ufffd rights" + "0" * 300)[:200]


def test_libvirt_that_is_silent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    virsh(tmp_path, "exec sleep 20", monkeypatch)
    monkeypatch.setattr(watchdog, "PATIENCE", 2.0)
    with pytest.raises(TimeoutError, match=r"^virsh gives no answer$"):
        continue_by_virsh(f"{URI}#5e-1")


PYTHON = """
from pathlib import Path
class Domain:
    def note(self, text):
        with Path({log!r}).open("a") as file:
            file.write(text)
        return self
    lookupByUUIDString = note
    def resume(self):
        self.note(" resumed")
def open(uri):
    return Domain().note(uri + " ")
"""


def test_libvirt_without_virsh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "log"
    (tmp_path / "libvirt.py").write_text(PYTHON.format(log=str(log)))
    monkeypatch.setenv("PATH", str(tmp_path / "none"))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    let_go("libvirt", f"{URI}#5e-1")
    assert log.read_text() == f"{URI} 5e-1 resumed"


@pytest.fixture
def as_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., int]]:
    """Run `main` with a pipe for standard input, into which some bytes were written before it was closed."""
    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before, standard = [signal.getsignal(number) for number in signals], os.dup(0)

    def run(written: bytes, *words: str) -> int:
        reading, writing = os.pipe()
        os.write(writing, written)
        os.close(writing)
        os.dup2(reading, 0)
        os.close(reading)
        monkeypatch.setattr(sys, "argv", ["watchdog", *words])
        status = main()
        assert [signal.getsignal(number) for number in signals] == [signal.SIG_IGN] * 3
        return status

    yield run
    os.dup2(standard, 0)
    os.close(standard)
    for number, handler in zip(signals, before, strict=True):
        signal.signal(number, handler)


TOLD = "fivefold: process 77 was cut short while the guest behind {} stood still for it"


def test_all_is_well(as_process: Callable[..., int], capfd: pytest.CaptureFixture[str]) -> None:
    assert as_process(b"\n", "qmp", "/none", "77") == 0
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("written", [b"", b"x"])
def test_it_was_cut_short(
    as_process: Callable[..., int], unix: socket.socket, capfd: pytest.CaptureFixture[str], written: bytes
) -> None:
    wrong = listening(unix, qmp())
    assert as_process(written, "qmp", unix.getsockname(), "77") == 0
    assert capfd.readouterr() == ("", TOLD.format(f"qmp:{unix.getsockname()}") + "; the guest goes on\n")
    assert well(wrong)


@pytest.mark.parametrize(
    ("protocol", "address", "why"),
    [
        ("gdb", "/none", "No such file or directory; give 'cont' to its monitor"),
        ("libvirt", "qemu:///system#a", "sorry; virsh resume it"),
    ],
)
def test_it_cannot_be_let_go_on(
    as_process: Callable[..., int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    protocol: str,
    address: str,
    why: str,
) -> None:
    virsh(tmp_path, "echo error: sorry >&2; exit 1", monkeypatch)
    assert as_process(b"", protocol, address, "77") == 1
    told = TOLD.format(f"{protocol}:{address}")
    assert capfd.readouterr() == ("", f"{told}, and it cannot be let go on: {why}\n")


def test_silence_has_no_strerror(
    as_process: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    virsh(tmp_path, "exec sleep 20", monkeypatch)
    monkeypatch.setattr(watchdog, "PATIENCE", 1.0)
    assert as_process(b"", "libvirt", "a\x1b#b", "77") == 1
    told = TOLD.format(r"libvirt:a\x1b#b")
    assert capfd.readouterr().err == f"{told}, and it cannot be let go on: virsh gives no answer; virsh resume it\n"


def test_the_process_is_one_of_its_own(tmp_path: Path) -> None:
    """No signal of the terminal reaches it, nothing of the environment is loaded, and it prints only its word."""
    watched = Watchdog("qmp", str(tmp_path / "none"))
    process = watched._process
    assert process is not None and process.poll() is None
    assert os.getsid(process.pid) == process.pid
    folder = Path(f"/proc/{process.pid}")
    assert str((folder / "fd/1").readlink()) == "/dev/null"
    words = (folder / "cmdline").read_text().split("\0")
    script = str(Path(watchdog.__file__).resolve())
    assert words[1:-1] == ["-I", "-S", script, "qmp", str(tmp_path / "none"), str(os.getpid())]
    watched.stand_down()
    assert process.returncode == 0
    watched.stand_down()
    with watched.until_put_back():
        pass


@pytest.mark.parametrize(
    ("ends_by", "told"), [(RuntimeError, False), (KeyboardInterrupt, True), (SystemExit, True), (None, False)]
)
def test_how_putting_back_ends(
    ends_by: type[BaseException] | None, told: bool, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """An error was told by whom it met; what comes from outside leaves the guest to the watchdog."""
    watched = Watchdog("qmp", str(tmp_path / "none"))
    process = watched._process
    assert process is not None
    if ends_by is None:
        with watched.until_put_back():
            pass
    else:
        with pytest.raises(ends_by), watched.until_put_back():
            raise ends_by
    assert process.returncode == int(told)
    assert ("was cut short" in capfd.readouterr().err) is told


def test_a_watchdog_that_died_before(tmp_path: Path) -> None:
    watched = Watchdog("qmp", str(tmp_path / "none"))
    assert watched._process is not None
    watched._process.kill()
    watched._process.wait()
    watched.stand_down()


def test_no_process_can_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> None:
        raise OSError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(subprocess, "Popen", refused)
    watched = Watchdog("qmp", "/none")
    with watched.until_put_back():
        pass
    with pytest.raises(KeyboardInterrupt), watched.until_put_back():
        raise KeyboardInterrupt

"""A domain of a virsh, and of a Python module, that are scripts: every word that they get, and what they may say."""

# ruff: noqa: N802, N815 (libvirt's own names)

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fivefold.errors import MachineError
from fivefold.memory.live import libvirt, live_qemu, virsh
from fivefold.memory.live.connection import NoAnswerError
from fivefold.memory.live.libvirt import LibvirtGuest, LibvirtMonitor, process_of
from fivefold.memory.live.monitor import QmpError
from fivefold.memory.live.virsh import PythonDomain, Virsh, find_domain, is_running, refusal

UUID = "6a5e7a12-0000-4000-8000-00000000beef"
URI = "qemu:///system"

Write = Callable[..., Callable[[], list[str]]]


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Write a program virsh that notes its words, and then says what *cases* have for its command."""

    def write(*, uri: str = URI, state: str = "running", monitor: str = "exit 9", **cases: str) -> Any:
        says = {"uri": f"echo {uri}", "domuuid": f"echo {UUID}", "domstate": f"echo {state}"}
        says |= {"qemu-monitor-command": monitor, "suspend": "", "resume": "", **cases}
        script = "\n".join(f"*' {word}'|*' {word} '*) {text};;" for word, text in says.items())
        file = tmp_path / "virsh"
        file.write_text(f'#!/bin/sh\necho "$*|$LC_ALL|$KEPT" >> {tmp_path}/said\ncase " $*" in\n{script}\nesac\n')
        file.chmod(0o755)
        (tmp_path / "said").write_text("")
        return lambda: (tmp_path / "said").read_text().splitlines()

    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setenv("LC_ALL", "xx")
    monkeypatch.setenv("KEPT", "kept")
    return write


def test_every_word_of_virsh(program: Write) -> None:
    """All but the first question are about the URI and the UUID that it answers, so that they mean one domain."""
    said = program(monitor="echo yes")
    domain = find_domain(None, "a b", 5.0)
    assert (domain.uri, domain.uuid, domain.state()) == (URI, UUID, "running")
    assert domain.monitor('{"execute": "x"}', 1.0) == "yes\n"
    domain.suspend()
    domain.resume()
    rest = [f"-q -c {URI} {word} --domain={UUID}" for word in ("domstate", "domstate", "qemu-monitor-command")]
    rest[2] += ' --cmd={"execute": "x"}'
    rest += [f"-q -c {URI} {word} --domain={UUID}" for word in ("suspend", "resume")]
    assert said() == [f"{line}|C|kept" for line in ("-q uri", f"-q -c {URI} domuuid --domain=a b", *rest)]


def test_a_uuid_is_asked_for_as_virsh_takes_it(program: Write) -> None:
    """virsh's ``domuuid`` takes no UUID."""
    said = program(domname="echo a", domuuid="exit 1")
    assert find_domain(None, UUID.upper(), 5.0).uuid == UUID
    assert said()[1] == f"-q -c {URI} domname --domain={UUID}|C|kept"
    program(domname="exit 1")
    assert find_domain(None, f"{UUID[:-4]}0000", 5.0).uuid == UUID, "a name that looks like one"


def test_a_uri_that_is_given_is_asked_first(program: Write) -> None:
    said = program()
    assert find_domain("test:///", "a", 5.0).uri == URI
    assert said()[0] == "-q -c test:/// uri|C|kept"


def test_a_file_is_passed(program: Write, tmp_path: Path) -> None:
    file = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    said = program(monitor=f"echo lent > /proc/$$/fd/{file}")
    domain = Virsh(None, "a", 5.0)
    domain.monitor("{}", 5.0, file)
    assert f" --pass-fds={file} --cmd={{}}|" in said()[-1]
    assert (tmp_path / "file").read_text() == "lent\n"
    with pytest.raises(MachineError):  # and only where it is lent
        domain.monitor("{}", 5.0)
    os.close(file)


def test_virsh_is_not_in_the_group_of_the_terminal(program: Write) -> None:
    program(monitor="ps -o sid= -p $$; echo $$; read line; echo $line")
    session, own, *rest = Virsh(None, "a", 5.0).monitor("{}", 5.0).split()
    assert session == own and rest == []


@pytest.mark.parametrize(("seconds", "told"), [(0.2, 0.2), (0.0, 0.3)])
def test_virsh_that_hangs(program: Write, seconds: float, told: float) -> None:
    program(monitor="exec sleep 20")
    domain = Virsh(None, "a", 5.0)
    domain.timeout = 0.3
    with pytest.raises(NoAnswerError, match=rf"^virsh qemu-monitor-command of 'a' took more than {told:g} s$"):
        domain.monitor("{}", seconds)


def test_virsh_that_cannot_be_started(program: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    program()
    domain = Virsh(None, "a", 5.0)
    monkeypatch.setenv("PATH", "/none")
    with pytest.raises(MachineError, match=r"^cannot start virsh: No such file or directory$"):
        domain.state()


@pytest.mark.parametrize("state", ["shut off", "crashed", "no state"])
def test_a_domain_that_is_off(program: Write, state: str) -> None:
    program(state=state)
    with pytest.raises(MachineError) as error:
        find_domain(None, "a", 5.0)
    assert str(error.value) == f"the domain 'a' of {URI} is {state}; start it: virsh start a"


@pytest.mark.parametrize("state", ["shut off", "crashed", "no state"])
def test_a_domain_that_ends_while_it_is_watched_is_not_taken_for_a_paused_one(state: str) -> None:
    """Its shared memory is there as long as we have it."""
    guest = LibvirtGuest(ScriptedDomain(states=("running", state)))
    assert guest.is_running()
    with pytest.raises(MachineError, match=f"^the domain {UUID} of {URI} is {state}$"), guest.stopped_briefly():
        pass


@pytest.mark.parametrize(
    ("state", "runs"),
    [("running", True), ("idle", True), ("in shutdown", True), ("paused", False), ("pmsuspended", False), ("", False)],
)
def test_which_domains_run(program: Write, state: str, runs: bool) -> None:
    program(state=state)
    assert is_running(find_domain(None, "a", 5.0).state()) is runs


WHERE = "libvirt, domain 'a'"


@pytest.mark.parametrize(
    ("uri", "told", "message"),
    [
        (None, "error: failed to get domain 'a'\n", f"{WHERE}: there is no such domain; virsh list --all shows those"),
        (URI, "Domain not found: x", f"{WHERE} of {URI}: there is no such domain; virsh list --all shows those"),
        (None, "", f"{WHERE}: no reason given"),
        ("", " \n\n error: \n", f"{WHERE}: no reason given"),
        (URI, "error: b\n\nerror:  c\nerror: b\n", f"{WHERE} of {URI}: b; c"),
        (None, "error: error: x", f"{WHERE}: error: x"),
        (None, "x" * 400, f"{WHERE}: {'x' * 300}"),
        (None, "a: Permission denied", f"{WHERE}: a: Permission denied; {virsh.RIGHTS}"),
        (None, "authentication unavailable: no", f"{WHERE}: authentication unavailable: no; {virsh.RIGHTS}"),
        (None, "authentication failed", f"{WHERE}: authentication failed; {virsh.RIGHTS}"),
        (None, "it has read only access", f"{WHERE}: it has read only access; {virsh.RIGHTS}"),
        (None, "access denied", f"{WHERE}: access denied; {virsh.RIGHTS}"),
        (None, "a\x1b[2Jb", f"{WHERE}: a\\x1b[2Jb"),
    ],
)
def test_what_libvirt_refuses(uri: str | None, told: str, message: str) -> None:
    said = str(refusal("a", uri, told))
    assert said == message if "shows those" not in message else said == f"{message} that there are"


def test_what_virsh_refuses_may_be_of_any_bytes(program: Write) -> None:
    program(suspend="printf 'error: a\\377\\n' >&2; exit 1")
    with pytest.raises(MachineError) as error:
        Virsh(None, "a", 5.0).suspend()
    assert str(error.value) == f"{WHERE} of {URI}: a\ufffd"


class LibraryError(Exception):
    """As ``libvirtError``."""


class ScriptedLibrary:
    """libvirt's two Python modules in one, and the connection and the domain as well."""

    libvirtError = LibraryError
    VIR_DOMAIN_RUNNING, VIR_DOMAIN_BLOCKED, VIR_DOMAIN_PAUSED, VIR_DOMAIN_SHUTDOWN = 1, 2, 3, 4
    VIR_DOMAIN_SHUTOFF, VIR_DOMAIN_CRASHED, VIR_DOMAIN_PMSUSPENDED = 5, 6, 7

    def __init__(self) -> None:
        self.asked: list[object] = []
        self.number = 1
        self.refuses = ""
        self.handler: Any = None

    def registerErrorHandler(self, handler: Any, context: object) -> None:
        self.handler = handler

    def note(self, *words: object) -> Any:
        self.asked.append(words)
        if words[0] == self.refuses:
            raise LibraryError("access denied")
        return self

    def open(self, uri: str | None) -> Any:
        return self.note("open", uri)

    def getURI(self) -> str:
        return URI

    def UUIDString(self) -> str:
        return UUID

    def lookupByID(self, number: int) -> Any:
        assert isinstance(number, int)
        if number >= 1 << 31:
            raise OverflowError
        if number != 7:
            raise LibraryError("no such number")
        return self.note("number", number)

    def lookupByUUIDString(self, text: str) -> Any:
        if text != UUID:
            raise LibraryError("no such UUID")
        return self.note("uuid", text)

    def lookupByName(self, name: str) -> Any:
        if name == "none":
            raise LibraryError("Domain not found")
        return self.note("name", name)

    def state(self) -> tuple[int, int]:
        return self.number, 0

    def suspend(self) -> None:
        self.note("suspend")

    def resume(self) -> None:
        self.note("resume")

    def qemuMonitorCommand(self, domain: object, request: str, flags: int) -> str:
        assert domain is self and flags == 0
        self.note("ask", request)
        return "answer"


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ScriptedLibrary:
    """Where there is no virsh."""
    monkeypatch.setenv("PATH", str(tmp_path))
    scripted = ScriptedLibrary()
    monkeypatch.setitem(sys.modules, "libvirt", scripted)
    monkeypatch.setitem(sys.modules, "libvirt_qemu", scripted)
    return scripted


@pytest.mark.parametrize(
    ("domain", "way"),
    [
        ("7", ("number", 7)),
        ("8", ("name", "8")),
        ("\u0667", ("name", "\u0667")),
        (str(1 << 40), ("name", str(1 << 40))),
        (UUID, ("uuid", UUID)),
        ("a", ("name", "a")),
    ],
)
def test_libvirts_module(library: ScriptedLibrary, domain: str, way: tuple[object, object]) -> None:
    found = find_domain(None, domain, 5.0)
    assert isinstance(found, PythonDomain)
    assert (found.uri, found.uuid, found.state()) == (URI, UUID, "running")
    assert found.monitor("{}", 5.0) == "answer"
    found.suspend()
    found.resume()
    assert library.asked == [("open", None), way, ("ask", "{}"), ("suspend",), ("resume",)]
    assert library.handler(None, ("told",)) is None


def test_the_states_of_libvirts_module(library: ScriptedLibrary) -> None:
    domain = find_domain("x:///", "a", 5.0)
    assert library.asked[0] == ("open", "x:///")
    states = []
    for library.number in range(9):
        states.append(domain.state())
    on = ["running", "idle", "paused", "in shutdown", "shut off", "crashed", "pmsuspended"]
    assert states == ["no state", *on, "no state"]


def test_files_by_libvirts_module(library: ScriptedLibrary) -> None:
    domain = find_domain(None, "a", 5.0)
    with pytest.raises(MachineError, match=r"^this libvirt-python passes no files$"):
        domain.monitor("{}", 5.0, 9)
    for answer in ("text", ("text", [])):
        asked: list[object] = []
        library.qemuMonitorCommandWithFiles = lambda *words, a=answer, s=asked: s.append(words) or a  # type: ignore
        assert domain.monitor("{}", 5.0, 9) == "text"
        assert asked == [(library, "{}", [9], 0)]


@pytest.mark.parametrize("step", ["open", "name", "suspend"])
def test_what_libvirts_module_refuses(library: ScriptedLibrary, step: str) -> None:
    library.refuses = step
    where = WHERE if step == "open" else f"{WHERE} of {URI}"
    with pytest.raises(MachineError) as error:
        find_domain(None, "a", 5.0).suspend()
    assert str(error.value) == f"{where}: access denied; {virsh.RIGHTS}"
    with pytest.raises(MachineError, match=r"there is no such domain"):
        library.refuses = ""
        find_domain(None, "none", 5.0)


class ScriptedDomain:
    """Answers requests as *answers* has them, and says the *states* one after the other."""

    uri, uuid = URI, UUID

    def __init__(self, *answers: Any, states: tuple[Any, ...] = (), refuses: bool = False) -> None:
        self.answers, self.states, self.refuses = list(answers), list(states), refuses
        self.asked: list[Any] = []

    def monitor(self, request: str, seconds: float, file: int | None = None) -> str:
        self.asked.append((json.loads(request), seconds, file))
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer if isinstance(answer, str) else json.dumps(answer)

    def state(self) -> str:
        state = self.states.pop(0)
        if isinstance(state, Exception):
            raise state
        return str(state)

    def suspend(self) -> None:
        self.asked.append("suspend")

    def resume(self) -> None:
        self.asked.append("resume")
        if self.refuses:
            raise MachineError("no")


def test_questions_and_answers() -> None:
    domain = ScriptedDomain({"return": "text\r\n"}, {"return": {"running": True}})
    monitor = LibvirtMonitor(domain, 3.0)
    assert monitor.monitor("info x", cpu_index=1) == "text\r\n"
    with monitor.patience(2.5):
        assert monitor.ask("query-status") == {"running": True}
    assert monitor._timeout == 3.0
    line = {"execute": "human-monitor-command", "arguments": {"command-line": "info x", "cpu-index": 1}}
    assert domain.asked == [(line, 3.0, None), ({"execute": "query-status"}, 5.5, None)]
    assert monitor.address == f"{URI}#{UUID}"
    with pytest.raises(RuntimeError), monitor.patience(2.5):
        raise RuntimeError
    assert monitor._timeout == 3.0


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ("x" * 50, f"answers x with '{'x' * 40}', expected JSON"),
        ("[" * 100_000, f"answers x with '{'[' * 40}', expected JSON"),
        ([], "answers x with neither a result nor an error"),
        ({}, "answers x with neither a result nor an error"),
        ({"error": "no"}, "answers x with neither a result nor an error"),
        ({"error": {}}, "QEMU refuses x: no reason given"),
        ({"error": {"class": "C", "desc": "d"}}, "QEMU refuses x: d"),
    ],
)
def test_answers_that_are_none(answer: Any, message: str) -> None:
    with pytest.raises(MachineError) as error:
        LibvirtMonitor(ScriptedDomain(answer), 1.0).ask("x")
    assert str(error.value).endswith(message)
    if isinstance(error.value, QmpError):
        assert (error.value.kind, error.value.command) == ("C" if message.endswith("d") else "", "x")
    else:
        assert str(error.value).startswith(f"{URI}#{UUID} ")
    with pytest.raises(MachineError, match=r" answers 'y' with int, expected text$"):
        LibvirtMonitor(ScriptedDomain({"return": 5}), 1.0).monitor("y")


def test_a_file_is_lent() -> None:
    domain = ScriptedDomain({"return": {"fd": 21, "fdset-id": 4}}, MachineError("gone"))
    with LibvirtMonitor(domain, 1.0).lend(9) as path:
        assert path == "/proc/self/fd/21"
        assert domain.asked == [({"execute": "add-fd"}, 1.0, 9)]
    assert domain.asked[1] == ({"execute": "remove-fd", "arguments": {"fdset-id": 4}}, 1.0, None)


@pytest.mark.parametrize(
    "answer",
    [
        MachineError("old"),
        {"error": {}},
        {"return": []},
        {"return": {"fd": "1", "fdset-id": 2}},
        {"return": {"fd": 1}},
        {"return": {"fd": 1, "fdset-id": None}},
    ],
    ids=str,
)
def test_a_file_that_is_not_taken_is_named(answer: Any) -> None:
    domain = ScriptedDomain(answer)
    with LibvirtMonitor(domain, 1.0).lend(9) as path:
        assert path == f"/proc/{os.getpid()}/fd/9"
    assert len(domain.asked) == 1


@pytest.mark.parametrize(
    ("state", "told"),
    [
        ("running", False),
        ("shut off", False),
        ("paused", True),
        (MachineError("there is no such domain; x"), False),
        (MachineError("it hangs"), True),
    ],
    ids=str,
)
def test_a_domain_that_is_not_let_go_on(state: Any, told: bool) -> None:
    """It may run already, or be gone; else it is told."""
    domain = ScriptedDomain(states=("running", state), refuses=True)
    guest = LibvirtGuest(domain)
    assert guest.is_running()
    guest.freeze()
    message = rf"^the domain {UUID} of {URI} may still be stopped: no; virsh resume it$"
    if told:
        with pytest.raises(MachineError, match=message):
            guest.leave()
    else:
        guest.leave()
    assert domain.asked == ["suspend", "resume"]


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    """A process that has QEMU's words for the UUID on its command line."""
    command = [sys.executable, "-I", "-S", "-c", "import time; print(flush=True); time.sleep(60)", "-uuid", UUID]
    with started(command) as process:
        yield process
        process.kill()


def started(command: Any) -> subprocess.Popen[bytes]:
    """*command* when it has printed a line: before it runs its command line is not there yet."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert process.stdout and process.stdout.readline()
    return process


def test_qemus_process_is_found_by_the_uuid(sleeper: subprocess.Popen[bytes]) -> None:
    assert process_of(ScriptedDomain()) == (sleeper.pid, "")
    remote = SimpleNamespace(uri="qemu+ssh://far/system", uuid=UUID)
    assert process_of(remote) == (None, "the process is on another machine: qemu+ssh://far/system")  # type: ignore
    none = SimpleNamespace(uri=URI, uuid="5eed")
    said = "no process that is seen here has -uuid 5eed on the command line"
    assert process_of(none) == (None, said)  # type: ignore[arg-type]
    with started(sleeper.args) as second:
        assert process_of(ScriptedDomain()) == (None, f"2 processes have -uuid {UUID} on the command line")
        second.kill()


@pytest.mark.parametrize(
    ("named", "uri", "domain"),
    [
        ("a", None, "a"),
        ("#a", None, "#a"),
        ("a#b#c", None, "a#b#c"),
        ("qemu:///s#a", "qemu:///s", "a"),
        ("qemu:///s?k=#1#a", "qemu:///s?k=#1", "a"),
    ],
)
def test_names(named: str, uri: str | None, domain: str) -> None:
    assert libvirt.parse_name(named) == (uri, domain)


def test_a_way_that_there_is_not(program: Write) -> None:
    """Refused before anybody is asked."""
    said = program()
    for attach in (libvirt.attach_libvirt, live_qemu.attach_qmp):
        with pytest.raises(
            ValueError, match=r"^unknown way to read RAM 'magic'; expected one of auto, file, process, p"
        ):
            attach("a", ram="magic")
    assert said() == []

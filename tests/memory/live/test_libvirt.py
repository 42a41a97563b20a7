"""Guests of a real libvirtd that the test starts: as root, and as an unprivileged user with a session of its own."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import pytest

import fivefold
from fivefold.boot import DEFAULT_LOAD_ADDRESS, build_image
from fivefold.errors import MachineError
from fivefold.memory import open_source
from fivefold.memory.live import libvirt, virsh

HERE = Path(__file__).parent
PLACE = DEFAULT_LOAD_ADDRESS
TEXT = 0xFFFFFFFF81000000
DOMAIN = """
<domain type='qemu'><name>{name}</name><memory unit='MiB'>24</memory><vcpu>1</vcpu>{backing}
<os><type arch='x86_64' machine='q35'>hvm</type><kernel>{folder}/image</kernel></os>
<cpu mode='custom' match='exact'><model>qemu64</model><feature policy='{la57}' name='la57'/></cpu>
<devices><emulator>{qemu}</emulator><controller type='usb' model='none'/><memballoon model='none'/>
<serial type='file'><source path='{folder}/home/{name}'/></serial></devices></domain>
"""
SHARED = "<memoryBacking><source type='memfd'/><access mode='shared'/></memoryBacking>"


@dataclass(frozen=True)
class Daemon:
    """A libvirtd: where it is, and how a command is run as its user."""

    folder: Path
    uri: str
    prefix: tuple[str, ...] = ()

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        env = {**os.environ, "LIBVIRT_DEFAULT_URI": self.uri}
        return subprocess.run([*self.prefix, *words], env=env, capture_output=True, text=True, timeout=120)

    def virsh(self, *words: str) -> str:
        done = self.run("virsh", "-q", *words)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def fivefold(self, *words: str) -> subprocess.CompletedProcess[str]:
        python = str(self.folder / "python" / "bin" / "python3") if self.prefix else sys.executable
        return self.run(python, "-m", "fivefold", *words)

    def start(self, name: str, levels: int, backing: str = "") -> str:
        """Start a guest that has come up when this returns."""
        words = {"name": name, "backing": backing, "folder": self.folder, "qemu": shutil.which("qemu-system-x86_64")}
        file = self.folder / "home" / f"{name}.xml"
        file.write_text(DOMAIN.format(**words, la57="require" if levels == 5 else "disable"))
        self.virsh("create", str(file))
        serial = self.folder / "home" / name
        until(lambda: serial.exists() and b"\n# passed" in serial.read_bytes(), f"{name} to come up")
        return name


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, f"waited too long for {what}"
        time.sleep(0.05)


@contextmanager
def folder_of_all() -> Iterator[Path]:
    """A folder that every user may enter, with a path that is short enough for sockets."""
    folder = Path(tempfile.mkdtemp(prefix="ff-lv-", dir="/tmp"))
    try:
        folder.chmod(0o755)
        for name in ("home", "run", "python", "packages", "sources"):
            (folder / name).mkdir()
        (folder / "image").write_bytes(build_image().place(PLACE, "pvh_entry"))
        yield folder
    finally:
        shutil.rmtree(folder)


@contextmanager
def started(daemon: Daemon, *command: str) -> Iterator[Daemon]:
    process = subprocess.Popen(
        [sys.executable, str(HERE / "reaper.py"), *command], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    try:
        until(lambda: process.poll() is not None or daemon.run("virsh", "-q", "list").returncode == 0, "libvirtd")
        assert process.poll() is None, "libvirtd ended"
        yield daemon
    finally:
        for name in daemon.run("virsh", "-q", "list", "--name").stdout.split():
            daemon.run("virsh", "-q", "destroy", name)
        process.terminate()
        process.wait(60)


@pytest.fixture(scope="module")
def system() -> Iterator[Daemon]:
    """libvirtd as root."""
    if os.geteuid() != 0:
        pytest.skip("needs root for a system's libvirtd")
    with folder_of_all() as folder:
        (folder / "home").chmod(0o777)  # its QEMUs are another user
        (folder / "sockets").mkdir(mode=0o700)
        (folder / "no-kvm").touch(mode=0o600)
        (folder / "libvirtd.conf").write_text(
            f'unix_sock_dir = "{folder}/sockets"\nauth_unix_rw = "none"\nauth_unix_ro = "none"\n'
        )
        (folder / "qemu.conf").write_text(
            'cgroup_controllers = []\nsecurity_driver = "none"\nnamespaces = []\nstdio_handler = "file"\n'
        )
        daemon = Daemon(folder, f"qemu+unix:///system?socket={folder}/sockets/libvirt-sock")
        with started(daemon, "unshare", "-m", "sh", str(HERE / "libvirt_daemon.sh"), str(folder)):
            yield daemon


@pytest.fixture(scope="module")
def session() -> Iterator[Daemon]:
    """libvirtd as an unprivileged user: us, or the user nobody where we are root."""
    with folder_of_all() as folder:
        places = (sys.base_prefix, Path(numpy.__file__).parents[1], Path(fivefold.__file__).parents[1])
        prefix = ("unshare", "-m", "sh", str(HERE / "as_nobody.sh"), str(folder), *map(str, places))
        if os.geteuid() == 0:
            for name in ("home", "run"):
                os.chown(folder / name, 65534, 65534)
        else:
            prefix = ("env", "LIBVIRT_AUTOSTART=0", f"HOME={folder}/home", f"XDG_RUNTIME_DIR={folder}/run")
            (folder / "python").rmdir()
            (folder / "python").symlink_to(sys.prefix)
        daemon = Daemon(folder, "qemu:///session", prefix)
        with started(daemon, *prefix, "/usr/sbin/libvirtd"):
            yield daemon


def digest(name: str, **options: Any) -> str:
    with open_source(name, **options) as source:
        total = hashlib.sha256(repr(source.extents).encode())
        for bank in source.memory.banks():
            total.update(bank.data)
    return total.hexdigest()


def printed(done: subprocess.CompletedProcess[str]) -> Any:
    assert done.returncode in (0, 1), done.stderr
    return json.loads(done.stdout)


@pytest.mark.libvirt
@pytest.mark.qemu
@pytest.mark.parametrize(("levels", "backing", "way"), [(5, "", "process"), (4, SHARED, "file")], ids=["la57", "la48"])
def test_a_domain_is_what_libvirts_own_dump_of_it_says(
    system: Daemon, monkeypatch: pytest.MonkeyPatch, levels: int, backing: str, way: str
) -> None:
    name = system.start(f"ff-{levels}", levels, backing)
    monkeypatch.setenv("LIBVIRT_DEFAULT_URI", system.uri)
    with open_source(f"libvirt:{name}", freeze=True) as source:
        assert (source.format, source.torn) == (f"live QEMU, RAM by {way}", False)
        assert system.virsh("domstate", name) == "paused"
    assert system.virsh("domstate", name) == "running"
    # The guest is in a loop that writes nothing.
    assert digest(f"libvirt:{name}") == digest(f"libvirt:{system.uri}#{name}", live_ram="pmemsave")
    system.virsh("dump", "--memory-only", name, f"{system.folder}/dump")
    live, dumped = (system.fivefold("dump", one, "--json") for one in (f"libvirt:{name}", f"{system.folder}/dump"))
    assert [region["start"] for region in printed(live)["regions"]]
    assert printed(live)["regions"] == printed(dumped)["regions"]
    watched = system.fivefold("watch", f"libvirt:{name}", "--count", "2", "--interval", "0.1", "--json").stdout
    summary = json.loads(watched.splitlines()[-1])["summary"]
    assert (summary["looks"], summary["changes"], summary["stopped"]) == (2, 0, 0) and summary["stood_still"] > 0
    # QEMU's own walk.
    [walk] = printed(system.fivefold("walk", f"libvirt:{name}", f"{TEXT:#x}", "--json"))["walks"]
    assert len(walk["steps"]) == levels
    answer = system.virsh("qemu-monitor-command", name, "--hmp", f"gva2gpa {TEXT:#x}")
    assert int(answer.split()[-1], 16) == int(walk["phys"], 16)


@pytest.mark.libvirt
@pytest.mark.qemu
def test_a_domain_is_put_back_as_it_was(system: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    """Paused stays paused; one that was stopped goes on when we are killed, too."""
    name = system.start("ff-still", 5)
    monkeypatch.setenv("LIBVIRT_DEFAULT_URI", system.uri)
    text = f"from fivefold.memory import open_source; s = open_source('libvirt:{name}', freeze=True); print(1, flush=1)"
    command = [sys.executable, "-c", f"{text}; input()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as killed:
        assert killed.stdout and killed.stdout.readline() == b"1\n"
        assert system.virsh("domstate", name) == "paused"
        killed.send_signal(signal.SIGKILL)
    until(lambda: system.virsh("domstate", name) == "running", "the watchdog")
    system.virsh("suspend", name)
    with open_source(f"libvirt:{name}", freeze=True) as source:
        assert source.live and not source.torn
    assert system.virsh("domstate", name) == "paused"


@pytest.mark.libvirt
@pytest.mark.qemu
def test_what_cannot_be_opened_is_said_in_a_line(
    system: Daemon, session: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIBVIRT_DEFAULT_URI", system.uri)
    with pytest.raises(MachineError, match=r"domain 'nosuch' of .*: there is no such domain; virsh list --all shows"):
        open_source("libvirt:nosuch")
    file = system.folder / "home" / "off.xml"
    words = {"name": "ff-off", "backing": "", "folder": system.folder, "qemu": shutil.which("qemu-system-x86_64")}
    file.write_text(DOMAIN.format(**words, la57="disable"))
    system.virsh("define", str(file))
    with pytest.raises(MachineError, match=r"the domain 'ff-off' of .* is shut off; start it: virsh start ff-off"):
        open_source("libvirt:ff-off")
    with pytest.raises(MachineError, match=r"the domain '[0-9a-f-]{36}' of .* is shut off"):
        open_source(f"libvirt:{system.virsh('domuuid', 'ff-off')}")
    with pytest.raises(MachineError, match="domain 'test' of test:///default: this function is not supported"):
        open_source("libvirt:test:///default#test")
    if session.prefix[0] == "unshare":
        denied = session.fivefold("info", f"libvirt:{system.uri}#ff-off")
        assert denied.returncode == 2 and denied.stderr.count("\n") == 1
        assert "Permission denied" in denied.stderr and denied.stderr.strip().endswith(virsh.RIGHTS)


@pytest.mark.libvirt
@pytest.mark.qemu
@pytest.mark.parametrize(("levels", "at", "way"), [(5, "", "process"), (4, "qemu:///session#", "pmemsave")])
def test_an_unprivileged_user_reads_a_domain_of_a_session(session: Daemon, levels: int, at: str, way: str) -> None:
    name = session.start(f"ff-own-{levels}", levels)
    words = ("--live-ram", way) if way == "pmemsave" else ()
    info = printed(session.fivefold("info", f"libvirt:{at}{name}", *words, "--json"))
    assert (info["levels"], info["format"]) == (levels, f"live QEMU, RAM by {way}")


@pytest.fixture
def without_virsh(tmp_path: Path) -> dict[str, str]:
    """An environment with libvirt's Python module, as Debian has it, and without virsh."""
    files = list(Path("/usr/lib/python3/dist-packages").glob("libvirt*"))
    if not any(f"cpython-{sys.version_info[0]}{sys.version_info[1]}-" in file.name for file in files):
        pytest.skip("python3-libvirt is not installed, or not for this Python")
    for file in files:
        (tmp_path / file.name).symlink_to(file)
    return {"PYTHONPATH": str(tmp_path), "PATH": "/nowhere"}


@pytest.mark.libvirt
@pytest.mark.qemu
def test_libvirts_python_module_does_where_there_is_no_virsh(system: Daemon, without_virsh: dict[str, str]) -> None:
    name = system.start("ff-python", 5)
    text = (
        "import sys; from fivefold.errors import MachineError; from fivefold.memory import open_source\n"
        "for name in sys.argv[1:3]:\n"
        "  print(open_source('libvirt:' + name, live_ram='pmemsave').format)\n"
        "try: open_source('libvirt:nosuch')\n"
        "except MachineError as error: print('no such domain' in str(error))\n"
        "held = open_source('libvirt:' + sys.argv[1], freeze=True); print(held.torn, flush=True); input()\n"
    )
    env = {**os.environ, "LIBVIRT_DEFAULT_URI": system.uri, **without_virsh}
    command = [sys.executable, "-c", text, name, system.virsh("domuuid", name)]
    with subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as killed:
        assert killed.stdout is not None
        said = [killed.stdout.readline().strip() for _ in range(4)]
        assert said == ["live QEMU, RAM by pmemsave"] * 2 + ["True", "False"]
        assert system.virsh("domstate", name) == "paused"
        killed.kill()
    until(lambda: system.virsh("domstate", name) == "running", "the watchdog")


@pytest.mark.parametrize("named", ["", "qemu:///session", "qemu:///session#", "#a://", "a#qemu://b"])
def test_a_name_without_a_domain_is_refused(named: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        open_source(f"libvirt:{named}")


def test_names_of_domains() -> None:
    assert libvirt.parse_name("a#b") == (None, "a#b")
    assert libvirt.parse_name("qemu+unix:///system?socket=/a/b#c") == ("qemu+unix:///system?socket=/a/b", "c")


def script(folder: Path, text: str) -> None:
    (folder / "virsh").write_text(f"#!/bin/sh\n{text}\n")
    (folder / "virsh").chmod(0o755)


def test_virsh_that_is_missing_or_silent_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "libvirt", None)
    with pytest.raises(MachineError, match=r"needs virsh, and it is not here: install libvirt-clients"):
        open_source("libvirt:a")
    script(tmp_path, "exec /bin/sleep 60")
    with pytest.raises(MachineError, match=r"virsh uri of 'a' took more than 0\.2 s"):
        open_source("libvirt:a", timeout=0.2)
    script(tmp_path, "printf 'error: a\\033[2J\\nerror: b\\n' >&2; exit 1")
    with pytest.raises(MachineError, match=r"^libvirt, domain 'a': a\\x1b\[2J; b$"):
        open_source("libvirt:a")
    script(tmp_path, 'case "$*" in *uri) echo qemu+ssh://far/system;; *domstate*) echo running;; *) echo "{";; esac')
    with pytest.raises(MachineError, match=r"answers human-monitor-command with '\{\\n', expected JSON"):
        open_source("libvirt:a")

"""A live QEMU, by every way to its memory, and its own dumps of the same guest."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from fivefold.errors import MachineError
from fivefold.memory import Source, open_source
from fivefold.memory.live import gdb_stub, live_qemu, live_ram
from fivefold.memory.live.live_qemu import _qmp_addresses, qmp_address_of
from fivefold.memory.live.qmp_client import QmpClient
from fivefold.survey.space import GivenPaging, Space
from fivefold.units import MIB, PhysAddr

PATTERN_AT = 0x2345000
PATTERN = b"".join(struct.pack("<Q", number * 0x9E3779B97F4A7C15 & (1 << 64) - 1) for number in range(5000))

MEMFD = ["-M", "q35,memory-backend=m", "-object", "memory-backend-memfd,id=m,size=64M,share=on"]
FILE = ["-M", "q35,memory-backend=m", "-object", "memory-backend-file,id=m,size=64M,share=on,mem-path={folder}/ram"]
PRIVATE = ["-M", "q35"]
PAUSED = ["-S"]

Start = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start QEMU with two CPUs and a pattern in RAM; sockets ``qmp``, ``watch``, ``gdb`` in the test's folder."""
    started: list[subprocess.Popen[bytes]] = []
    (tmp_path / "pattern").write_bytes(PATTERN)

    def run(*arguments: str) -> subprocess.Popen[bytes]:
        command = ["qemu-system-x86_64", "-accel", "tcg", "-cpu", "qemu64,+la57", "-m", "64M", "-smp", "2"]
        command += ["-display", "none", "-nodefaults", "-qmp", "unix:qmp,server=on,wait=off"]
        command += ["-qmp", "unix:watch,server=on,wait=off", "-gdb", "unix:gdb,server=on,wait=off"]
        command += ["-device", f"loader,file=pattern,addr={PATTERN_AT:#x},force-raw=on"]
        command += [argument.format(folder=tmp_path) for argument in arguments]
        process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL)
        started.append(process)
        deadline = time.monotonic() + 20
        while not (tmp_path / "gdb").exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        return process

    yield run
    for process in started:
        process.kill()
        process.wait()


def digest(source: Source) -> str:
    """Of all memory and where it lies; never compare the bytes themselves, their difference is unreadable."""
    total = hashlib.sha256(repr(source.extents).encode())
    for bank in source.memory.banks():
        total.update(bank.data)
    return total.hexdigest()


def running(path: Path) -> bool:
    with closing(QmpClient(str(path))) as client:
        return bool(client.ask("query-status")["running"])


@pytest.mark.qemu
@pytest.mark.parametrize("backend", [MEMFD, FILE], ids=["memfd", "file"])
def test_all_ways_agree_on_a_paused_guest(start: Start, tmp_path: Path, backend: list[str], monkeypatch) -> None:
    spill = tmp_path / "spill"
    spill.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(spill))
    process = start(*backend, *PAUSED)
    seen = {}
    for way in ("file", "process", "pmemsave"):
        with open_source(f"qmp:{tmp_path / 'qmp'}", live_ram=way) as source:
            assert source.memory.read(PhysAddr(PATTERN_AT), len(PATTERN)) == PATTERN
            assert (source.format, source.live, source.torn) == (f"live QEMU, RAM by {way}", True, False)
            assert [cpu.cr0 for cpu in source.cpus] == [0x60000010] * 2
            assert source.extents == [(0, 64 * MIB), (0xFFFC0000, 1 << 32)]
            seen[way] = digest(source)
    with open_source(f"pid:{process.pid}") as source:
        assert source.format == "live QEMU, RAM by file"
        assert source.memory.zero_copy
        seen["pid"] = digest(source)

    assert len(set(seen.values())) == 1, seen
    assert not running(tmp_path / "watch")
    assert not list(spill.iterdir())


@pytest.mark.qemu
def test_a_running_guest_is_stopped_only_when_asked(start: Start, tmp_path: Path) -> None:
    start(*PRIVATE)
    spec = f"qmp:{tmp_path / 'qmp'}"
    with open_source(spec) as source:
        assert (source.format, source.torn) == ("live QEMU, RAM by process", True)
        assert source.notes == ("the guest runs on: two reads may disagree unless it is frozen",)
        assert source.memory.read(PhysAddr(PATTERN_AT), 4096) == PATTERN[:4096]
    assert running(tmp_path / "watch")
    with open_source(spec, freeze=True) as source:
        assert not source.torn
        assert not running(tmp_path / "watch")
    assert running(tmp_path / "watch")


@pytest.mark.qemu
@pytest.mark.parametrize(("way", "module"), [("qmp", live_qemu), ("gdb", gdb_stub)])
def test_ctrl_c_while_attaching_lets_the_guest_go_on(
    start: Start, tmp_path: Path, way: str, module: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    start(*PRIVATE)

    def interrupted(*_: object) -> None:
        assert not running(tmp_path / "watch")
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "parse_info_registers", interrupted)
    with pytest.raises(KeyboardInterrupt):
        open_source(f"{way}:{tmp_path / way}", freeze=True)
    assert running(tmp_path / "watch")


@pytest.mark.qemu
def test_private_ram_has_no_file(start: Start, tmp_path: Path) -> None:
    process = start(*PRIVATE, *PAUSED)
    with pytest.raises(MachineError) as error:
        open_source(f"qmp:{tmp_path / 'qmp'}", live_ram="file")
    assert str(error.value) == (
        f"cannot read RAM of qmp:{tmp_path / 'qmp'}; file: RAM of process {process.pid} is not shared: start QEMU "
        "with -object memory-backend-memfd,share=on or read it another way"
    )
    with pytest.raises(ValueError, match=r"^live_ram is 'magic': unknown way to read RAM; expected one of auto, file,"):
        open_source(f"qmp:{tmp_path / 'qmp'}", live_ram="magic")


@pytest.mark.qemu
def test_gdb_stub(start: Start, tmp_path: Path) -> None:
    start(*PRIVATE)
    with open_source(f"gdb:{tmp_path / 'gdb'}", freeze=True) as source:
        assert not running(tmp_path / "watch")
        assert source.memory.read(PhysAddr(PATTERN_AT), len(PATTERN)) == PATTERN
        assert source.extents == [(0, 64 * MIB), (0xFFFC0000, 1 << 32)]
        assert len(source.cpus) == 2
    assert running(tmp_path / "watch")


@pytest.mark.qemu
@pytest.mark.parametrize(
    ("kind", "name"), [("elf", "ELF core"), ("kdump-zlib", "kdump, flattened")], ids=["elf", "kdump"]
)
def test_qemus_own_dumps(start: Start, tmp_path: Path, kind: str, name: str) -> None:
    start(*PRIVATE, *PAUSED)
    dump = tmp_path / "dump"
    with closing(QmpClient(str(tmp_path / "qmp"), timeout=60)) as client:
        client.ask("dump-guest-memory", paging=False, protocol=f"file:{dump}", format=kind)
    with open_source(f"qmp:{tmp_path / 'qmp'}", live_ram="process") as live, open_source(str(dump)) as source:
        assert source.format == name
        assert [(cpu.cr0, cpu.rip) for cpu in source.cpus] == [(cpu.cr0, cpu.rip) for cpu in live.cpus]
        assert source.memory.read(PhysAddr(PATTERN_AT), len(PATTERN)) == PATTERN
        for start_at, size in ((0x1000, 0x9F000), (MIB, 63 * MIB)):
            same = source.memory.read(PhysAddr(start_at), size) == live.memory.read(PhysAddr(start_at), size)
            assert same, hex(start_at)


@pytest.mark.qemu
def test_a_guest_that_dies_while_it_is_read(start: Start, tmp_path: Path) -> None:
    process = start(*PRIVATE, *PAUSED)
    with open_source(f"qmp:{tmp_path / 'qmp'}", live_ram="process") as source:
        process.kill()
        process.wait()
        with pytest.raises(Exception, match=r"\(process \d+ gone or memory unplugged\) has no memory at"):
            source.memory.read(PhysAddr(PATTERN_AT), 8)


def dying_qemu(answers: Sequence[object]) -> Callable[[socket.socket], None]:
    """A server that gives *answers* and, asked once more, hangs up."""

    def script(connection: socket.socket) -> None:
        connection.sendall(b'{"QMP": {}}\n')
        for answer in ({}, *answers):
            asked = json.loads(connection.recv(1 << 16))
            connection.sendall(json.dumps({"return": answer, "id": asked["id"]}).encode() + b"\n")
        connection.recv(1 << 16)

    return script


MTREE = """FlatView #0
 AS "memory", root: system
  0000000000001000-0000000000002fff (prio 0, ram): pc.ram @0000000000001000
"""


@pytest.mark.parametrize("answers", [(), ({"running": False},), ({"running": False}, "", MTREE)], ids=len)
def test_a_qemu_that_goes_away_is_told_once(serve, answers: Sequence[object]) -> None:
    """Wherever it happens: no other way to its memory is tried."""
    path = serve(dying_qemu(answers))
    with pytest.raises(MachineError) as error:
        open_source(f"qmp:{path}")
    assert str(error.value) == f"{path} closed the connection in the middle; is QEMU still running?"


def test_a_process_without_a_socket() -> None:
    with pytest.raises(MachineError) as error:
        qmp_address_of(os.getpid())
    assert str(error.value) == (
        f"process {os.getpid()} has no QMP socket on its command line; start QEMU with "
        "-qmp unix:/path/qmp.sock,server=on,wait=off, or give qmp:SOCKET"
    )


def test_a_process_of_another_user(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its command line may be read, where it was started may not."""

    def refused(path: Path, strict: bool = False) -> Path:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", lambda path: b"qemu\0-qmp\0unix:qmp.sock,server=on\0")
    monkeypatch.setattr(Path, "resolve", refused)
    with pytest.raises(
        MachineError, match=r"^cannot read /proc/77/cwd: permission denied; run as .* or give qmp:SOCKET"
    ):
        qmp_address_of(77)


@pytest.mark.parametrize(
    ("line", "addresses"),
    [
        ("-qmp unix:/run/q.sock,server=on,wait=off", ["/run/q.sock"]),
        ("-qmp-pretty tcp:localhost:4444,server", ["localhost:4444"]),
        ("--qmp unix:q,server", ["q"]),
        ("-chardev socket,id=m,path=/a,server=on -mon chardev=m,mode=control", ["/a"]),
        ("-chardev socket,id=m,host=h,port=7 -mon m,mode=control", ["h:7"]),
        ("-chardev socket,id=m,port=7 -qmp chardev:m", ["localhost:7"]),
        ("-chardev socket,id=m,path=/a -mon chardev=m,mode=readline", []),
        ("-chardev socket,id=m,fd=28 -mon chardev=m,mode=control", []),
        ("-qmp stdio -monitor unix:/b", []),
        ("-qmp unix: -qmp tcp: -qmp unix:/a", ["/a"]),
        ("-qmp unix:/a -qmp tcp:[::1]:4,server", ["/a", "[::1]:4"]),
        ("qmp unix:/a -qmp", []),
        ("-qmp chardev:b -chardev socket,path=/a,id=a -chardev socket,path=/b,id=b", ["/b"]),
        ("-chardev pty,id=m,path=/a -mon chardev=m,mode=control", []),
        ("-chardev socket,path=/a -mon chardev=,mode=control", ["/a"]),
        ("-chardev socket,id=m,path=/a -mon mode=control,chardev=m -mon mode=control", ["/a"]),
        ("-chardev socket,id=m,path=/a=b -mon m,mode=control,pretty", ["/a=b"]),
        ("-chardev socket,id=m,host=,port=7 -mon m,mode=control", ["localhost:7"]),
        ("", []),
    ],
)
def test_sockets_on_command_lines(line: str, addresses: list[str]) -> None:
    assert list(_qmp_addresses(["qemu", *line.split()])) == addresses


@pytest.mark.parametrize(
    ("option", "address"),
    [
        ("unix:q.sock,server=on", "{folder}/q.sock"),
        ("unix:/run/q.sock", "/run/q.sock"),
        ("unix:./a:7", "{folder}/a:7"),
        ("unix:7", "{folder}/7"),
        ("tcp:localhost:4444,server", "localhost:4444"),
        ("tcp::4444", ":4444"),
    ],
)
def test_the_socket_of_a_process(tmp_path: Path, option: str, address: str) -> None:
    """By its command line, and by where it was started."""
    sleep = "import time; print(flush=True); time.sleep(60)"
    command = [sys.executable, "-I", "-S", "-c", sleep, "-qmp", option]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout and process.stdout.readline()  # before it runs its command line is not there yet
            assert qmp_address_of(process.pid) == address.format(folder=tmp_path)
            with pytest.raises(MachineError, match=f"^cannot connect to {address.format(folder=tmp_path)} for QMP: "):
                open_source(f"pid:{process.pid}", timeout=0.5)
        finally:
            process.kill()
    with pytest.raises(MachineError, match=r"^cannot read the command line of process 999999999: No such file"):
        qmp_address_of(999999999)


@pytest.mark.qemu
def test_pmemsave_has_only_the_tables_written(start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entries = {0x2400000: 0x2401003, 0x2401000: 0x2402003, 0x2402000: 0x83}
    loaders = [f"loader,addr={at:#x},data={entry:#x},data-len=8" for at, entry in entries.items()]
    start(*PRIVATE, *PAUSED, *(word for one in loaders for word in ("-device", one)))
    asked: list[int] = []
    real = QmpClient.ask

    def ask(self: QmpClient, command: str, **arguments: Any) -> Any:
        if command == "pmemsave":
            asked.append(arguments["size"])
        return real(self, command, **arguments)

    monkeypatch.setattr(QmpClient, "ask", ask)
    monkeypatch.setattr(live_ram, "MOST_SEARCHED", 0)
    with open_source(f"qmp:{tmp_path / 'qmp'}", live_ram="pmemsave") as source:
        found = Space(source, GivenPaging(cr3=0x2400000, levels=4)).scan()
        assert (found.start.tolist(), found.last.tolist()) == ([0], [2 * MIB - 1])
        assert 3 * 4096 <= sum(asked) < MIB

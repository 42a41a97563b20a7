"""All ways to the RAM of a QEMU that is a script of this process: its guest's memory is ours, so the truth is known.

QEMU itself is in test_live_qemu; here it may be what QEMU is not at will: slow, wrong, with RAM at odd places.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import re
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fivefold.errors import MachineError, MemoryReadError
from fivefold.memory import open_source
from fivefold.memory.banked import BankedMemory
from fivefold.memory.live import live_ram
from fivefold.memory.live.live_qemu import attach_qmp
from fivefold.memory.live.live_ram import Located, _copied, locate, shared_memory
from fivefold.memory.live.mtree import RamRange
from fivefold.units import MIB, PAGE, PhysAddr

LOW, HIGH, ROM = 0x1000, 0x1_0000_0800, 0xFFFC_0000
"""The guest has RAM from two places of one shared file, the second amid a page of it, and firmware that is private."""

SIZES = {LOW: 0x4000, ROM: 0x2000, HIGH: 0x3800}
FILE_AT, HIGH_IN_FILE = 2 * PAGE, 7 * PAGE + 0x800
HELD = {"fdset-id": 3}
RUNS = "the guest runs on: two reads may disagree unless it is frozen"
COPIED = "copied when attached, because not shared: bios"


class ScriptedQemu:
    """Answers one client as QEMU does, by what is in ``host``; *other* answers come first, by command."""

    def __init__(self, *, running: bool = False, share: bool = True) -> None:
        self.running = running
        self.asked: list[str] = []
        self.other: dict[str, Any] = {}
        self.seconds = 0.0
        """What it takes to save memory."""
        self.short = 0
        """How many bytes more than asked it saves."""
        self.file = os.memfd_create("ram")
        os.truncate(self.file, 20 * PAGE)
        self.ram = mmap.mmap(self.file, 14 * PAGE, mmap.MAP_SHARED if share else mmap.MAP_PRIVATE, offset=FILE_AT)
        self.bios = mmap.mmap(-1, 2 * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        for part, seed in ((self.ram, 3), (self.bios, 5)):
            part[:] = bytes((at * seed + (at >> 8) * 7 + 1) & 0xFF for at in range(len(part)))
        self.host = {LOW: (self.ram, PAGE), HIGH: (self.ram, HIGH_IN_FILE - FILE_AT), ROM: (self.bios, 0)}
        self.given = -1
        self.left = threading.Event()

    def truth(self, start: int, at: int = 0, size: int | None = None) -> bytes:
        """The bytes of the range that begins at *start*."""
        part, offset = self.host[start]
        size = SIZES[start] - at if size is None else size
        return part[offset + at : offset + at + size]

    def text(self, line: str) -> str:
        if line == "info registers -a":
            return "CPU#0\nCR0=80050033 CR3=1000\nCPU#1\nCR0=60000010 CR3=2000\n"
        if line == "info mtree -f":
            kinds = {LOW: ("ram", "pc.ram"), ROM: ("rom", "bios"), HIGH: ("ram", "pc.ram")}
            rows = [
                f"  {start:016x}-{start + SIZES[start] - 1:016x} (prio 0, {kind}): {name} @{offset:016x}"
                for (start, (kind, name)), offset in zip(kinds.items(), (PAGE, 0, 0x9000), strict=True)
            ]
            return "\r\n".join(["FlatView #1", ' AS "memory", root: system', *sorted(rows), ""])
        found = re.fullmatch(r"gpa2hva (0x[0-9a-f]+)", line)
        assert found, line
        part, offset = self.host[int(found[1], 16)]
        address = ctypes.addressof(ctypes.c_char.from_buffer(part)) + offset
        return f"Host virtual address for {found[1]} (pc.ram) is {address:#x}\r\n"

    def save(self, val: int, size: int, filename: str) -> dict[str, Any]:
        time.sleep(self.seconds)
        start = max(start for start in SIZES if start <= val)
        with Path(filename).open("r+b") as file:
            file.write((self.truth(start, val - start, size) + bytes(max(self.short, 0)))[: size + self.short])
        return {}

    def answer(self, command: str, arguments: dict[str, Any]) -> Any:
        if command == "query-status":
            return {"running": self.running}
        if command in ("stop", "cont"):
            self.running = command == "cont"
        if command == "human-monitor-command":
            return self.text(arguments["command-line"])
        if command == "pmemsave":
            return self.save(**arguments)
        return {"fd": self.given, **HELD} if command == "add-fd" else {}

    def __call__(self, connection: socket.socket) -> None:
        connection.sendall(b'{"QMP": {}}\n')
        while True:
            data, files, _, _ = socket.recv_fds(connection, 1 << 16, 1)
            self.given = files[0] if files else self.given
            if not data:
                self.left.set()
                return
            asked = json.loads(data)
            command, arguments = asked["execute"], asked.get("arguments", {})
            line = arguments.get("command-line", "").split()
            self.asked.append(" ".join([command if not line else "", *line]).strip())
            if command == "remove-fd":
                assert arguments == {"fdset-id": 3}
                os.close(self.given)
            if command in self.other:
                answer = self.other[command]
            else:
                answer = {"return": self.answer(command, arguments)}
            connection.sendall(json.dumps({"id": asked["id"], **answer}).encode() + b"\n")


@pytest.fixture
def qemu() -> Iterator[ScriptedQemu]:
    guest = ScriptedQemu()
    yield guest
    os.close(guest.file)


Opened = Callable[[], set[str]]
Serve = Callable[[Callable[[socket.socket], None]], str]


@pytest.mark.parametrize("way", ["file", "process", "pmemsave"])
def test_every_way_reads_what_the_guest_has(serve: Serve, qemu: ScriptedQemu, way: Any) -> None:
    with open_source(f"qmp:{serve(qemu)}", live_ram=way) as source:
        assert source.extents == [(start, start + SIZES[start]) for start in sorted(SIZES)]
        for start, size in SIZES.items():
            assert source.memory.read(PhysAddr(start), size) == qemu.truth(start)
            assert source.memory.read(PhysAddr(start + size - 3), 3) == qemu.truth(start)[-3:]
            assert source.memory.read(PhysAddr(start + 0x123), 0x1100) == qemu.truth(start, 0x123, 0x1100)
            for at in (start - 1, start + size):
                with pytest.raises(MemoryReadError):
                    source.memory.read(PhysAddr(at), 1)
        assert [bytes(bank.data) for bank in source.memory.banks()] == [qemu.truth(start) for start in sorted(SIZES)]
        assert [(cpu.cr0, cpu.cr3) for cpu in source.cpus] == [(0x80050033, 0x1000), (0x60000010, 0x2000)]
        assert (source.format, source.live, source.torn) == (f"live QEMU, RAM by {way}", True, False)
        assert source.notes == ((COPIED,) if way == "file" else ())
        assert (source.guest is None) is (way == "pmemsave")
        assert source.memory.zero_copy is (way == "file")
        assert source.memory.searchable
    assert qemu.left.wait(20)
    asked = {word.split()[0] for word in qemu.asked}
    saves = {"add-fd", "pmemsave"} if way == "pmemsave" else {"gpa2hva"}
    assert asked == {"qmp_capabilities", "query-status", "info", *saves}


@pytest.mark.parametrize(("way", "ram", "bios"), [("file", 1, 0), ("process", 1, 1), ("pmemsave", 1, 1)])
def test_what_the_guest_writes_is_seen(serve: Serve, qemu: ScriptedQemu, way: Any, ram: int, bios: int) -> None:
    """But for what was copied; and a write by us is not possible."""
    with open_source(f"qmp:{serve(qemu)}", live_ram=way) as source:
        before = qemu.truth(ROM)[:4]
        qemu.ram[PAGE : PAGE + 4], qemu.bios[:4] = b"live", b"live"
        assert (source.memory.read(PhysAddr(LOW), 4) == b"live") is bool(ram)
        assert source.memory.read(PhysAddr(ROM), 4) == (b"live" if bios else before)
        assert all(bank.data.readonly for bank in source.memory.banks())


@pytest.mark.parametrize("running", [False, True])
@pytest.mark.parametrize("freeze", [False, True])
def test_it_is_stopped_only_when_asked_and_goes_on_only_if_it_ran(
    serve: Serve, qemu: ScriptedQemu, running: bool, freeze: bool
) -> None:
    qemu.running = running
    with open_source(f"qmp:{serve(qemu)}", freeze=freeze) as source:
        assert qemu.running is (running and not freeze)
        assert source.torn is (running and not freeze)
        assert source.notes == (COPIED, *[RUNS] * source.torn)
        assert source.format == "live QEMU, RAM by file"
        assert source.guest is not None
        with source.guest.stopped_briefly() as by_us:
            assert by_us is (running and not freeze)
            assert not qemu.running
            time.sleep(0.02)
        assert (0.02 <= source.guest.stood_still < 60) if by_us else source.guest.stood_still == 0
        assert qemu.running is (running and not freeze)
    assert qemu.running is running
    assert qemu.asked.count("stop") == qemu.asked.count("cont") == int(running)


def test_a_refusal_while_attaching_lets_it_go_on(serve: Serve, qemu: ScriptedQemu) -> None:
    qemu.running = True
    qemu.other["pmemsave"] = {"error": {"class": "GenericError", "desc": "no room"}}
    with pytest.raises(MachineError, match=r"^cannot read RAM of qmp:\S+; pmemsave: QEMU refuses pmemsave: no room$"):
        open_source(f"qmp:{serve(qemu)}", freeze=True, live_ram="pmemsave")
    assert qemu.running
    assert qemu.asked[-2:] == ["remove-fd", "cont"]


def test_pmemsave_is_the_last_resort_and_says_why(serve: Serve, qemu: ScriptedQemu) -> None:
    at = serve(qemu)
    with attach_qmp(at, pid=999999999) as source:
        assert source.format == "live QEMU, RAM by pmemsave"
        assert source.notes == (
            "not read by file: cannot read /proc/999999999/maps: No such file or directory",
            "not read by process: cannot read /proc/999999999/mem: No such file or directory",
        )


def test_private_ram_is_read_from_the_process(serve: Serve) -> None:
    """RAM mapped from a file, but not shared: the file does not show what the guest writes."""
    qemu = ScriptedQemu(share=False)
    path = serve(qemu)
    with open_source(f"qmp:{path}") as source:
        assert (source.format, source.notes) == ("live QEMU, RAM by process", ())
        assert source.memory.read(PhysAddr(HIGH), 0x3800) == qemu.truth(HIGH)
    os.close(qemu.file)


@pytest.mark.parametrize("refused", [False, True], ids=["given", "by our own path"])
def test_qemu_saves_to_a_file_without_a_name(
    serve: Serve, qemu: ScriptedQemu, tmp_path: Path, refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which any user may write, since QEMU may be another; nothing of what was saved stays in it."""
    if refused:
        qemu.other["add-fd"] = {"error": {"class": "CommandNotFound", "desc": "unknown"}}
    (tmp_path / "spill").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "spill"))
    seen: list[os.stat_result] = []
    names: list[str] = []
    save = qemu.save

    def watched(val: int, size: int, filename: str) -> dict[str, Any]:
        seen.append(Path(filename).stat())
        names.append(filename)
        return save(val, size, filename)

    qemu.save = watched  # type: ignore[method-assign]
    with open_source(f"qmp:{serve(qemu)}", live_ram="pmemsave") as source:
        assert not list((tmp_path / "spill").iterdir())
        assert source.memory.read(PhysAddr(HIGH), 0x3800) == qemu.truth(HIGH)
        assert source.memory.read(PhysAddr(LOW), 8) == qemu.truth(LOW)[:8]
    assert {(entry.st_nlink, stat.S_IMODE(entry.st_mode), entry.st_size) for entry in seen} == {(0, 0o666, 0)}
    assert names[0].startswith(f"/proc/{os.getpid()}/fd/" if refused else "/proc/self/fd/")


@pytest.mark.parametrize(("short", "saved"), [(-1, 0x37FF), (1, 0x3801)])
def test_qemu_that_saves_another_size(serve: Serve, qemu: ScriptedQemu, short: int, saved: int) -> None:
    with open_source(f"qmp:{serve(qemu)}", live_ram="pmemsave") as source:
        qemu.short = short
        with pytest.raises(MachineError, match=rf"^QEMU saved {saved} bytes at 0x100000800, expected 14336$"):
            source.memory.read(PhysAddr(HIGH), 0x3800)


def test_saving_much_may_take_longer(serve: Serve, qemu: ScriptedQemu, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_ram, "PMEMSAVE_SPEED", 0x1000)
    with open_source(f"qmp:{serve(qemu)}", live_ram="pmemsave", timeout=0.25) as source:
        qemu.seconds = 0.4
        assert source.memory.read(PhysAddr(HIGH), 0x3800) == qemu.truth(HIGH)
        qemu.seconds = 1
        with pytest.raises(MachineError, match=r" gave no answer in 0\.5 s$"):
            source.memory.read(PhysAddr(HIGH), 0x400)


@pytest.mark.parametrize(("most", "searchable"), [(sum(SIZES.values()), True), (sum(SIZES.values()) - 1, False)])
def test_how_much_is_searched_for_names(
    serve: Serve, qemu: ScriptedQemu, monkeypatch: pytest.MonkeyPatch, most: int, searchable: bool
) -> None:
    monkeypatch.setattr(live_ram, "MOST_SEARCHED", most)
    with open_source(f"qmp:{serve(qemu)}", live_ram="pmemsave") as source:
        assert source.memory.searchable is searchable


def test_another_process_does_not_pass_for_qemu(serve: Serve, qemu: ScriptedQemu, opened: Opened) -> None:
    qemu.text = lambda line, text=qemu.text: (  # type: ignore[method-assign]
        "Host virtual address for 0x1000 (ram) is 0x10\n" if "gpa2hva" in line else text(line)
    )
    message = rf"process: process {os.getpid()} is not the QEMU that answers: .* has no memory at 0x0000000000001000"
    with pytest.raises(MachineError, match=message):
        open_source(f"qmp:{serve(qemu)}", live_ram="process")
    assert len(opened()) <= 1  # the server's end of the connection


class OddMonitor:
    """Says where each page of a guest lies, up to a number of questions."""

    address = "odd"

    def __init__(self, answer: str = "Host virtual address for {at} (pc.ram) is 0x7f00{at:.0}1000") -> None:
        self.says = answer
        self.asked: list[str] = []

    def monitor(self, line: str) -> str:
        self.asked.append(line)
        return self.says.format(at=line.split()[1])


def test_where_ranges_lie_is_asked_one_by_one() -> None:
    ranges = [RamRange(at * 0x2000 + 0x1000, at * 0x2000 + 0x2000, "ram", 0) for at in range(1 << 10)]
    client = OddMonitor()
    found = locate(client, ranges)  # type: ignore[arg-type]
    assert found[3] == (ranges[3], 0x7F001000)
    assert found[3].size == 0x1000
    assert client.asked == [f"gpa2hva {ram.start:#x}" for ram in ranges]
    with pytest.raises(MachineError, match=r"^1025 ranges of RAM, at most 1024 are asked for one by one$"):
        locate(client, [*ranges, ranges[0]])  # type: ignore[arg-type]
    with pytest.raises(MachineError, match=r"^QEMU does not say where 0x1000 lies: 'unknown command:'$"):
        locate(OddMonitor(" unknown command: \r\n"), ranges)  # type: ignore[arg-type]
    long = "x" * 90
    with pytest.raises(MachineError, match=rf"lies: '{'x' * 80}'$"):
        locate(OddMonitor(long), ranges)  # type: ignore[arg-type]


def located(qemu: ScriptedQemu) -> list[Located]:
    """Where RAM lies by its addresses in this process."""
    return [
        Located(
            RamRange(start, start + SIZES[start], "bios" if start == ROM else "pc.ram", 0),
            ctypes.addressof(ctypes.c_char.from_buffer(part)) + offset,
        )
        for start, (part, offset) in qemu.host.items()
    ]


def test_how_much_may_be_private(qemu: ScriptedQemu, monkeypatch: pytest.MonkeyPatch) -> None:
    assert live_ram.MAX_ROM == 64 * MIB
    monkeypatch.setattr(live_ram, "MAX_ROM", SIZES[ROM])
    memory, _ = shared_memory(os.getpid(), located(qemu), "x")
    memory.close()
    monkeypatch.setattr(live_ram, "MAX_ROM", SIZES[ROM] - 1)
    with pytest.raises(MachineError, match=rf"^RAM of process {os.getpid()} is not shared: start QEMU with -object"):
        shared_memory(os.getpid(), located(qemu), "x")
    monkeypatch.setattr(live_ram, "MAX_ROM", SIZES[ROM])
    with pytest.raises(MachineError, match=r" is not shared: "):
        shared_memory(os.getpid(), located(qemu)[-1:], "x")


def test_private_parts_that_may_not_be_read_are_holes(qemu: ScriptedQemu, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(pid: int) -> None:
        raise MachineError("not yours")

    monkeypatch.setattr(live_ram, "ProcessMemory", refused)
    memory, remarks = shared_memory(os.getpid(), located(qemu), "x")
    assert remarks == ("left out as holes, because not shared: bios (not yours)",)
    assert memory.extents == [(LOW, LOW + SIZES[LOW]), (HIGH, HIGH + SIZES[HIGH])]


def test_copies_leave_no_descriptor(qemu: ScriptedQemu, opened: Opened) -> None:
    banks, remarks = _copied(os.getpid(), located(qemu)[::-1])
    assert opened() == set()
    assert remarks == ("copied when attached, because not shared: bios, pc.ram",)
    assert {bank.start: bytes(bank.data) for bank in banks} == {start: qemu.truth(start) for start in SIZES}


def test_a_shared_file_that_is_too_short_is_not_mapped(qemu: ScriptedQemu) -> None:
    """The range ends a page after the file's end, as after a file was cut; up to the end is well."""
    end = HIGH_IN_FILE + SIZES[HIGH]
    for size, refused in ((end, False), (end - 1, True)):
        os.truncate(qemu.file, size)
        wanted = [one for one in located(qemu) if one.ram.start == HIGH]
        if refused:
            with pytest.raises(MachineError, match="is not shared"):
                shared_memory(os.getpid(), wanted, "x")
        else:
            memory, _ = shared_memory(os.getpid(), wanted, "x")
            assert memory.read(PhysAddr(HIGH), SIZES[HIGH]) == qemu.truth(HIGH)
            memory.close()
    os.truncate(qemu.file, 20 * PAGE)


@pytest.mark.parametrize("again", [False, True])
def test_ram_that_goes_away_is_told(qemu: ScriptedQemu, again: bool) -> None:
    """By the next access, and when the memory is closed, which may be the last that hears of it."""
    memory, _ = shared_memory(os.getpid(), located(qemu), "x")
    assert isinstance(memory, BankedMemory)
    os.truncate(qemu.file, FILE_AT + PAGE)
    told = rf"^RAM of process {os.getpid()} went away while it was read$"
    assert memory.read(PhysAddr(HIGH), 8) == bytes(8)
    if again:
        with pytest.raises(MachineError, match=told):
            memory.read(PhysAddr(LOW), 8)
    with pytest.raises(MachineError, match=told):
        memory.close()
    os.truncate(qemu.file, 20 * PAGE)


def test_a_file_that_cannot_be_mapped(qemu: ScriptedQemu, opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a file system that has no mappings; no descriptor stays open."""
    monkeypatch.setattr(live_ram.mmap, "mmap", lambda *_, **__: (_ for _ in ()).throw(OSError(19, "No such device")))
    with pytest.raises(MachineError, match=rf"^cannot map RAM of process {os.getpid()}: No such device$"):
        shared_memory(os.getpid(), located(qemu), "x")
    assert opened() == set()


def test_a_read_across_ranges_that_touch(qemu: ScriptedQemu) -> None:
    """Two ranges of the guest that follow each other need not do so in the process."""
    part = qemu.ram
    address = ctypes.addressof(ctypes.c_char.from_buffer(part))
    ranges = [
        Located(RamRange(0x1000, 0x2000, "a", 0), address + 3 * PAGE),
        Located(RamRange(0x2000, 0x3800, "b", 0), address + PAGE),
        Located(RamRange(0x3800, 0x4000, "c", 0), address + 6 * PAGE),
    ]
    memory = live_ram.process_memory(os.getpid(), ranges, "x", 1 << 20)
    truth = part[3 * PAGE : 4 * PAGE] + part[PAGE : PAGE + 0x1800] + part[6 * PAGE : 6 * PAGE + 0x800]
    assert memory.extents == [(0x1000, 0x4000)]
    for start, size in ((0x1000, 0x3000), (0x1FFF, 2), (0x2000, 0x1800), (0x2800, 0x1000), (0x3800, 1), (0x3FFF, 1)):
        assert memory.read(PhysAddr(start), size) == truth[start - 0x1000 : start - 0x1000 + size]
    assert memory.written() == [(0x1000, 0x4000)]  # mapped from a file: all of it may be
    with pytest.raises(MachineError, match=r": 12288 bytes, at most 8192 are allowed$"):
        live_ram.process_memory(os.getpid(), ranges, "x", 8192).banks()
    memory.close()


def test_unplugged_memory_is_told_by_the_guests_address(qemu: ScriptedQemu) -> None:
    block = mmap.mmap(-1, 4 * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    host = ctypes.addressof(ctypes.c_char.from_buffer(block))
    memory = live_ram.process_memory(os.getpid(), [Located(RamRange(0x5000, 0x9000, "dimm", 0), host)], "x", 1 << 20)
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.mprotect(ctypes.c_void_p(host + 2 * PAGE), PAGE, 0) == 0
    assert memory.read(PhysAddr(0x6000), 16) == bytes(16)
    libc.munmap(ctypes.c_void_p(host + 3 * PAGE), PAGE)
    with pytest.raises(MemoryReadError) as error:
        memory.read(PhysAddr(0x8010), 8)
    assert (error.value.pa, error.value.size) == (0x8010, 8)
    assert str(error.value).startswith(f"x (process {os.getpid()} gone or memory unplugged) has no memory at 0x")
    memory.close()

"""Looks at a guest whose tables change between them, and at a real one that runs."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from fivefold.arch import LA57, AddressSpace, Entry, Flag, Frames, Level, map_page
from fivefold.boot import DEFAULT_LOAD_ADDRESS, build_image
from fivefold.errors import NotKnownError
from fivefold.memory import PagedMemory, Ram, Source
from fivefold.memory.live.qmp_client import QmpClient
from fivefold.survey.diff import watch as module
from fivefold.survey.diff.diff import DiffSettings
from fivefold.survey.diff.watch import Watcher, watch
from fivefold.survey.guest.identify import GivenPaging
from fivefold.survey.space import Space
from fivefold.units import MIB, PhysAddr, VirtAddr

ROOT = PhysAddr(0x10_0000)
AT = 0xFF11_0000_0000_0000
DATA = int(Flag.P | Flag.RW | Flag.NX)


class FakeGuest:
    """Runs, or does not; *takes* seconds to stop and let go on."""

    def __init__(self, runs: bool = True, takes: float = 0.004) -> None:
        self.runs, self.takes, self.stops = runs, takes, 0
        self.stood_still = 0.0

    @contextmanager
    def stopped_briefly(self) -> Iterator[bool]:
        assert self.stood_still >= 0
        self.stops += self.runs
        yield self.runs
        self.stood_still = self.takes if self.runs else 0.0


class Guest:
    """Tables that a test changes."""

    def __init__(self, guest: FakeGuest | None) -> None:
        self.ram = Ram.of_size(4 * MIB, start=MIB, name="toy")
        self.tables = AddressSpace(self.ram, ROOT, LA57)
        self.frames = Frames(self.ram, PhysAddr(ROOT + 0x1000), 64)
        self.map(0, 0x5000)
        memory = PagedMemory(self.ram.extents, lambda pa, size: self.ram.read(PhysAddr(pa), size), "toy")
        given = GivenPaging(cr3=ROOT, levels=5)
        self.space = Space(Source(memory=memory, format="fake", live=True, torn=True, guest=guest), given)

    def map(self, page: int, frame: int, rights: int = DATA) -> None:
        map_page(self.ram, self.tables, VirtAddr(AT + page * 0x1000), Entry(frame | rights, Level.PT), self.frames)


def test_each_look_tells_what_changed_since_the_one_before() -> None:
    fake = FakeGuest()
    guest = Guest(fake)
    watcher = Watcher(guest.space)
    first = watcher.look()
    assert (first.number, first.changes, first.missed, first.tables, first.stopped) == (1, None, "", 5, False)
    assert watcher.look().changes == ()
    guest.map(1, 0x6000)
    [added] = watcher.look().changes or ()
    assert (added.nature, added.start, added.size) == ("added", AT + 0x1000, 0x1000)
    assert watcher.look().changes == ()
    assert fake.stops == 4
    entry = PhysAddr(guest.space.path(AT).steps[-1].at)
    guest.ram.write(entry, struct.pack("<Q", 0x5000 | DATA | int(Flag.A | Flag.D)))
    assert watcher.look().changes == ()
    guest.ram.write(entry, struct.pack("<Q", 0x5000 | int(Flag.P)))
    [changed] = watcher.look().changes or ()
    assert (changed.nature, changed.what) == ("changed", ("rights", "flags"))


def test_a_guest_that_is_stopped_is_left_so() -> None:
    fake = FakeGuest(runs=False)
    look = Watcher(Guest(fake).space).look()
    assert (look.stopped, look.stood_still, fake.stops) == (True, 0.0, 0)


def test_a_look_that_takes_too_long_is_given_up_and_the_next_is_later() -> None:
    guest = Guest(FakeGuest(takes=0.3))
    slept: list[float] = []
    looks = list(watch(Watcher(guest.space, most_still=-1.0), interval=100.0, count=3, sleep=slept.append))
    assert [look.missed for look in looks] == ["given up after 300 ms"] * 3
    assert [look.changes for look in looks] == [None] * 3
    assert [round(one) for one in slept] == [200, 400]
    guest = Guest(FakeGuest(takes=10.0))
    slept.clear()
    list(watch(Watcher(guest.space), interval=0.0, count=2, sleep=slept.append))
    assert 195 < slept[0] <= 200  # a twentieth of the time, less what the look itself took


def test_a_watch_ends_in_time() -> None:
    looks = list(watch(Watcher(Guest(FakeGuest()).space), interval=1.0, seconds=0.5, sleep=lambda _: None))
    assert len(looks) == 1


def test_a_root_whose_process_ended_is_refused() -> None:
    guest = Guest(FakeGuest())
    watcher = Watcher(guest.space)
    watcher.look()
    guest.ram.write(ROOT, bytes(0x1000))
    with pytest.raises(NotKnownError, match="the table at 0x0000000000100000 is no root any more: its process ended"):
        watcher.look()


def test_what_stands_still_is_refused() -> None:
    with pytest.raises(NotKnownError, match=r"toy \(fake\) cannot be watched; expected a live guest whose RAM is read"):
        Watcher(Guest(None).space)


def test_too_many_changes_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    guest = Guest(FakeGuest())
    watcher = Watcher(guest.space, DiffSettings(window=range(AT, AT + 0x10000)))
    watcher.look()
    guest.map(2, 0x9000)

    def refuse(*_: object) -> None:
        raise module.TooManyRuns(ROOT, 1)

    monkeypatch.setattr(module, "diff", refuse)
    look = watcher.look()
    assert look.changes is None and look.missed


FILE = "memory-backend-file,id=m,size=24M,share=on,mem-path=ram"


@pytest.fixture
def qemu(tmp_path: Path) -> Iterator[Path]:
    """A folder with sockets ``qmp`` and ``test`` of a guest that has come up with five levels, and its memory."""
    (tmp_path / "image").write_bytes(build_image().place(DEFAULT_LOAD_ADDRESS, "pvh_entry"))
    command = ["qemu-system-x86_64", "-accel", "tcg", "-M", "q35,memory-backend=m", "-object", FILE, "-m", "24M"]
    command += ["-cpu", "qemu64,+la57", "-display", "none", "-nodefaults", "-serial", "file:serial", "-kernel", "image"]
    command += [word for name in ("qmp", "test") for word in ("-qmp", f"unix:{name},server=on,wait=off")]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        serial = tmp_path / "serial"
        while not (serial.exists() and b"\n# passed" in serial.read_bytes()):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        yield tmp_path
    finally:
        process.kill()
        process.wait()


def start(folder: Path, *words: str, out: int = subprocess.PIPE) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "fivefold", "watch", "qmp:qmp", "--interval", "0.1", *words]
    wide = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    return subprocess.Popen(command, cwd=folder, stdout=out, stderr=subprocess.PIPE, env=wide)


@pytest.mark.qemu
def test_a_real_guest_is_watched_and_runs_on(qemu: Path) -> None:
    """A leaf is changed in the guest's memory, from outside; QEMU's own walk is the witness of it."""
    with closing(QmpClient(str(qemu / "test"))) as client, start(qemu, "--json") as watched:
        assert watched.stdout is not None
        first = json.loads(watched.stdout.readline())
        assert (first["schema"], first["look"], first["changes"]) == ("fivefold.watch/1", 1, None)
        assert 0 < first["stood_still"] < 60 and not first["stopped"]
        at, entry = leaf(client)
        with (qemu / "ram").open("r+b") as ram:
            ram.seek(at)
            ram.write(bytes(8))
        changes = []
        while not changes:
            changes = json.loads(watched.stdout.readline())["changes"]
        assert [(one["nature"], one["start"], one["size"]) for one in changes] == [("removed", f"{VA:#018x}", 4096)]
        assert int(changes[0]["before"]["phys"], 16) == entry & 0xFFFFF000
        assert "Unmapped" in client.monitor(f"gva2gpa {VA:#x}")
        watched.send_signal(signal.SIGINT)
        out, err = watched.communicate(timeout=60)
        assert (watched.returncode, err) == (130, b"")
        summary = json.loads(out.splitlines()[-1])["summary"]
        assert (summary["changes"], summary["removed"], summary["missed"]) == (1, 1, 0)
        assert client.ask("query-status")["running"]
    lines = start(qemu, "--count", "2").communicate(timeout=60)[0].decode().splitlines()
    assert lines[0].startswith("# watching qmp:qmp, root 0x0000000000100000 (CR3 of CPU 0 (info registers)), 5 levels")
    assert lines[-1].startswith("# 0 changes in 2 looks over ")
    assert b"Ctrl-C ends it" in on_a_terminal(qemu)


VA = 0xFFFFFFFF81000000 + 0x3000


def leaf(client: QmpClient) -> tuple[int, int]:
    """Where the leaf entry of VA is, and what it is; by hand, through QEMU's own reads of physical memory."""
    table = int(client.monitor("info registers").split("CR3=")[1].split()[0], 16)
    for shift in (48, 39, 30, 21, 12):
        at = (table & 0xFFFFF000) + (VA >> shift & 511) * 8
        table = int(client.monitor(f"xp /1gx {at:#x}").split(":")[1], 16)
    return at, table


def on_a_terminal(folder: Path) -> bytes:
    ours, theirs = pty.openpty()
    shown = b""
    with start(folder, "--count", "2", out=theirs) as watched:
        os.close(theirs)
        while select.select([ours], [], [], 60)[0]:
            try:
                part = os.read(ours, 1 << 16)
            except OSError:  # all is read
                break
            shown += part
        assert watched.wait(60) == 0
    os.close(ours)
    return shown

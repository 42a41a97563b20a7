"""QEMU's migration streams: one that QEMU itself writes, and others made entry by entry."""

from __future__ import annotations

import random
import struct
import time
from pathlib import Path

import pytest

from fivefold.errors import FormatError
from fivefold.machine import available
from fivefold.machine.child import Child
from fivefold.memory import open_source
from fivefold.memory.live.qmp_client import QmpClient
from fivefold.units import MIB, PhysAddr

PAGE = 4096


def name(text: bytes) -> bytes:
    return bytes([len(text)]) + text


def stream(ram: int = 8, entries: bytes = b"", machine: bytes = b"pc-q35-7.2", magic: bytes = b"QEVM") -> bytes:
    """A stream with *ram* pages in pc.ram and *entries* in its second section."""
    out = magic + struct.pack(">I", 3) + b"\x07" + struct.pack(">I", len(machine)) + machine
    out += b"\x01" + struct.pack(">I", 2) + name(b"ram") + struct.pack(">II", 0, 4)
    out += struct.pack(">Q", (ram + 1) * PAGE | 4) + name(b"pc.ram") + struct.pack(">Q", ram * PAGE)
    out += name(b"rom") + struct.pack(">Q", PAGE) + struct.pack(">Q", 0x10) + b"\x7e" + struct.pack(">I", 2)
    out += b"\x02" + struct.pack(">I", 2) + entries + struct.pack(">Q", 0x10) + b"\x7e" + struct.pack(">I", 2)
    return out + b"\x03" + struct.pack(">I", 2) + struct.pack(">Q", 0x10) + b"\x7e" + struct.pack(">I", 2) + b"\x04rest"


def page(number: int, data: bytes, block: bytes | None = b"pc.ram") -> bytes:
    flags = (8 if len(data) == PAGE else 2) | (0x20 if block is None else 0)
    return struct.pack(">Q", number * PAGE | flags) + (b"" if block is None else name(block)) + data


ENTRIES = (
    page(0, b"a" * PAGE)
    + page(1, b"\0", None)
    + page(2, b"\x5a", None)
    + page(0, b"r" * PAGE, b"rom")
    + page(5, b"b" * PAGE)
    + page(0, b"c" * PAGE, None)
)


def check(path: Path) -> None:
    with open_source(path) as source:
        assert source.extents == [(0, 3 * PAGE), (5 * PAGE, 6 * PAGE)]
        assert source.memory.read(PhysAddr(0), 3 * PAGE) == b"c" * PAGE + bytes(PAGE) + b"\x5a" * PAGE
        assert source.memory.read(PhysAddr(5 * PAGE), PAGE) == b"b" * PAGE
        assert source.memory.written() == [(0, PAGE), (2 * PAGE, 3 * PAGE), (5 * PAGE, 6 * PAGE)]


def test_pages(tmp_path: Path) -> None:
    """The last that is told of a page counts, of pages alike only the byte, of the ROM's block nothing."""
    (tmp_path / "state").write_bytes(stream(entries=ENTRIES))
    check(tmp_path / "state")


def libvirt(inner: bytes, packed: int = 0, mark: bytes = b"LibvirtQemudSave") -> bytes:
    xml = b"<domain/>".ljust(64, b"\0")
    return mark + struct.pack("<19I", 2, len(xml), 1, packed, 0, *[0] * 14) + xml + inner


def test_libvirt(tmp_path: Path) -> None:
    path = tmp_path / "save"
    path.write_bytes(libvirt(stream(entries=ENTRIES)))
    check(path)
    for data, says in (
        (libvirt(b"", 1), "packed by libvirt with gzip"),
        (libvirt(b"", mark=b"LibvirtQemudPart"), "stopped while it saved"),
        (libvirt(b"\0" * 16), "no QEMU stream behind"),
    ):
        path.write_bytes(data)
        with pytest.raises(FormatError, match=says):
            open_source(path)


def test_cut(tmp_path: Path) -> None:
    whole = stream(entries=ENTRIES)
    for size in [*range(8, 200), *range(200, len(whole) - 16, 311)]:
        (tmp_path / "state").write_bytes(whole[:size])
        with pytest.raises(FormatError):
            open_source(tmp_path / "state")


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (stream(entries=page(8, b"\0")), "of no block of RAM"),
        (stream(entries=page(0, b"\0", None)), "of no block of RAM"),
        (stream(entries=page(0, b"\0", b"none")), "of no block of RAM"),
        (stream(entries=struct.pack(">Q", 0x40)), "XBZRLE"),
        (stream(entries=struct.pack(">Q", 0x100)), "compressed pages"),
        (stream(ram=1 << 40), "expected at most"),
        (b"QEVM" + struct.pack(">I", 2) + bytes(64), "version 2, expected 3"),
        (b"QEVM" + struct.pack(">I", 3) + bytes(64), "no section of RAM"),
    ],
)
def test_forged(tmp_path: Path, data: bytes, says: str) -> None:
    (tmp_path / "state").write_bytes(data)
    with pytest.raises(FormatError, match=says):
        open_source(tmp_path / "state")


@pytest.mark.qemu
@pytest.mark.parametrize("machine", ["q35", "pc"])
def test_what_qemu_writes(tmp_path: Path, machine: str) -> None:
    """Bytes that QEMU was told to load, on both sides of 4 GiB, are where it loaded them."""
    if (reason := available("qemu")) is not None:
        pytest.skip(reason)
    data = random.Random(7).randbytes(MIB)
    (tmp_path / "data").write_bytes(data)
    command = [
        "qemu-system-x86_64",
        "-accel",
        "tcg",
        "-M",
        machine,
        "-m",
        "4G",
        "-S",
        "-display",
        "none",
        "-nodefaults",
    ]
    places = (0x100000, 0x7FF00000, 0x100000000)
    for at in places:
        command += ["-device", f"loader,file={tmp_path / 'data'},addr={at:#x},force-raw=on"]
    child = Child([*command, "-qmp", f"unix:{tmp_path / 'qmp'},server=on,wait=off"], ())
    try:
        deadline = time.monotonic() + 60
        while not (tmp_path / "qmp").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        monitor = QmpClient(str(tmp_path / "qmp"), timeout=60)
        monitor.ask("migrate", uri=f"exec:cat > {tmp_path / 'state'}")
        while (state := monitor.ask("query-migrate")["status"]) not in ("completed", "failed"):
            assert time.monotonic() < deadline, state
            time.sleep(0.1)
        monitor.close()
        assert state == "completed"
    finally:
        child.end()
    with open_source(tmp_path / "state") as source:
        for at in places:
            assert source.memory.read(PhysAddr(at), MIB) == data, hex(at)
        assert source.extents[-1].end == (6 << 30 if machine == "q35" else 5 << 30)
